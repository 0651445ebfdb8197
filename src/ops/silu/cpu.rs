//! SiLU and its gradient, element by element.

use super::{Silu, SiluGrad};
use crate::device::cpu::{Cpu, CpuKernel, Io};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for Silu {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0].data;
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, y| {
            let x = &x[index * CHUNK..][..y.len()];
            for (y, &x) in y.iter_mut().zip(x) {
                *y = x * sigmoid(x);
            }
        });
    }
}

impl CpuKernel for SiluGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dy, x) = (io.inputs[0].data, io.inputs[1].data);
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, dx| {
            let at = index * CHUNK;
            let (dy, x) = (&dy[at..][..dx.len()], &x[at..][..dx.len()]);
            for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                *dx = dy * silu_slope(x);
            }
        });
    }
}

/// The logistic function.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// The derivative of SiLU.
#[inline(always)]
pub fn silu_slope(x: f32) -> f32 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}
