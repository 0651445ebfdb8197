//! Adding into what outlives a step: gradients over micro-batches, averages of weights.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// In place on `sum`, from `x` of the same shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Accumulate {
    /// sum += scale·x.
    Sum { scale: f32 },
    /// A moving average: sum += (1 − decay)·(x − sum); a second input is the `state`, of which
    /// `decay` is a word.
    Average { decay: usize },
}

impl Op for Accumulate {
    fn name(&self) -> &'static str {
        match self {
            Accumulate::Sum { .. } => "accumulate",
            Accumulate::Average { .. } => "ema",
        }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let averages = matches!(self, Accumulate::Average { .. });
        let count = if averages { 2 } else { 1 };
        shape::arity(self.name(), inputs, count..=count)?;
        shape::float(self.name(), inputs[0])?;
        if averages {
            shape::expect(self.name(), "state", inputs[1], &state::ty())?;
        }
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
    use crate::ops::state::{EMA_DECAY, StepState};
    use crate::ops::testing::{Host, assert_close, assert_same_bits, run_on};

    #[test]
    fn adds() {
        let (x, sum) = (Host::random(&[40_000], 1), Host::random(&[40_000], 2));
        let op = Accumulate::Sum { scale: 0.5 };
        let run = |threads| {
            run_on(&Cpu::new(threads), &op, &[&x], std::slice::from_ref(&sum)).unwrap()[0].clone()
        };
        let one = run(1);
        for ((&got, &x), &sum) in one.data.iter().zip(&x.data).zip(&sum.data) {
            assert_eq!(got, sum + 0.5 * x);
        }
        assert_same_bits(&one, &run(3), "threads");
    }

    #[test]
    fn decays() {
        let (w, ema) = (Host::random(&[40_000], 1), Host::random(&[40_000], 2));
        let mut state = StepState::new(0);
        state.set_float(EMA_DECAY, 0.9);
        let state = Host::bits(&[16], &state.words);
        let op = Accumulate::Average { decay: EMA_DECAY };
        let got = run_on(&Cpu::new(2), &op, &[&w, &state], std::slice::from_ref(&ema)).unwrap();
        let want: Vec<f32> =
            w.data.iter().zip(&ema.data).map(|(w, ema)| 0.9 * ema + 0.1 * w).collect();
        assert_close(&got[0].data, &want, 2e-7);
    }
}
