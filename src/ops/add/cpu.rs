//! Addition on the CPU.

use super::Add;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::broadcast;

impl CpuKernel for Add {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        broadcast::run(cpu, io, false);
    }
}
