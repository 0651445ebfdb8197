use super::Cast;
use crate::device::DType;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use half::f16;

/// The CPU holds every element in 32 bits, so this only rounds.
impl CpuKernel for Cast {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        for (y, &x) in io.outputs[0].data.iter_mut().zip(io.inputs[0].data) {
            *y = if self.to == DType::F16 { f16::from_f32(x).to_f32() } else { x };
        }
    }
}
