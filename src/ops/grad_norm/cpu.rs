//! The global norm on the CPU: blocks in float32 lanes, their sums in float64 in order.

use super::{BLOCK, GradNorm};
use crate::device::cpu::{Cpu, CpuKernel, Io, simd};

impl CpuKernel for GradNorm {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let grads = io.inputs[0].data;
        cpu.chunks_mut(io.scratch, 1, &|block, sum| {
            let end = grads.len().min((block + 1) * BLOCK);
            sum[0] = squares(cpu.simd(), &grads[block * BLOCK..end]);
        });
        let sum: f64 = io.scratch.iter().map(|&sum| f64::from(sum)).sum();
        let norm = sum.sqrt() as f32;
        io.outputs[0].data.copy_from_slice(&[norm, if norm.is_finite() { 1.0 } else { 0.0 }]);
    }
}

crate::vectorised! {
    fn squares<'a>(x: &'a [f32]) -> f32 {
        simd::dot(x, x)
    }
}
