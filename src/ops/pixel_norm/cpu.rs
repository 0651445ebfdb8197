//! Normalisation of pixels on the CPU.

use super::{EPSILON, PixelNorm, PixelNormGrad, PooledPixelNorm};
use crate::device::cpu::{Cpu, CpuKernel, Io, simd};

/// Elements of one task, about; whole runs.
const CHUNK: usize = 16 << 10;

/// Elements of the runs of one task.
fn chunk(run: usize) -> usize {
    (CHUNK / run).max(1) * run
}

impl CpuKernel for PixelNorm {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0];
        let run = x.shape[x.shape.len() - 1] / self.groups;
        normalise(cpu, x.data, io.outputs[0].data, run);
    }
}

impl CpuKernel for PooledPixelNorm {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (x, y) = (&io.inputs[0], &mut io.outputs[0]);
        PooledPixelNorm::POOL.pool(cpu, x, io.scratch);
        normalise(cpu, io.scratch, y.data, x.shape[3] / self.groups);
    }
}

/// Each run of so many elements of `x` as [`PixelNorm`] leaves it.
pub fn normalise(cpu: &Cpu, x: &[f32], y: &mut [f32], run: usize) {
    let chunk = chunk(run);
    cpu.chunks_mut(y, chunk, &|index, y| {
        forward(cpu.simd(), &x[index * chunk..][..y.len()], y, run);
    });
}

impl CpuKernel for PixelNormGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dy, x) = (io.inputs[0].data, io.inputs[1]);
        let run = x.shape[x.shape.len() - 1] / self.groups;
        let chunk = chunk(run);
        cpu.chunks_mut(io.outputs[0].data, chunk, &|index, dx| {
            let part = index * chunk..index * chunk + dx.len();
            backward(cpu.simd(), &dy[part.clone()], &x.data[part], dx, run);
        });
    }
}

crate::vectorised! {
    fn forward<'a>(x: &'a [f32], y: &'a mut [f32], run: usize) {
        for (y, x) in y.chunks_exact_mut(run).zip(x.chunks_exact(run)) {
            let scale = 1.0 / (EPSILON + (simd::dot(x, x) / run as f32).sqrt());
            for (y, &x) in y.iter_mut().zip(x) {
                *y = scale * x;
            }
        }
    }
}

crate::vectorised! {
    fn backward<'a>(dy: &'a [f32], x: &'a [f32], dx: &'a mut [f32], run: usize) {
        let runs = dy.chunks_exact(run).zip(x.chunks_exact(run));
        for (dx, (dy, x)) in dx.chunks_exact_mut(run).zip(runs) {
            let root = (simd::dot(x, x) / run as f32).sqrt();
            let scale = 1.0 / (EPSILON + root);
            // Where x is zero, so is what this multiplies.
            let along = if root > 0.0 { simd::dot(dy, x) / (run as f32 * root) } else { 0.0 };
            let back = -scale * scale * along;
            for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                *dx = back.mul_add(x, scale * dy);
            }
        }
    }
}
