//! Attention on the CPU: 16 queries of one sample a task, across the lanes; per head a softmax over
//! tiles of 64 keys that rescales what it has when the maximum rises.

use super::tiles::{Lane, ROWS, Tokens, accumulate, count, load, products};
use super::{Attention, PackedAttention, Sizes};
use crate::device::cpu::simd::{self, LANES};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::pixel_norm::normalise;

/// Elements that one task needs: queries and sums, `[D, 16]` each.
fn task_scratch(depth: usize) -> usize {
    2 * depth * LANES
}

impl CpuKernel for Attention {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [q, k, v] = io.inputs else { unreachable!("three inputs") };
        let sizes = Sizes::of(q.shape, k.shape, self.heads);
        let [y, lse] = io.outputs else { unreachable!("two outputs") };
        let tokens = [q.data, k.data, v.data];
        let results = [&mut *y.data, &mut *lse.data];
        all(cpu, sizes, self.scale, (tokens, sizes.channels()), results, io.scratch);
    }
}

impl CpuKernel for PackedAttention {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let packed = io.inputs[0];
        let sizes = self.sizes(packed.shape);
        let [y, lse] = io.outputs else { unreachable!("two outputs") };
        let (normed, scratch) = io.scratch.split_at_mut(packed.data.len());
        normalise(cpu, packed.data, normed, sizes.depth);
        let tokens = [0, 1, 2].map(|part| &normed[part * sizes.channels()..]);
        let results = [&mut *y.data, &mut *lse.data];
        all(cpu, sizes, self.scale, (tokens, 3 * sizes.channels()), results, scratch);
    }
}

/// Elements of all tasks.
pub fn scratch(sizes: &Sizes) -> usize {
    sizes.batch * count(sizes.queries) * task_scratch(sizes.depth)
}

/// All samples, of queries, keys and values whose tokens lie so many elements apart.
fn all(
    cpu: &Cpu,
    sizes: Sizes,
    scale: f32,
    ([q, k, v], stride): ([&[f32]; 3], usize),
    [y, lse]: [&mut [f32]; 2],
    scratch: &mut [f32],
) {
    let (channels, tiles) = (sizes.channels(), count(sizes.queries));
    let task = task_scratch(sizes.depth);
    let cuts = [
        Cut { data: y, sample: sizes.queries * channels, slice: LANES * channels },
        Cut { data: lse, sample: sizes.queries * sizes.heads, slice: LANES * sizes.heads },
        Cut { data: scratch, sample: tiles * task, slice: task },
    ];
    cpu.cut_mut(sizes.batch, tiles, cuts, &|sample, tile, [y, lse, scratch]| {
        let q = &q[(sample * sizes.queries + tile * LANES) * stride..];
        let [k, v] = [k, v].map(|data| &data[sample * sizes.keys * stride..]);
        attend(cpu.simd(), sizes, scale, ([q, k, v], stride), y, lse, scratch);
    });
}

crate::vectorised! {
    /// All heads of up to 16 queries of one sample, as many as `y` has rows; of queries, keys and
    /// values whose tokens lie so many elements apart.
    fn attend<'a>(
        sizes: Sizes,
        scale: f32,
        tokens: ([&'a [f32]; 3], usize),
        y: &'a mut [f32],
        lse: &'a mut [f32],
        scratch: &'a mut [f32],
    ) {
        let (inputs, stride) = tokens;
        let (channels, depth) = (sizes.channels(), sizes.depth);
        let live = y.len() / channels;
        let (lanes, _) = scratch.as_chunks_mut::<LANES>();
        let (queries, sums) = lanes.split_at_mut(depth);
        for head in 0..sizes.heads {
            let [q, k, v] = inputs.map(|data| Tokens::new(data, stride, head * depth, depth));
            load(q, live, scale, queries);
            let (maximum, total) = softmax(queries, [k, v], sizes.keys, sums);
            for lane in 0..live {
                let inverse = 1.0 / total[lane];
                let y = &mut y[lane * channels + head * depth..][..depth];
                for (y, sum) in y.iter_mut().zip(&*sums) {
                    *y = sum[lane] * inverse;
                }
                lse[lane * sizes.heads + head] = maximum[lane] + total[lane].ln();
            }
        }
    }
}

/// One head: `sums` = Σ exp(s − maximum)·v. Returns the maximum and Σ exp(s − maximum).
#[inline(always)]
fn softmax(queries: &[Lane], [k, v]: [Tokens; 2], keys: usize, sums: &mut [Lane]) -> (Lane, Lane) {
    let mut buffer = [[0.0; LANES]; ROWS];
    let mut maximum = [f32::NEG_INFINITY; LANES];
    let mut total = [0.0; LANES];
    sums.fill([0.0; LANES]);
    for first in (0..keys).step_by(ROWS) {
        let scores = &mut buffer[..ROWS.min(keys - first)];
        products(queries, k.from(first), scores);
        let mut highest = maximum;
        for score in &*scores {
            for l in 0..LANES {
                highest[l] = if score[l] > highest[l] { score[l] } else { highest[l] };
            }
        }
        if first > 0 {
            let mut shrink = [0.0; LANES];
            for l in 0..LANES {
                shrink[l] = simd::exp(maximum[l] - highest[l]);
                total[l] *= shrink[l];
            }
            for sum in &mut *sums {
                for l in 0..LANES {
                    sum[l] *= shrink[l];
                }
            }
        }
        maximum = highest;
        for score in &mut *scores {
            for l in 0..LANES {
                score[l] = simd::exp(score[l] - maximum[l]);
                total[l] += score[l];
            }
        }
        accumulate(scores, v.from(first), sums);
    }
    (maximum, total)
}
