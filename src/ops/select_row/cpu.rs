//! Row selection on the CPU.

use super::SelectRow;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::state;

impl CpuKernel for SelectRow {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let row = state::word(io.inputs[1].data, state::ROW) as usize;
        let out = &mut *io.outputs[0].data;
        out.copy_from_slice(&io.inputs[0].data[row * out.len()..][..out.len()]);
    }
}
