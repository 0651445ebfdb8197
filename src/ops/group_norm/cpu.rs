//! Group normalisation on the CPU: statistics, then one pass that applies them.

use super::moments::{Sources, statistics};
use super::{GroupNorm, GroupNormAffine, GroupNormOfMoments};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io, Tensor, simd};
use crate::ops::shape::Extent;

/// `gamma` or `beta`: the row of a sample, the same one for all samples where they share it.
pub fn row<'a>(tensor: &Tensor<'a>, sample: usize, channels: usize) -> &'a [f32] {
    let rows = tensor.data.len() / channels;
    &tensor.data[sample % rows * channels..][..channels]
}

impl CpuKernel for GroupNorm {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (inputs, affine) = io.inputs.split_at(io.inputs.len() - 2);
        let sources = Sources::new(inputs);
        let Extent { batch, channels, .. } = sources.extent;
        let [y, stats] = io.outputs else { unreachable!("two outputs") };
        let (moments, coefficients) = io.scratch.split_at_mut(sources.moments_len());
        statistics(cpu, &sources, self.eps, moments, stats.data);
        let width = channels / self.groups;
        for (sample, rows) in coefficients.chunks_exact_mut(3 * channels).enumerate() {
            let gamma = row(&affine[0], sample, channels);
            let stats = &stats.data[sample * 2 * self.groups..];
            for channel in 0..channels {
                let group = channel / width;
                rows[channel] = stats[2 * group];
                rows[channels + channel] = stats[2 * group + 1] * gamma[channel];
            }
            rows[2 * channels..].copy_from_slice(row(&affine[1], sample, channels));
        }
        let coefficients = &*coefficients;
        let cut = Cut {
            data: y.data,
            sample: sources.extent.sample(),
            slice: sources.slices.pixels * channels,
        };
        cpu.cut_mut(batch, sources.slices.count, [cut], &|sample, slice, [y]| {
            let rows = &coefficients[sample * 3 * channels..][..3 * channels];
            for part in sources.parts() {
                let x = sources.rows(part, sample, slice);
                let of = |which: usize| &rows[which * channels + part.at..][..part.channels];
                let (mean, scale, shift) = (of(0), of(1), of(2));
                normalise(cpu.simd(), y, x, part.at, channels, [mean, scale, shift], self.silu);
            }
        });
    }
}

crate::vectorised! {
    /// y = (x − mean)·scale + shift, through SiLU if asked, for the pixels of one source, whose
    /// channels start at `at` of `channels` in y.
    fn normalise<'a>(
        y: &'a mut [f32],
        x: &'a [f32],
        at: usize,
        channels: usize,
        rows: [&'a [f32]; 3],
        silu: bool,
    ) {
        let width = rows[0].len();
        let pixels = y.chunks_exact_mut(channels).zip(x.chunks_exact(width));
        let [mean, scale, shift] = rows.map(|row| &row[..width]);
        if silu {
            for (y, x) in pixels {
                let (y, x) = (&mut y[at..at + width], &x[..width]);
                for c in 0..width {
                    y[c] = simd::silu((x[c] - mean[c]).mul_add(scale[c], shift[c]));
                }
            }
        } else {
            for (y, x) in pixels {
                let (y, x) = (&mut y[at..at + width], &x[..width]);
                for c in 0..width {
                    y[c] = (x[c] - mean[c]).mul_add(scale[c], shift[c]);
                }
            }
        }
    }
}

impl CpuKernel for GroupNormAffine {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (inputs, affine) = io.inputs.split_at(io.inputs.len() - 2);
        let sources = Sources::new(inputs);
        let Extent { batch, channels, .. } = sources.extent;
        let (moments, rest) = io.scratch.split_at_mut(sources.moments_len());
        let stats = &mut rest[..2 * batch * self.groups];
        statistics(cpu, &sources, self.eps, moments, stats);
        let width = channels / self.groups;
        for (sample, out) in io.outputs[0].data.chunks_exact_mut(2 * channels).enumerate() {
            let (gamma, beta) =
                (row(&affine[0], sample, channels), row(&affine[1], sample, channels));
            for channel in 0..channels {
                let group = sample * self.groups + channel / width;
                let scale = stats[2 * group + 1] * gamma[channel];
                out[channel] = scale;
                out[channels + channel] = beta[channel] - stats[2 * group] * scale;
            }
        }
    }
}

/// `graph::fuse` makes these for targets with kernels alone.
impl CpuKernel for GroupNormOfMoments {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a form for kernels on the CPU")
    }
}
