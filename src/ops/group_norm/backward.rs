//! The gradient of group normalisation on the CPU: sums per slice, sums per group, then `dx`.

use super::GroupNormGrad;
use super::cpu::row;
use super::moments::{Part, Sources};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io, Tensor, TensorMut, simd};
use crate::ops::shape::Extent;
use crate::ops::sum_pixels::add_rows;

/// Rows of coefficients that a sample needs: first mean, rstd, gamma, beta; then, in their place,
/// the three of [`coefficients`].
pub const COEFFICIENTS: usize = 4;

impl CpuKernel for GroupNormGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dy, inputs, stats, residuals) = self.split(io.inputs);
        let dy = dy.data;
        let (inputs, affine) = inputs.split_at(inputs.len() - 2);
        let sources = Sources::new(inputs);
        let Extent { batch, channels, .. } = sources.extent;
        let (partials, rest) = io.scratch.split_at_mut(sources.moments_len());
        let (totals, rows) = rest.split_at_mut(batch * 2 * channels);
        let (dx, rest) = io.outputs.split_at_mut(inputs.len());
        let (daffine, sums) = rest.split_at_mut(2);

        fill_rows(rows, stats, affine, channels, self.groups);
        self.sum_slices(cpu, &sources, dy, rows, dx, partials);
        add_slices(cpu, partials, totals, channels, sources.slices.count);
        for sample in 0..batch {
            let rows = &mut rows[sample * COEFFICIENTS * channels..][..COEFFICIENTS * channels];
            let totals = &totals[sample * 2 * channels..][..2 * channels];
            coefficients(rows, totals, sources.extent, self.groups);
        }
        self.write_dx(cpu, &sources, dy, rows, dx);
        for residual in residuals {
            add_residual(cpu, &sources, residual.data, dx);
        }
        if let ([sums], [dx]) = (sums, dx) {
            let sample = sources.extent.sample();
            cpu.chunks_mut(sums.data, channels, &|index, sums| {
                sums.fill(0.0);
                add_rows(cpu.simd(), &dx.data[index * sample..][..sample], sums);
            });
        }
        let [dgamma, dbeta] = daffine else { unreachable!("outputs are checked") };
        sum_samples(totals, channels, dbeta, 0);
        sum_samples(totals, channels, dgamma, 1);
    }
}

/// Mean, rstd, gamma and beta of every channel of every sample.
fn fill_rows(rows: &mut [f32], stats: &Tensor, affine: &[Tensor], channels: usize, groups: usize) {
    let width = channels / groups;
    for (sample, rows) in rows.chunks_exact_mut(COEFFICIENTS * channels).enumerate() {
        let stats = &stats.data[sample * 2 * groups..];
        for channel in 0..channels {
            rows[channel] = stats[2 * (channel / width)];
            rows[channels + channel] = stats[2 * (channel / width) + 1];
        }
        rows[2 * channels..3 * channels].copy_from_slice(row(&affine[0], sample, channels));
        rows[3 * channels..].copy_from_slice(row(&affine[1], sample, channels));
    }
}

/// Cuts of `dx` and, where there are two sources, `dx2` (else empty).
fn cuts<'a>(sources: &Sources, dx: &'a mut [TensorMut]) -> [Cut<'a>; 2] {
    let (first, second) = dx.split_at_mut(1);
    let second: &mut [f32] = match second {
        [tensor] => tensor.data,
        _ => &mut [],
    };
    let cut = |data, part: &Part| Cut {
        data,
        sample: sources.extent.pixels * part.channels,
        slice: sources.slices.pixels * part.channels,
    };
    [cut(&mut *first[0].data, &sources.parts[0]), cut(second, &sources.parts[1])]
}

