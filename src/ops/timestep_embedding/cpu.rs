//! The timestep embedding on the CPU.

use super::TimestepEmbedding;
use crate::device::cpu::{Cpu, CpuKernel, Io};

impl CpuKernel for TimestepEmbedding {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let t = io.inputs[0].data;
        let half = self.dim / 2;
        let rate = -self.max_period.ln() as f32;
        let span = (half as f64 - self.freq_shift) as f32;
        cpu.chunks_mut(io.outputs[0].data, self.dim, &|sample, row| {
            let (sines, rest) = row.split_at_mut(half);
            let (cosines, rest) = rest.split_at_mut(half);
            let (sines, cosines) =
                if self.flip_sin_to_cos { (cosines, sines) } else { (sines, cosines) };
            for (index, (sine, cosine)) in sines.iter_mut().zip(cosines).enumerate() {
                let exponent = rate * index as f32 / span;
                let frequency = f64::from(exponent).exp() as f32;
                let angle = f64::from(t[sample] * frequency);
                (*sine, *cosine) = (angle.sin() as f32, angle.cos() as f32);
            }
            rest.fill(0.0);
        });
    }
}
