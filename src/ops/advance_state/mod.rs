//! Counting on the device, for steps that follow one another without the host.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// In place on `state`: `STEP` += step, `ROW` += row, `SAMPLE` += sample. No inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AdvanceState {
    pub step: u32,
    pub row: u32,
    pub sample: u32,
}

impl Op for AdvanceState {
    fn name(&self) -> &'static str {
        "advance_state"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 0..=0)?;
        Ok(vec![state::ty()])
    }

    fn in_place(&self) -> bool {
        true
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::cpu::Cpu;
    use crate::ops::state::StepState;
    use crate::ops::testing::{Host, run_on};

    #[test]
    fn counts() {
        let mut state = StepState::new(9);
        state.words[state::ROW] = 40;
        let op = AdvanceState { step: 0, row: 1, sample: 16 };
        let after = run_on(&Cpu::new(1), &op, &[], &[Host::bits(&[16], &state.words)]).unwrap();
        state.words[state::ROW] = 41;
        state.words[state::SAMPLE] = 16;
        let after: Vec<u32> = after[0].data.iter().map(|x| x.to_bits()).collect();
        assert_eq!(after, state.words);
    }
}
