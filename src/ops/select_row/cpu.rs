//! Row selection on the CPU.

use super::SelectRow;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::state;

impl CpuKernel for SelectRow {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let (table, rows) = (io.inputs[0], io.inputs[1].data);
        let width = table.data.len() / table.shape[0];
        for (place, out) in io.outputs[0].data.chunks_exact_mut(width).enumerate() {
            let row = match self {
                SelectRow::Current => state::word(rows, state::ROW) as usize,
                SelectRow::Each => rows[place] as usize,
            };
            out.copy_from_slice(&table.data[row * width..][..width]);
        }
    }
}