impl GroupNormGrad {
    /// Writes, per slice and channel, Σ dz and Σ dz·x̂ into `partials` `[B, slices, 2, C]`, and with
    /// SiLU dz itself into `dx`, so that the last pass need not compute it again.
    fn sum_slices(
        &self,
        cpu: &Cpu,
        sources: &Sources,
        dy: &[f32],
        rows: &[f32],
        dx: &mut [TensorMut],
        partials: &mut [f32],
    ) {
        let Extent { batch, channels, .. } = sources.extent;
        let count = sources.slices.count;
        let [first, second] = cuts(sources, dx);
        let sums = Cut { data: partials, sample: count * 2 * channels, slice: 2 * channels };
        cpu.cut_mut(batch, count, [first, second, sums], &|sample, slice, parts| {
            let [dx, dx2, sums] = parts;
            let rows = &rows[sample * COEFFICIENTS * channels..];
            let dy = slice_of(sources, dy, sample, slice);
            sums.fill(0.0);
            let (sum, product) = sums.split_at_mut(channels);
            for (part, dx) in sources.parts.iter().zip([dx, dx2]) {
                if part.channels == 0 {
                    continue;
                }
                let range = part.at..part.at + part.channels;
                let of = |which: usize| &rows[which * channels + part.at..][..part.channels];
                let rows = [of(0), of(1), of(2), of(3)];
                let sums = (&mut sum[range.clone()], &mut product[range.clone()]);
                let x = sources.rows(part, sample, slice);
                let source = (x, dx, range.start);
                slice_sums(cpu.simd(), dy, source, channels, rows, sums, self.silu);
            }
        });
    }

    /// `dx` from dz (with SiLU in `dx` already, else `dy`).
    fn write_dx(
        &self,
        cpu: &Cpu,
        sources: &Sources,
        dy: &[f32],
        rows: &[f32],
        dx: &mut [TensorMut],
    ) {
        let Extent { batch, channels, .. } = sources.extent;
        let cuts = cuts(sources, dx);
        cpu.cut_mut(batch, sources.slices.count, cuts, &|sample, slice, parts| {
            let rows = &rows[sample * COEFFICIENTS * channels..];
            let dy = slice_of(sources, dy, sample, slice);
            for (part, dx) in sources.parts.iter().zip(parts) {
                if part.channels == 0 {
                    continue;
                }
                let of = |which: usize| &rows[which * channels + part.at..][..part.channels];
                let rows = [of(0), of(1), of(2), of(3)];
                let x = sources.rows(part, sample, slice);
                let dz = (!self.silu).then_some((dy, part.at, channels));
                write_slice(cpu.simd(), dx, x, dz, rows);
            }
        });
    }
}

/// Adds a tensor that has all channels to `dx`.
fn add_residual(cpu: &Cpu, sources: &Sources, residual: &[f32], dx: &mut [TensorMut]) {
    let Extent { batch, channels, .. } = sources.extent;
    let cuts = cuts(sources, dx);
    cpu.cut_mut(batch, sources.slices.count, cuts, &|sample, slice, parts| {
        let residual = slice_of(sources, residual, sample, slice);
        for (part, dx) in sources.parts.iter().zip(parts) {
            if part.channels == 0 {
                continue;
            }
            let rows = dx.chunks_exact_mut(part.channels).zip(residual.chunks_exact(channels));
            for (dx, residual) in rows {
                for (dx, &residual) in dx.iter_mut().zip(&residual[part.at..]) {
                    *dx += residual;
                }
            }
        }
    });
}

/// The pixels of one slice of a tensor that has all channels.
fn slice_of<'a>(sources: &Sources, data: &'a [f32], sample: usize, slice: usize) -> &'a [f32] {
    let Extent { pixels, channels, .. } = sources.extent;
    let range = sources.slices.range(slice);
    &data[(sample * pixels + range.start) * channels..(sample * pixels + range.end) * channels]
}

