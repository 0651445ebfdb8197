//! Functions of single elements: SiLU and clipping.

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// `x` of any shape → `y` of the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// y = scale·x·σ(x), σ the logistic function (Elfwing et al. 2017, arXiv:1702.03118, eq. 1).
    Silu { scale: f32 },
    /// y = x cut to ±limit; NaN stays NaN. At the limit itself the gradient passes (in PyTorch up to 2.14).
    Clip { limit: f32 },
}

impl Activation {
    pub const SILU: Activation = Activation::Silu { scale: 1.0 };

    /// The magnitude-preserving SiLU, silu(x)/0.596: 0.596² is the mean square of what it makes of
    /// standard normal inputs (Karras et al. 2024, arXiv:2312.02696, eq. 81).
    pub const MP_SILU: Activation = Activation::Silu { scale: 1.0 / 0.596 };
}

/// `dy`, `x` → `dx`: dy·scale·σ(x)·(1 + x·(1 − σ(x))), or dy where |x| ≤ limit and 0 elsewhere.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ActivationGrad(pub Activation);

impl Op for Activation {
    fn name(&self) -> &'static str {
        match self {
            Activation::Silu { .. } => "silu",
            Activation::Clip { .. } => "clip",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0].filter(|_| args.needs[0]) else {
            return Ok(vec![None]);
        };
        let op = Arc::new(ActivationGrad(*self));
        Ok(vec![Some(graph.push(op, &[dy, args.inputs[0]])?[0])])
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        vec![!shape::is_rows(inputs[0])]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        Ok(self.launches(args))
    }
}

impl Op for ActivationGrad {
    fn name(&self) -> &'static str {
        match self.0 {
            Activation::Silu { .. } => "silu_grad",
            Activation::Clip { .. } => "clip_grad",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 2..=2, &[true; 2])?;
        shape::expect(self.name(), "x", inputs[1], inputs[0])?;
        Ok(vec![inputs[0].clone()])
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        vec![!shape::is_rows(inputs[0]); 2]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        Ok(self.launches(args))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_gradient, check_threads, run};

    const CLIP: Activation = Activation::Clip { limit: 0.5 };

    #[test]
    fn values_and_gradient_of_silu() {
        let x = Host::new(&[1, 5], vec![-30.0, -1.0, 0.0, 0.5, 100.0]);
        // x / (1 + exp(−x)) in float64
        let want = [-2.807_286_8e-12, -0.268_941_42, 0.0, 0.311_229_67, 100.0];
        assert_close(&run(&Activation::SILU, &[&x])[0].data, &want, 1e-6);
        let scaled = want.map(|y| y / 0.596);
        assert_close(&run(&Activation::MP_SILU, &[&x])[0].data, &scaled, 2e-5);
        for op in [Activation::SILU, Activation::MP_SILU] {
            check_gradient(Arc::new(op), &[Host::random(&[2, 3, 3, 5], 1)], &[0], 1e-3);
        }
    }

    #[test]
    fn values_and_gradient_of_clip() {
        let values = vec![f32::NEG_INFINITY, -0.75, -0.5, 0.25, 0.5, 3.0];
        let x = Host::new(&[6], values);
        assert_eq!(run(&CLIP, &[&x])[0].data, [-0.5, -0.5, -0.5, 0.25, 0.5, 0.5]);
        let dy = Host::new(&[6], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        let dx = run(&ActivationGrad(CLIP), &[&dy, &x]);
        assert_eq!(dx[0].data, [0.0, 0.0, 3.0, 4.0, 5.0, 0.0]);
        assert!(run(&CLIP, &[&Host::new(&[1], vec![f32::NAN])])[0].data[0].is_nan());
    }

    #[test]
    fn threads_do_not_matter() {
        let (x, dy) = (Host::random(&[70_001], 1), Host::random(&[70_001], 2));
        for op in [Activation::MP_SILU, CLIP] {
            check_threads(&op, &[&x]);
            check_threads(&ActivationGrad(op), &[&dy, &x]);
        }
    }

    #[test]
    fn gradients_of_another_shape_are_refused() {
        let (x, dy) = (TensorType::f32([2, 3]), TensorType::f32([3, 2]));
        assert!(ActivationGrad(Activation::SILU).infer(&[&dy, &x]).is_err());
        assert!(Activation::SILU.infer(&[&Host::bits(&[3], &[1, 2, 3]).ty]).is_err());
    }
}
