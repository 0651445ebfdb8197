//! Mean and variance of groups of channels, in one pass over memory: each slice of pixels, which
//! stays in cache, gets mean and squared deviations of each channel in two passes; groups then merge
//! those of their channels and slices (Chan, Golub & LeVeque 1979, eq. 2.1) in a fixed order.

use crate::device::cpu::{Cpu, Cut, Tensor};
use crate::ops::shape::{Extent, Slices};

/// One activation, or two read as if concatenated along the channels.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    pub parts: [Part<'a>; 2],
    pub extent: Extent,
    pub slices: Slices,
}

/// One source: its data, its channels and the first channel's place in the concatenation.
#[derive(Clone, Copy)]
pub struct Part<'a> {
    pub data: &'a [f32],
    pub channels: usize,
    pub at: usize,
}

impl<'a> Sources<'a> {
    pub fn new(sources: &[Tensor<'a>]) -> Sources<'a> {
        let mut extent = Extent::of(sources[0].shape);
        let first = Part { data: sources[0].data, channels: extent.channels, at: 0 };
        let mut second = Part { data: &[], channels: 0, at: extent.channels };
        if let Some(source) = sources.get(1) {
            second.data = source.data;
            second.channels = Extent::of(source.shape).channels;
        }
        extent.channels += second.channels;
        let slices = Slices::new(extent.pixels, extent.channels);
        Sources { parts: [first, second], extent, slices }
    }

    /// The sources that there are.
    pub fn parts(&self) -> impl Iterator<Item = &Part<'a>> {
        self.parts.iter().filter(|part| part.channels > 0)
    }

    /// The pixels of one slice of a source.
    pub fn rows(&self, part: &Part<'a>, sample: usize, slice: usize) -> &'a [f32] {
        let pixels = self.slices.range(slice);
        let base = sample * self.extent.pixels;
        &part.data[(base + pixels.start) * part.channels..(base + pixels.end) * part.channels]
    }

    /// Elements of the moments of all slices.
    pub fn moments_len(&self) -> usize {
        self.extent.batch * self.slices.count * 2 * self.extent.channels
    }
}

/// Writes `stats` `[B, groups, 2]` (mean, rstd); `moments` is working memory of
/// [`Sources::moments_len`].
pub fn statistics(cpu: &Cpu, sources: &Sources, eps: f32, moments: &mut [f32], stats: &mut [f32]) {
    let Extent { batch, channels, .. } = sources.extent;
    let count = sources.slices.count;
    let cut = Cut { data: &mut *moments, sample: count * 2 * channels, slice: 2 * channels };
    cpu.cut_mut(batch, count, [cut], &|sample, slice, [moments]| {
        let (mean, deviation) = moments.split_at_mut(channels);
        for part in sources.parts() {
            let range = part.at..part.at + part.channels;
            let rows = sources.rows(part, sample, slice);
            channel_moments(cpu.simd(), rows, &mut mean[range.clone()], &mut deviation[range]);
        }
    });
    let moments = &*moments;
    let groups = stats.len() / 2 / batch;
    // Eight groups a task: merging is short.
    cpu.chunks_mut(stats, 2 * 8, &|task, stats| {
        for (index, stats) in stats.chunks_exact_mut(2).enumerate() {
            let (sample, group) = ((8 * task + index) / groups, (8 * task + index) % groups);
            let width = channels / groups;
            let size = count * 2 * channels;
            let moments = &moments[sample * size..][..size];
            let (mean, variance) = merge(sources, moments, group * width..(group + 1) * width);
            stats[0] = mean as f32;
            stats[1] = (1.0 / (variance + f64::from(eps)).sqrt()) as f32;
        }
    });
}

/// Mean and variance of one group from the moments `[slices, 2, C]` of its sample.
fn merge(sources: &Sources, moments: &[f32], group: std::ops::Range<usize>) -> (f64, f64) {
    let Extent { pixels, channels, .. } = sources.extent;
    let elements = (pixels * group.len()) as f64;
    let mut sum = 0.0;
    for (slice, moments) in moments.chunks_exact(2 * channels).enumerate() {
        let pixels = sources.slices.range(slice).len() as f64;
        sum += pixels * moments[group.clone()].iter().map(|&mean| f64::from(mean)).sum::<f64>();
    }
    let mean = sum / elements;
    let mut squares = 0.0;
    for (slice, moments) in moments.chunks_exact(2 * channels).enumerate() {
        let pixels = sources.slices.range(slice).len() as f64;
        let (means, deviations) = moments.split_at(channels);
        for (&slice_mean, &deviation) in means[group.clone()].iter().zip(&deviations[group.clone()])
        {
            let distance = f64::from(slice_mean) - mean;
            squares += f64::from(deviation) + pixels * distance * distance;
        }
    }
    (mean, squares / elements)
}

crate::vectorised! {
    /// Mean and sum of squared deviations of each channel over `rows` `[pixels, channels]`.
    fn channel_moments<'a>(rows: &'a [f32], mean: &'a mut [f32], deviation: &'a mut [f32]) {
        let channels = mean.len();
        let mut at = 0;
        while at + 64 <= channels {
            block_moments::<64, 1>(rows, channels, at, mean, deviation);
            at += 64;
        }
        while at + 32 <= channels {
            block_moments::<32, 2>(rows, channels, at, mean, deviation);
            at += 32;
        }
        while at + 16 <= channels {
            block_moments::<16, 4>(rows, channels, at, mean, deviation);
            at += 16;
        }
        while at < channels {
            block_moments::<1, 4>(rows, channels, at, mean, deviation);
            at += 1;
        }
    }
}

/// [`channel_moments`] of the channels `at..at + W`: sums stay in registers, in `U` chains of every
/// U-th pixel, so that the latency of additions is hidden.
#[inline(always)]
fn block_moments<const W: usize, const U: usize>(
    rows: &[f32],
    channels: usize,
    at: usize,
    mean: &mut [f32],
    deviation: &mut [f32],
) {
    let scale = 1.0 / (rows.len() / channels) as f32;
    let mut means = sum_rows::<W, U>(rows, channels, at, |sums, row| {
        for lane in 0..W {
            sums[lane] += row[lane];
        }
    });
    for mean in &mut means {
        *mean *= scale;
    }
    let squares = sum_rows::<W, U>(rows, channels, at, |sums, row| {
        for lane in 0..W {
            let distance = row[lane] - means[lane];
            sums[lane] = distance.mul_add(distance, sums[lane]);
        }
    });
    mean[at..at + W].copy_from_slice(&means);
    deviation[at..at + W].copy_from_slice(&squares);
}

/// Folds the channels `at..at + W` of all rows into `U` sums and adds those in order.
#[inline(always)]
fn sum_rows<const W: usize, const U: usize>(
    rows: &[f32],
    channels: usize,
    at: usize,
    add: impl Fn(&mut [f32; W], &[f32]),
) -> [f32; W] {
    let mut sums = [[0.0f32; W]; U];
    let blocks = rows.chunks_exact(U * channels);
    let rest = blocks.remainder();
    for block in blocks {
        for (chain, sums) in sums.iter_mut().enumerate() {
            add(sums, &block[chain * channels + at..][..W]);
        }
    }
    for row in rest.chunks_exact(channels) {
        add(&mut sums[0], &row[at..at + W]);
    }
    let mut total = sums[0];
    for sums in &sums[1..] {
        for lane in 0..W {
            total[lane] += sums[lane];
        }
    }
    total
}
