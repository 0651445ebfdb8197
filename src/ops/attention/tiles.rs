//! Products of small tiles, with 16 tokens of one side across the lanes of a vector and tokens of
//! the other side one after another. Every sum runs in one chain in index order, so that blocking
//! doesn't change bits.

use crate::device::cpu::simd::LANES;

/// One value for each of 16 tokens.
pub type Lane = [f32; LANES];

/// Tokens of the other side that are worked on together: 4 KB of scores.
pub const ROWS: usize = 64;

/// Tiles of 16 tokens.
pub fn count(tokens: usize) -> usize {
    tokens.div_ceil(LANES)
}

/// A head's channels of consecutive tokens, in a tensor whose tokens are `stride` elements apart.
#[derive(Clone, Copy)]
pub struct Tokens<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub depth: usize,
}

impl<'a> Tokens<'a> {
    /// `data` starts at the first token; the head's channels start at `channel`.
    #[inline(always)]
    pub fn new(data: &'a [f32], stride: usize, channel: usize, depth: usize) -> Tokens<'a> {
        Tokens { data: &data[channel..], stride, depth }
    }

    /// From token `first` on.
    #[inline(always)]
    pub fn from(self, first: usize) -> Tokens<'a> {
        Tokens { data: &self.data[first * self.stride..], ..self }
    }

    #[inline(always)]
    pub fn row(self, token: usize) -> &'a [f32] {
        &self.data[token * self.stride..][..self.depth]
    }
}

/// lanes\[d\]\[l\] = scale · tokens\[l\]\[d\] for `live` tokens; further lanes repeat the last one.
#[inline(always)]
pub fn load(tokens: Tokens, live: usize, scale: f32, lanes: &mut [Lane]) {
    for lane in 0..LANES {
        let row = tokens.row(lane.min(live - 1));
        for (to, &x) in lanes.iter_mut().zip(row) {
            to[lane] = scale * x;
        }
    }
}

/// Sums that are formed together: with more, the vectoriser gives up on AVX-512 and AVX2 runs out
/// of registers.
const TOGETHER: usize = 4;

/// out\[j\]\[l\] = Σ_d lanes\[d\]\[l\] · rows\[j\]\[d\].
#[inline(always)]
pub fn products(lanes: &[Lane], rows: Tokens, out: &mut [Lane]) {
    let (blocks, rest) = out.as_chunks_mut::<TOGETHER>();
    let done = blocks.len() * TOGETHER;
    for (block, out) in blocks.iter_mut().enumerate() {
        *out = product_block(lanes, rows.from(block * TOGETHER));
    }
    for (index, out) in rest.iter_mut().enumerate() {
        [*out] = product_block(lanes, rows.from(done + index));
    }
}

#[inline(always)]
fn product_block<const J: usize>(lanes: &[Lane], rows: Tokens) -> [Lane; J] {
    let rows: [&[f32]; J] = std::array::from_fn(|j| &rows.row(j)[..lanes.len()]);
    let mut sums = [[0.0; LANES]; J];
    for d in 0..lanes.len() {
        let lane = &lanes[d];
        for j in 0..J {
            let x = rows[j][d];
            for l in 0..LANES {
                sums[j][l] = lane[l].mul_add(x, sums[j][l]);
            }
        }
    }
    sums
}

/// sums\[d\]\[l\] += Σ_j weights\[j\]\[l\] · rows\[j\]\[d\].
#[inline(always)]
pub fn accumulate(weights: &[Lane], rows: Tokens, sums: &mut [Lane]) {
    let (blocks, rest) = sums.as_chunks_mut::<TOGETHER>();
    let done = blocks.len() * TOGETHER;
    for (block, sums) in blocks.iter_mut().enumerate() {
        accumulate_block(weights, rows, block * TOGETHER, sums);
    }
    for (index, sum) in rest.iter_mut().enumerate() {
        accumulate_block(weights, rows, done + index, std::array::from_mut(sum));
    }
}

#[inline(always)]
fn accumulate_block<const D: usize>(
    weights: &[Lane],
    rows: Tokens,
    first: usize,
    sums: &mut [Lane; D],
) {
    let mut local = *sums;
    for (j, weight) in weights.iter().enumerate() {
        let row = &rows.data[j * rows.stride + first..][..D];
        for d in 0..D {
            for l in 0..LANES {
                local[d][l] = weight[l].mul_add(row[d], local[d][l]);
            }
        }
    }
    *sums = local;
}
