//! SiLU and its gradient, element by element.

use super::{Silu, SiluGrad};
use crate::device::cpu::{Cpu, CpuKernel, Io, simd};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for Silu {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0].data;
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, y| {
            forward(cpu.simd(), &x[index * CHUNK..][..y.len()], y);
        });
    }
}

impl CpuKernel for SiluGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dy, x) = (io.inputs[0].data, io.inputs[1].data);
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, dx| {
            let at = index * CHUNK;
            backward(cpu.simd(), &dy[at..][..dx.len()], &x[at..][..dx.len()], dx);
        });
    }
}

crate::vectorised! {
    fn forward<'a>(x: &'a [f32], y: &'a mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = simd::silu(x);
        }
    }
}

crate::vectorised! {
    fn backward<'a>(dy: &'a [f32], x: &'a [f32], dx: &'a mut [f32]) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * simd::silu_grad(x);
        }
    }
}
