//! The gradient of attention on the CPU, in two passes that share no sums: `dq` with 16 queries
//! across the lanes, then `dk` and `dv` with 16 keys across the lanes.

use super::tiles::{Lane, ROWS, Tokens, accumulate, count, load, products};
use super::{AttentionGrad, Sizes};
use crate::device::cpu::simd::{self, LANES};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};

/// Elements that one task needs: four tensors of `[D, 16]` (in the first pass three).
pub fn task_scratch(depth: usize) -> usize {
    4 * depth * LANES
}

impl CpuKernel for AttentionGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [dy, q, k, v, y, lse] = *io.inputs else { unreachable!("six inputs") };
        let sizes = Sizes::of(q.shape, k.shape, self.heads);
        let (channels, heads) = (sizes.channels(), sizes.heads);
        let (of_queries, of_keys) = (sizes.queries * channels, sizes.keys * channels);
        let (delta, scratch) = io.scratch.split_at_mut(sizes.lse().elements());
        let [dq, dk, dv] = io.outputs else { unreachable!("three outputs") };
        let slice = LANES * channels;
        let task = task_scratch(sizes.depth);

        let tiles = count(sizes.queries);
        let cuts = [
            Cut { data: &mut *dq.data, sample: of_queries, slice },
            Cut { data: &mut *delta, sample: sizes.queries * heads, slice: LANES * heads },
            Cut { data: &mut *scratch, sample: tiles * task, slice: task },
        ];
        cpu.cut_mut(sizes.batch, tiles, cuts, &|sample, tile, [dq, delta, scratch]| {
            let first = (sample * sizes.queries + tile * LANES) * channels;
            let keys = sample * of_keys..(sample + 1) * of_keys;
            let inputs = [&q.data[first..], &dy.data[first..], &y.data[first..]];
            let others = [&k.data[keys.clone()], &v.data[keys]];
            let lse = &lse.data[first / channels * heads..];
            query_tile(cpu.simd(), (sizes, self.scale), inputs, others, lse, [dq, delta], scratch);
        });

        let (tiles, delta) = (count(sizes.keys), &*delta);
        let cuts = [
            Cut { data: &mut *dk.data, sample: of_keys, slice },
            Cut { data: &mut *dv.data, sample: of_keys, slice },
            Cut { data: &mut *scratch, sample: tiles * task, slice: task },
        ];
        cpu.cut_mut(sizes.batch, tiles, cuts, &|sample, tile, [dk, dv, scratch]| {
            let first = (sample * sizes.keys + tile * LANES) * channels;
            let queries = sample * of_queries..(sample + 1) * of_queries;
            let inputs = [&k.data[first..], &v.data[first..]];
            let others = [&q.data[queries.clone()], &dy.data[queries]];
            let rows = sample * sizes.queries * heads..(sample + 1) * sizes.queries * heads;
            let stats = [&lse.data[rows.clone()], &delta[rows]];
            key_tile(cpu.simd(), (sizes, self.scale), inputs, others, stats, [dk, dv], scratch);
        });
    }
}

/// Writes the live lanes of `sums` `[D, 16]`, times `scale`, to a head's channels.
#[inline(always)]
fn store(sums: &[Lane], scale: f32, out: &mut [f32], stride: usize, channel: usize) {
    for (lane, row) in out.chunks_exact_mut(stride).enumerate() {
        for (out, sum) in row[channel..].iter_mut().zip(sums) {
            *out = scale * sum[lane];
        }
    }
}

