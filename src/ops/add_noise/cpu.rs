//! The forward process on the CPU.

use super::{AddNoise, Shares};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::noise::cpu::fill;
use crate::ops::noise::normal::Stream;
use crate::ops::shape::{Extent, Slices};

impl CpuKernel for AddNoise {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [x0, source, .., times] = io.inputs else { unreachable!("at least three inputs") };
        let extent = Extent::of(x0.shape);
        let sample_size = extent.sample();
        let slices = Slices::new(extent.pixels, extent.channels);
        let slice = slices.pixels * extent.channels;
        let draw = |purpose, out: &mut [f32]| {
            let stream = |sample| Stream::of_run(purpose, source.data, sample);
            fill(cpu, extent, out, &stream);
        };
        let (x_t, more) = io.outputs.split_at_mut(1);
        let x_t = &mut *x_t[0].data;
        if self.shares == Shares::Sigma {
            match self.draws {
                Some(purpose) => draw(purpose, x_t),
                None => x_t.copy_from_slice(source.data),
            }
            let cut = slices.cut(extent, x_t);
            cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, index, [x_t]| {
                let x0 = &x0.data[sample * sample_size + index * slice..][..x_t.len()];
                scale_and_add(cpu.simd(), x0, times.data[sample], x_t);
            });
            return;
        }
        let table = &io.inputs[2];
        let [velocity, _] = self.more();
        let (v, drawn) = more.split_at_mut(usize::from(velocity));
        let noise: &[f32] = match (self.draws, drawn) {
            (Some(purpose), [drawn]) => {
                draw(purpose, drawn.data);
                drawn.data
            }
            _ => source.data,
        };
        let v: &mut [f32] = match v {
            [v] => v.data,
            _ => &mut [],
        };
        let v_size = usize::from(velocity);
        let cuts = [
            Cut { data: x_t, sample: sample_size, slice },
            Cut { data: v, sample: v_size * sample_size, slice: v_size * slice },
        ];
        cpu.cut_mut(extent.batch, slices.count, cuts, &|sample, index, [x_t, v]| {
            let t = times.data[sample] as usize;
            let (s, n) = (table.data[2 * t], table.data[2 * t + 1]);
            let at = sample * sample_size + index * slice;
            let (x0, noise) = (&x0.data[at..][..x_t.len()], &noise[at..][..x_t.len()]);
            combine(cpu.simd(), x0, noise, s, n, x_t);
            if velocity {
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

crate::vectorised! {
    /// out = a + n·out.
    fn scale_and_add<'a>(a: &'a [f32], n: f32, out: &'a mut [f32]) {
        for (out, &a) in out.iter_mut().zip(a) {
            *out = a + n * *out;
        }
    }
}
