//! Constants, such as the gradient of a loss with respect to itself.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// `y` of the given shape, every element `value`. No inputs; the only operation that knows a shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Fill {
    pub value: f32,
    pub shape: Vec<usize>,
}

impl Op for Fill {
    fn name(&self) -> &'static str {
        "fill"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 0..=0)?;
        let ty = TensorType::f32(self.shape.clone());
        shape::float(self.name(), &ty)?;
        Ok(vec![ty])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::run;

    #[test]
    fn fills() {
        let y = run(&Fill { value: 1.5, shape: vec![100, 300] }, &[]);
        assert!(y[0].data.len() == 30_000 && y[0].data.iter().all(|&y| y == 1.5));
        assert!(Fill { value: 0.0, shape: vec![0] }.infer(&[]).is_err());
    }
}
