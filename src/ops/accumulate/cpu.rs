//! Accumulation on the CPU.

use super::Accumulate;
use crate::device::cpu::{Cpu, CpuKernel, Io};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for Accumulate {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0].data;
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, sum| {
            add(cpu.simd(), &x[index * CHUNK..][..sum.len()], self.scale, sum);
        });
    }
}

crate::vectorised! {
    fn add<'a>(x: &'a [f32], scale: f32, sum: &'a mut [f32]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum = x.mul_add(scale, *sum);
        }
    }
}
