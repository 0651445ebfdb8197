//! Counting on the CPU.

use super::AdvanceState;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::state;

impl CpuKernel for AdvanceState {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let counts =
            [(state::STEP, self.step), (state::ROW, self.row), (state::SAMPLE, self.sample)];
        for (word, count) in counts {
            let value = &mut io.outputs[0].data[word];
            *value = f32::from_bits(value.to_bits().wrapping_add(count));
        }
    }
}
