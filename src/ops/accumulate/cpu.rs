//! Accumulation on the CPU.

use super::Accumulate;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::adamw::cpu::follow;
use crate::ops::state;

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for Accumulate {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0].data;
        let rate = match self {
            Accumulate::Sum { scale } => *scale,
            Accumulate::Average { decay } => {
                (1.0 - f64::from(state::float(io.inputs[1].data, *decay))) as f32
            }
        };
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, sum| {
            let x = &x[index * CHUNK..][..sum.len()];
            match self {
                Accumulate::Sum { .. } => add(cpu.simd(), x, rate, sum),
                Accumulate::Average { .. } => follow(cpu.simd(), rate, x, sum),
            }
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
