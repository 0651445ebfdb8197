use super::PlaceColumns;
use crate::device::cpu::{Cpu, CpuKernel, Io};

impl CpuKernel for PlaceColumns {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let width = io.inputs[0].shape[1];
        let rows = io.outputs[0].data.chunks_mut(self.columns);
        for (row, from) in rows.zip(io.inputs[0].data.chunks(width)) {
            row[self.column..self.column + width].copy_from_slice(from);
        }
    }
}
