//! The global norm of all gradients, and whether all are finite.

mod cpu;
mod launch;

pub(in crate::ops) use launch::{grid, slices};

use super::{LaunchArgs, Op, shape};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::Result;

/// Elements of a leaf of the sum.
const BLOCK: usize = 16 << 10;

/// `grads` (any shape) → `norm` `[2]`: √Σ g², and 1 where that is finite, else 0. Squares are added
/// in float32 within blocks, so values above 1e19 count as not finite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradNorm;

impl Op for GradNorm {
    fn name(&self) -> &'static str {
        "grad_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 1..=1)?;
        Ok(vec![TensorType::f32([2])])
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let elements = inputs[0].elements();
        if target.is_cpu() { elements.div_ceil(BLOCK) } else { slices(elements) }
    }

    fn tickets(&self, target: &Target, _: &[&TensorType], _: &[&TensorType]) -> usize {
        usize::from(!target.is_cpu())
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_threads, run};

    #[test]
    fn norms() {
        assert_eq!(run(&GradNorm, &[&Host::new(&[2], vec![3.0, -4.0])])[0].data, [5.0, 1.0]);
        let grads = Host::random(&[100_003], 1);
        let want = grads.data.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
        assert_close(&run(&GradNorm, &[&grads])[0].data, &[want as f32, 1.0], 1e-4);
        check_threads(&GradNorm, &[&grads]);
    }

    #[test]
    fn non_finite_gradients_are_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
            let mut grads = Host::random(&[50_000], 1);
            grads.data[40_000] = bad;
            assert_eq!(run(&GradNorm, &[&grads])[0].data[1], 0.0);
        }
    }
}
