//! The forward process on the CPU.

use super::AddNoise;
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::noise::cpu::fill;
use crate::ops::noise::normal::Stream;
use crate::ops::shape::{Extent, Slices};

impl CpuKernel for AddNoise {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [x0, source, table, timesteps] = io.inputs else { unreachable!("four inputs") };
        let extent = Extent::of(x0.shape);
        let (results, drawn) = io.outputs.split_at_mut(1 + usize::from(self.velocity));
        let noise: &[f32] = match (self.draws, drawn) {
            (Some(purpose), [drawn]) => {
                let stream = |sample| Stream::of_run(purpose, source.data, sample);
                fill(cpu, extent, drawn.data, &stream);
                drawn.data
            }
            _ => source.data,
        };
        let (sample_size, channels) = (extent.sample(), extent.channels);
        let slices = Slices::new(extent.pixels, channels);
        let (x_t, v) = results.split_at_mut(1);
        let v: &mut [f32] = match v {
            [v] => v.data,
            _ => &mut [],
        };
        let v_size = if self.velocity { 1 } else { 0 };
        let slice = slices.pixels * channels;
        let cuts = [
            Cut { data: &mut *x_t[0].data, sample: sample_size, slice },
            Cut { data: v, sample: v_size * sample_size, slice: v_size * slice },
        ];
        cpu.cut_mut(extent.batch, slices.count, cuts, &|sample, index, [x_t, v]| {
            let t = timesteps.data[sample] as usize;
            let (s, n) = (table.data[2 * t], table.data[2 * t + 1]);
            let at = sample * sample_size + index * slice;
            let (x0, noise) = (&x0.data[at..][..x_t.len()], &noise[at..][..x_t.len()]);
            combine(cpu.simd(), x0, noise, s, n, x_t);
            if self.velocity {
                combine(cpu.simd(), noise, x0, s, -n, v);
            }
        });
    }
}

crate::vectorised! {
    /// out = s·a + n·b.
    fn combine<'a>(a: &'a [f32], b: &'a [f32], s: f32, n: f32, out: &'a mut [f32]) {
        for ((out, &a), &b) in out.iter_mut().zip(a).zip(b) {
            *out = a.mul_add(s, n * b);
        }
    }
}
