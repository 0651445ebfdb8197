//! An exponential moving average with a decay that changes from step to step.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// In place on `ema`: ema += (1 − decay)·(w − ema), from (`w` of the same shape, `state`), whose word
/// `EMA_DECAY` is the decay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ema;

impl Op for Ema {
    fn name(&self) -> &'static str {
        "ema"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 2..=2)?;
        shape::float(self.name(), inputs[0])?;
        shape::expect(self.name(), "state", inputs[1], &state::ty())?;
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
    use crate::ops::testing::{Host, assert_close, run_on};

    #[test]
    fn decays() {
        let (w, ema) = (Host::random(&[40_000], 1), Host::random(&[40_000], 2));
        let mut state = StepState::new(0);
        state.set_float(EMA_DECAY, 0.9);
        let state = Host::bits(&[16], &state.words);
        let got = run_on(&Cpu::new(2), &Ema, &[&w, &state], std::slice::from_ref(&ema)).unwrap();
        let want: Vec<f32> =
            w.data.iter().zip(&ema.data).map(|(w, ema)| 0.9 * ema + 0.1 * w).collect();
        assert_close(&got[0].data, &want, 2e-7);
    }
}
