//! Sums over pixels on the CPU: each slice of pixels, then the slices in order, then the samples.

use super::SumPixels;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::shape::{Extent, Slices};

impl CpuKernel for SumPixels {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let extent = Extent::of(io.inputs[0].shape);
        let (x, channels) = (io.inputs[0].data, extent.channels);
        let slices = Slices::new(extent.pixels, channels);
        cpu.chunks_mut(io.scratch, channels, &|task, sums| {
            let (sample, slice) = (task / slices.count, task % slices.count);
            let pixels = slices.range(slice);
            let x = &x[sample * extent.sample()..];
            sums.fill(0.0);
            add_rows(cpu.simd(), &x[pixels.start * channels..pixels.end * channels], sums);
        });
        let y = &mut *io.outputs[0].data;
        let rows = y.len() / channels;
        y.fill(0.0);
        for (sample, partials) in io.scratch.chunks_exact(slices.count * channels).enumerate() {
            let y = &mut y[sample % rows * channels..][..channels];
            if rows == 1 && sample > 0 {
                add_sample(y, partials, channels);
            } else {
                add_rows(cpu.simd(), partials, y);
            }
        }
    }
}

/// Adds the sum of a sample's partial rows, so that the sum of a sample is formed before the
/// samples are added.
fn add_sample(y: &mut [f32], partials: &[f32], channels: usize) {
    for (channel, y) in y.iter_mut().enumerate() {
        *y += partials.iter().skip(channel).step_by(channels).fold(0.0, |sum, &x| sum + x);
    }
}

crate::vectorised! {
    /// Adds rows as long as `sums` to it, in order.
    pub(in crate::ops) fn add_rows<'a>(x: &'a [f32], sums: &'a mut [f32]) {
        for row in x.chunks_exact(sums.len()) {
            for (sum, &x) in sums.iter_mut().zip(row) {
                *sum += x;
            }
        }
    }
}