crate::vectorised! {
    /// `dq` and δ of up to 16 queries; `how` has sizes and scale. `inputs` are q, dy, y; `others` are k, v.
    fn query_tile<'a>(
        how: (Sizes, f32),
        inputs: [&'a [f32]; 3],
        others: [&'a [f32]; 2],
        lse: &'a [f32],
        outputs: [&'a mut [f32]; 2],
        scratch: &'a mut [f32],
    ) {
        let (sizes, scale) = how;
        let (stride, depth, heads) = (sizes.channels(), sizes.depth, sizes.heads);
        let [dq, delta] = outputs;
        let live = dq.len() / stride;
        let (lanes, _) = scratch.as_chunks_mut::<LANES>();
        let (queries, lanes) = lanes.split_at_mut(depth);
        let (upstream, lanes) = lanes.split_at_mut(depth);
        let sums = &mut lanes[..depth];
        let mut buffers = [[[0.0; LANES]; ROWS]; 2];
        let [score_buffer, slope_buffer] = &mut buffers;
        for head in 0..heads {
            let [q, dy, y] = inputs.map(|data| Tokens::new(data, stride, head * depth, depth));
            let [k, v] = others.map(|data| Tokens::new(data, stride, head * depth, depth));
            load(q, live, scale, queries);
            load(dy, live, 1.0, upstream);
            let (mut norm, mut dot) = ([0.0; LANES], [0.0; LANES]);
            for lane in 0..live {
                norm[lane] = lse[lane * heads + head];
                dot[lane] = simd::dot(dy.row(lane), y.row(lane));
                delta[lane * heads + head] = dot[lane];
            }
            sums.fill([0.0; LANES]);
            for first in (0..sizes.keys).step_by(ROWS) {
                let count = ROWS.min(sizes.keys - first);
                let (scores, slopes) = (&mut score_buffer[..count], &mut slope_buffer[..count]);
                products(queries, k.from(first), scores);
                products(upstream, v.from(first), slopes);
                for (score, slope) in scores.iter_mut().zip(&*slopes) {
                    for l in 0..LANES {
                        score[l] = simd::exp(score[l] - norm[l]) * (slope[l] - dot[l]);
                    }
                }
                accumulate(scores, k.from(first), sums);
            }
            store(sums, scale, dq, stride, head * depth);
        }
    }
}

crate::vectorised! {
    /// `dk` and `dv` of up to 16 keys; `how` has sizes and scale. `inputs` are k, v; `others` are q, dy; `stats` are lse, δ.
    fn key_tile<'a>(
        how: (Sizes, f32),
        inputs: [&'a [f32]; 2],
        others: [&'a [f32]; 2],
        stats: [&'a [f32]; 2],
        outputs: [&'a mut [f32]; 2],
        scratch: &'a mut [f32],
    ) {
        let (sizes, scale) = how;
        let (stride, depth, heads) = (sizes.channels(), sizes.depth, sizes.heads);
        let [dk, dv] = outputs;
        let live = dk.len() / stride;
        let (lanes, _) = scratch.as_chunks_mut::<LANES>();
        let (keys, lanes) = lanes.split_at_mut(depth);
        let (values, lanes) = lanes.split_at_mut(depth);
        let (key_sums, lanes) = lanes.split_at_mut(depth);
        let value_sums = &mut lanes[..depth];
        let mut buffers = [[[0.0; LANES]; ROWS]; 2];
        let [score_buffer, slope_buffer] = &mut buffers;
        for head in 0..heads {
            let [k, v] = inputs.map(|data| Tokens::new(data, stride, head * depth, depth));
            let [q, dy] = others.map(|data| Tokens::new(data, stride, head * depth, depth));
            load(k, live, scale, keys);
            load(v, live, 1.0, values);
            key_sums.fill([0.0; LANES]);
            value_sums.fill([0.0; LANES]);
            for first in (0..sizes.queries).step_by(ROWS) {
                let count = ROWS.min(sizes.queries - first);
                let (scores, slopes) = (&mut score_buffer[..count], &mut slope_buffer[..count]);
                products(keys, q.from(first), scores);
                products(values, dy.from(first), slopes);
                for (j, (score, slope)) in scores.iter_mut().zip(&mut *slopes).enumerate() {
                    let at = (first + j) * heads + head;
                    let (norm, dot) = (stats[0][at], stats[1][at]);
                    for l in 0..LANES {
                        score[l] = simd::exp(score[l] - norm);
                        slope[l] = score[l] * (slope[l] - dot);
                    }
                }
                accumulate(scores, dy.from(first), value_sums);
                accumulate(slopes, q.from(first), key_sums);
            }
            store(key_sums, scale, dk, stride, head * depth);
            store(value_sums, 1.0, dv, stride, head * depth);
        }
    }
}
