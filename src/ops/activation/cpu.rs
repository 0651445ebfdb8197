//! SiLU, clipping and their gradients, element by element.

use super::{Activation, ActivationGrad};
use crate::device::cpu::{Cpu, CpuKernel, Io, simd};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for Activation {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0].data;
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, y| {
            let x = &x[index * CHUNK..][..y.len()];
            match *self {
                Activation::Silu { scale } => silu(cpu.simd(), x, y, scale),
                Activation::Clip { limit } => clip(cpu.simd(), x, y, limit),
            }
        });
    }
}

impl CpuKernel for ActivationGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dy, x) = (io.inputs[0].data, io.inputs[1].data);
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, dx| {
            let part = index * CHUNK..index * CHUNK + dx.len();
            let (dy, x) = (&dy[part.clone()], &x[part]);
            match self.0 {
                Activation::Silu { scale } => silu_grad(cpu.simd(), dy, x, dx, scale),
                Activation::Clip { limit } => clip_grad(cpu.simd(), dy, x, dx, limit),
            }
        });
    }
}

crate::vectorised! {
    fn silu<'a>(x: &'a [f32], y: &'a mut [f32], scale: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = scale * simd::silu(x);
        }
    }
}

crate::vectorised! {
    fn silu_grad<'a>(dy: &'a [f32], x: &'a [f32], dx: &'a mut [f32], scale: f32) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * (scale * simd::silu_grad(x));
        }
    }
}

crate::vectorised! {
    fn clip<'a>(x: &'a [f32], y: &'a mut [f32], limit: f32) {
        for (y, &x) in y.iter_mut().zip(x) {
            let below = if x > limit { limit } else { x };
            *y = if below < -limit { -limit } else { below };
        }
    }
}

crate::vectorised! {
    fn clip_grad<'a>(dy: &'a [f32], x: &'a [f32], dx: &'a mut [f32], limit: f32) {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = if x.abs() <= limit { dy } else { 0.0 };
        }
    }
}
