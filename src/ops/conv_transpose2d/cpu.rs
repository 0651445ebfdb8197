use super::ConvTranspose2d;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::conv2d::run_unpacked;

impl CpuKernel for ConvTranspose2d {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        run_unpacked(&self.form(), cpu, io);
    }
}
