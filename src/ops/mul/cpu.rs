//! Multiplication on the CPU.

use super::Mul;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::broadcast;

impl CpuKernel for Mul {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        broadcast::run(cpu, io, true);
    }
}
