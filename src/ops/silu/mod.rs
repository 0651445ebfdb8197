//! SiLU: y = x·σ(x), σ the logistic function (Elfwing et al. 2017, arXiv:1702.03118, eq. 1).

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// `x` of any shape → `y` of the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silu;

/// `dy`, `x` → `dx` = dy·σ(x)·(1 + x·(1 − σ(x))).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SiluGrad;

impl Op for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0].filter(|_| args.needs[0]) else {
            return Ok(vec![None]);
        };
        Ok(vec![Some(graph.push(Arc::new(SiluGrad), &[dy, args.inputs[0]])?[0])])
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        Ok(self.launches(args))
    }
}

impl Op for SiluGrad {
    fn name(&self) -> &'static str {
        "silu_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 2..=2, &[true; 2])?;
        shape::expect(self.name(), "x", inputs[1], inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true; 2]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        Ok(self.launches(args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_gradient, check_threads, run};

    #[test]
    fn values_and_gradient() {
        let x = Host::new(&[1, 5], vec![-30.0, -1.0, 0.0, 0.5, 100.0]);
        // x / (1 + exp(−x)) in float64
        let want = [-2.807_286_8e-12, -0.268_941_42, 0.0, 0.311_229_67, 100.0];
        assert_close(&run(&Silu, &[&x])[0].data, &want, 1e-6);
        let x = Host::random(&[2, 3, 3, 5], 1);
        check_gradient(Arc::new(Silu), &[x], &[0], 1e-3);
    }

    #[test]
    fn threads_do_not_matter() {
        let (x, dy) = (Host::random(&[70_001], 1), Host::random(&[70_001], 2));
        check_threads(&Silu, &[&x]);
        check_threads(&SiluGrad, &[&dy, &x]);
    }

    #[test]
    fn gradients_of_another_shape_are_refused() {
        let (x, dy) = (TensorType::f32([2, 3]), TensorType::f32([3, 2]));
        assert!(SiluGrad.infer(&[&dy, &x]).is_err());
        assert!(Silu.infer(&[&Host::bits(&[3], &[1, 2, 3]).ty]).is_err());
    }
}
