//! Tiles of a Winograd convolution: their numbering, and reading and transforming them.

use super::super::lanes::{LaneWork, Lanes};
use super::fill::{Area, fill16};
use super::{Conv, PANEL, Source, transform};

/// Floats that V of one block should not exceed by much: half of a second-level cache of 1 MB.
const BLOCK_FLOATS: usize = 128 << 10;

/// Weights (in floats) that every thread may read for few tiles.
const SMALL_WEIGHTS: usize = 256 << 10;

/// Tiles, numbered through all samples.
pub(super) type Tiles = std::ops::Range<usize>;

/// Sizes that follow from a convolution's shape.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    /// Outputs of a tile, along one axis: 4 or 2.
    pub size: usize,
    pub frequencies: usize,
    /// Tiles of a sample, down and across.
    pub down: usize,
    pub across: usize,
    pub tiles: usize,
    /// Groups of 16 input channels.
    pub groups: usize,
}

impl Plan {
    pub fn new(conv: &Conv, size: usize) -> Plan {
        let [down, across] = conv.output.map(|length| length.div_ceil(size));
        Plan {
            size,
            frequencies: (size + 2) * (size + 2),
            down,
            across,
            tiles: conv.batch * down * across,
            groups: conv.c_in().div_ceil(16),
        }
    }

    /// Tiles of a block that one thread works on.
    pub fn block(&self) -> usize {
        let fitting = BLOCK_FLOATS / (self.frequencies * self.groups * 16) / 8 * 8;
        fitting.clamp(8, 32).min(self.tiles.next_multiple_of(4))
    }

    /// Tiles of a block if each thread shall work on whole blocks: where there are many of them, or
    /// where the weights (`weights` floats) are small enough to be read by all.
    pub fn block_alone(&self, threads: usize, weights: usize) -> Option<usize> {
        let block = self.block();
        if weights > SMALL_WEIGHTS {
            // Each block streams all weights; with fewer tiles that takes longer than the products.
            let enough = block >= 16 && self.tiles >= 2 * threads * block;
            return enough.then_some(block);
        }
        if threads == 1 || self.tiles >= 4 * threads * block {
            return Some(block);
        }
        let share = self.tiles.div_ceil(2 * threads);
        (share >= 4).then(|| share.next_multiple_of(4).min(block))
    }

    /// Floats between two frequencies of V, and all of it.
    pub fn v_stride(&self, block: usize) -> usize {
        self.groups * block * 16 + 16
    }

    pub fn v_len(&self, block: usize) -> usize {
        self.frequencies * self.v_stride(block)
    }

    /// The same of the products of one panel.
    pub fn m_stride(&self, block: usize) -> usize {
        block * PANEL + 16
    }

    pub fn m_len(&self, block: usize) -> usize {
        self.frequencies * self.m_stride(block)
    }

    /// Floats of the region that the tiles of a block read.
    pub fn region_len(&self, block: usize) -> usize {
        let rows = (block.saturating_sub(1).div_ceil(self.across) + 1).min(self.down);
        (rows * self.size + 2) * (self.across * self.size + 2) * 16
    }
}

/// What is transformed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Tiles of the input, which overlap by 2: Bᵀ d B.
    Input,
    /// Tiles of the output's gradient, which don't: A dY Aᵀ, of F(4×4) only.
    Gradient,
}

/// Reads and transforms 16 channels of some tiles.
///
/// # Safety
/// To be run only with a region of [`Plan::region_len`] and with memory for every tile and
/// frequency behind `to`, which nobody else touches.
pub(super) struct Gather<'a> {
    pub plan: &'a Plan,
    pub conv: &'a Conv,
    pub source: &'a Source<'a>,
    pub kind: Kind,
    pub tiles: Tiles,
    pub group: usize,
    pub region: &'a mut [f32],
    /// Frequency 0 of the first tile.
    pub to: *mut f32,
    /// Floats between two tiles, and between two frequencies.
    pub pitch: usize,
    pub stride: usize,
}

impl LaneWork for Gather<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            match (self.kind, self.plan.size) {
                (Kind::Gradient, _) => self.tiles::<V, 4, 0>(),
                (Kind::Input, 4) => self.tiles::<V, 4, 2>(),
                (Kind::Input, _) => self.tiles::<V, 2, 2>(),
            }
        }
    }
}

impl Gather<'_> {
    #[inline(always)]
    unsafe fn tiles<V: Lanes, const M: usize, const HALO: usize>(self) {
        let Gather { plan, conv, .. } = self;
        let each = plan.down * plan.across;
        let mut tile = self.tiles.start;
        let mut to = self.to;
        while tile < self.tiles.end {
            // A run of tiles of one sample, and the rows and columns of tiles that it touches.
            let (sample, first) = (tile / each, tile % each);
            let count = (self.tiles.end - tile).min(each - first);
            let (top, bottom) = (first / plan.across, (first + count - 1) / plan.across);
            let (left, right) = if top == bottom {
                (first % plan.across, (first + count - 1) % plan.across)
            } else {
                (0, plan.across - 1)
            };
            let pitch = (right - left + 1) * M + HALO;
            let area = Area {
                sample,
                y: (top * M) as isize - conv.padding[0] as isize,
                rows: (bottom - top + 1) * M + HALO,
                x: (left * M) as isize - conv.padding[1] as isize,
                columns: pitch,
                channel: self.group * 16,
                width: 16,
            };
            fill16(conv, self.source, &area, &mut self.region[..area.rows * pitch * 16]);
            for at in first..first + count {
                let (row, column) = (at / plan.across - top, at % plan.across - left);
                // SAFETY: the tile lies in the region just filled; the caller vouches for `to`.
                unsafe {
                    let from = self.region.as_ptr().add((row * M * pitch + column * M) * 16);
                    match (M, HALO) {
                        (_, 0) => transform::gradient::<V>(from, pitch, to, self.stride),
                        (4, _) => transform::input::<V, true>(from, pitch, to, self.stride),
                        _ => transform::input::<V, false>(from, pitch, to, self.stride),
                    }
                    to = to.add(self.pitch);
                }
            }
            tile += count;
        }
    }
}
