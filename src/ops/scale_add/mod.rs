//! Scaling and shifting by constants.

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// `x` of any shape → `y` = scale·x + offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScaleAdd {
    pub scale: f32,
    pub offset: f32,
}

impl Op for ScaleAdd {
    fn name(&self) -> &'static str {
        "scale_add"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        args.transposed(graph, |_| ScaleAdd { scale: self.scale, offset: 0.0 })
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, check_gradient, check_threads, run};
    use std::sync::Arc;

    #[test]
    fn values_and_gradient() {
        let op = ScaleAdd { scale: 2.0, offset: -1.0 };
        let x = Host::new(&[1, 3], vec![0.0, 0.5, 1.0]);
        assert_eq!(run(&op, &[&x])[0].data, [-1.0, 0.0, 1.0]);
        check_gradient(Arc::new(op), &[Host::random(&[2, 3], 1)], &[0], 1e-3);
        check_threads(&op, &[&Host::random(&[40_000], 1)]);
    }
}
