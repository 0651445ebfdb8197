//! Constants on the CPU.

use super::Fill;
use crate::device::cpu::{Cpu, CpuKernel, Io};

impl CpuKernel for Fill {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        cpu.chunks_mut(io.outputs[0].data, 16 << 10, &|_, y| y.fill(self.value));
    }
}