crate::vectorised! {
    /// Adds to `sums` (Σ dz, Σ dz·x̂) over the pixels of a slice of one source (x, dx, its first
    /// channel in dy).
    fn slice_sums<'a>(
        dy: &'a [f32],
        source: (&'a [f32], &'a mut [f32], usize),
        channels: usize,
        rows: [&'a [f32]; 4],
        sums: (&'a mut [f32], &'a mut [f32]),
        silu: bool,
    ) {
        let (x, dx, at) = source;
        let width = rows[0].len();
        let pixels = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
        let [mean, rstd, gamma, beta] = rows.map(|row| &row[..width]);
        let (sum, product) = (&mut sums.0[..width], &mut sums.1[..width]);
        for ((dx, x), dy) in pixels.zip(dy.chunks_exact(channels)) {
            let dy = &dy[at..at + width];
            let (dx, x) = (&mut dx[..width], &x[..width]);
            if silu {
                for c in 0..width {
                    let normal = (x[c] - mean[c]) * rstd[c];
                    let dz = dy[c] * simd::silu_grad(normal.mul_add(gamma[c], beta[c]));
                    dx[c] = dz;
                    sum[c] += dz;
                    product[c] = dz.mul_add(normal, product[c]);
                }
            } else {
                for c in 0..width {
                    let normal = (x[c] - mean[c]) * rstd[c];
                    sum[c] += dy[c];
                    product[c] = dy[c].mul_add(normal, product[c]);
                }
            }
        }
    }
}

crate::vectorised! {
    /// dx = a·dz + b + c·(x − mean) for a slice of one source. `dz` is (dy, first channel in it,
    /// its channels), or `None` where dx holds dz.
    fn write_slice<'a>(
        dx: &'a mut [f32],
        x: &'a [f32],
        dz: Option<(&'a [f32], usize, usize)>,
        rows: [&'a [f32]; 4],
    ) {
        let width = rows[0].len();
        let [a, b, slope, mean] = rows.map(|row| &row[..width]);
        if let Some((dy, at, channels)) = dz {
            for (dx, dy) in dx.chunks_exact_mut(width).zip(dy.chunks_exact(channels)) {
                dx.copy_from_slice(&dy[at..at + width]);
            }
        }
        for (dx, x) in dx.chunks_exact_mut(width).zip(x.chunks_exact(width)) {
            for c in 0..width {
                dx[c] = a[c].mul_add(dx[c], slope[c].mul_add(x[c] - mean[c], b[c]));
            }
        }
    }
}

/// `totals` `[B, 2, C]`: the sums of all slices of a sample, added in order.
fn add_slices(cpu: &Cpu, partials: &[f32], totals: &mut [f32], channels: usize, count: usize) {
    cpu.chunks_mut(totals, 2 * channels, &|sample, totals| {
        totals.fill(0.0);
        let size = 2 * channels;
        for slice in partials[sample * count * size..][..count * size].chunks_exact(size) {
            for (total, &partial) in totals.iter_mut().zip(slice) {
                *total += partial;
            }
        }
    });
}

/// Turns the rows mean, rstd, gamma, beta of one sample into a, b, c, mean, so that
/// dx = a·dz + b + c·(x − mean).
fn coefficients(rows: &mut [f32], totals: &[f32], extent: Extent, groups: usize) {
    let Extent { pixels, channels, .. } = extent;
    let width = channels / groups;
    let elements = (pixels * width) as f32;
    for group in 0..groups {
        let range = group * width..(group + 1) * width;
        let (mut sum, mut product) = (0.0, 0.0);
        for channel in range.clone() {
            let gamma = rows[2 * channels + channel];
            sum += gamma * totals[channel];
            product += gamma * totals[channels + channel];
        }
        for channel in range {
            let (mean, rstd) = (rows[channel], rows[channels + channel]);
            let gamma = rows[2 * channels + channel];
            rows[channel] = rstd * gamma;
            rows[channels + channel] = -rstd * sum / elements;
            rows[2 * channels + channel] = -rstd * rstd * product / elements;
            rows[3 * channels + channel] = mean;
        }
    }
}

/// Row `which` of `totals`: one a sample, or, where `out` has a single row, their sum in order.
fn sum_samples(totals: &[f32], channels: usize, out: &mut TensorMut, which: usize) {
    out.data.fill(0.0);
    let rows = out.data.len() / channels;
    for (sample, totals) in totals.chunks_exact(2 * channels).enumerate() {
        let out = &mut out.data[sample % rows * channels..][..channels];
        for (out, &total) in out.iter_mut().zip(&totals[which * channels..]) {
            *out += total;
        }
    }
}
