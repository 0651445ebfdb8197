//! Scaling and shifting on the CPU.

use super::ScaleAdd;
use crate::device::cpu::{Cpu, CpuKernel, Io};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for ScaleAdd {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0].data;
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, y| {
            affine(cpu.simd(), &x[index * CHUNK..][..y.len()], y, self.scale, self.offset);
        });
    }
}

crate::vectorised! {
    fn affine<'a>(x: &'a [f32], y: &'a mut [f32], scale: f32, offset: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x.mul_add(scale, offset);
        }
    }
}
