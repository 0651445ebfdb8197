//! Adding into what outlives a step, such as gradients over micro-batches.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// In place on `sum`: sum += scale·`x`, both of one shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Accumulate {
    pub scale: f32,
}

impl Op for Accumulate {
    fn name(&self) -> &'static str {
        "accumulate"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 1..=1)?;
        Ok(vec![inputs[0].clone()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        3 * inputs[0].bytes() as u64
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::ops::testing::{Host, assert_same_bits, run_on};

    #[test]
    fn adds() {
        let (x, sum) = (Host::random(&[40_000], 1), Host::random(&[40_000], 2));
        let op = Accumulate { scale: 0.5 };
        let run = |threads| {
            run_on(&Cpu::new(threads), &op, &[&x], std::slice::from_ref(&sum)).unwrap()[0].clone()
        };
        let one = run(1);
        for ((&got, &x), &sum) in one.data.iter().zip(&x.data).zip(&sum.data) {
            assert_eq!(got, sum + 0.5 * x);
        }
        assert_same_bits(&one, &run(3), "threads");
    }
}
