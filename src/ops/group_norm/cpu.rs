//! Group normalisation on the CPU: statistics, then one pass that applies them.

use super::moments::{Sources, statistics};
use super::{GroupNorm, GroupNormAffine};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io, Tensor};
use crate::ops::shape::Extent;
use crate::ops::silu::sigmoid;

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
                for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(part.channels)) {
                    let y = &mut y[part.at..][..part.channels];
                    if self.silu {
                        normalise::<true>(y, x, mean, scale, shift);
                    } else {
                        normalise::<false>(y, x, mean, scale, shift);
                    }
                }
            }
        });
    }
}

/// One pixel: y = (x − mean)·scale + shift, through SiLU if asked.
#[inline(always)]
fn normalise<const SILU: bool>(
    y: &mut [f32],
    x: &[f32],
    mean: &[f32],
    scale: &[f32],
    shift: &[f32],
) {
    for ((((y, &x), &mean), &scale), &shift) in y.iter_mut().zip(x).zip(mean).zip(scale).zip(shift)
    {
        let z = (x - mean) * scale + shift;
        *y = if SILU { z * sigmoid(z) } else { z };
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
