//! The moving average on the CPU.

use super::Ema;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::adamw::cpu::follow;
use crate::ops::state::{self, EMA_DECAY};

/// Elements of one task.
const CHUNK: usize = 16 << 10;

impl CpuKernel for Ema {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let w = io.inputs[0].data;
        let rate = (1.0 - f64::from(state::float(io.inputs[1].data, EMA_DECAY))) as f32;
        cpu.chunks_mut(io.outputs[0].data, CHUNK, &|index, ema| {
            follow(cpu.simd(), rate, &w[index * CHUNK..][..ema.len()], ema);
        });
    }
}
