//! 3×3 convolutions of stride 1 in Winograd form.
//!
//! Tiles of all samples are numbered through and cut into blocks. For a block: read 16 channels of
//! the region (norm, SiLU, concatenation and borders go in here), transform its tiles to
//! V \[frequency\]\[C_in/16\]\[tile\]\[16\]; then, panel by panel of output channels, one product for each
//! frequency with U \[panel\]\[frequency\]\[C_in\]\[32\] and at once the transform back. Frequencies stand
//! 64 bytes further apart than their size: strides that are powers of two would fall into the
//! same cache sets.
//!
//! Many tiles: each thread takes whole blocks. Few tiles: all threads transform one block together,
//! channels shared out, then multiply it together, panels shared out, so that weights, the larger
//! operand then, are read once. The sums are the same either way.

use super::super::Cpu;
use super::super::lanes::{LaneWork, Lanes, run as run_lanes};
use super::product::{Kernels, Layout, Product};
use super::tiles::{Gather, Kind, Plan, Tiles};
use super::{
    Args, Conv, Output, PANEL, Place, SLOTS, panel_vectors, panels, transform, with_slots,
};

/// Longest chain of additions, in groups of 16 channels. With 512 channels in one chain the error
/// would be twice as large; cutting it costs nothing.
const CHAIN: usize = 6;

/// Most tiles that all threads work on together.
const TOGETHER: usize = 64;

/// Elements of working memory for [`run`].
pub(super) fn scratch(conv: &Conv, size: usize) -> usize {
    let plan = Plan::new(conv, size);
    let block = plan.block();
    let alone = plan.v_len(block) + plan.m_len(block).max(plan.region_len(block));
    let blocks = plan.tiles.div_ceil(block).min(SLOTS);
    let block = plan.tiles.min(TOGETHER);
    let slots = plan.groups.max(panels(conv.c_out)).min(SLOTS);
    let together = plan.v_len(block) + slots * plan.m_len(block).max(plan.region_len(block));
    (alone * blocks).max(together)
}

/// y = the convolution of a source with a weight packed for tiles of this size, plus the epilogue.
pub(super) fn run(
    cpu: &Cpu,
    conv: &Conv,
    size: usize,
    args: &Args,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    let plan = Plan::new(conv, size);
    let work = Work { cpu, plan, conv, args, y: Output(y.as_mut_ptr()) };
    let panels = panels(conv.c_out);
    if let Some(block) = plan.block_alone(cpu.threads(), args.weight.len()) {
        let each = plan.v_len(block) + plan.m_len(block).max(plan.region_len(block));
        with_slots(cpu, scratch, each, plan.tiles.div_ceil(block), &|memory, index| {
            let tiles = index * block..((index + 1) * block).min(plan.tiles);
            let (v, rest) = memory.split_at_mut(plan.v_len(block));
            let v = Output(v.as_mut_ptr());
            for group in 0..plan.groups {
                work.gather(tiles.clone(), 0, block, group, v, rest);
            }
            for panel in 0..panels {
                work.multiply(tiles.clone(), 0, block, panel, v, rest);
            }
        });
        return;
    }
    let block = plan.tiles.min(TOGETHER);
    let each = plan.m_len(block).max(plan.region_len(block));
    let (v, rest) = scratch.split_at_mut(plan.v_len(block));
    let v = Output(v.as_mut_ptr());
    for from in (0..plan.tiles).step_by(block) {
        let count = block.min(plan.tiles - from);
        // Where there are too few channels to share out, the tiles are shared out as well.
        let parts = |tasks: usize| (2 * cpu.threads()).div_ceil(tasks).min(count.div_ceil(4));
        let part = |index: usize, parts: usize| {
            (
                from + index * count / parts..from + (index + 1) * count / parts,
                index * count / parts,
            )
        };
        let cuts = parts(plan.groups);
        with_slots(cpu, rest, each, plan.groups * cuts, &|memory, task| {
            let (tiles, place) = part(task % cuts, cuts);
            work.gather(tiles, place, block, task / cuts, v, memory);
        });
        let cuts = parts(panels);
        with_slots(cpu, rest, each, panels * cuts, &|memory, task| {
            let (tiles, place) = part(task % cuts, cuts);
            work.multiply(tiles, place, block, task / cuts, v, memory);
        });
    }
}

/// What all tasks of a call share.
struct Work<'a> {
    cpu: &'a Cpu,
    plan: Plan,
    conv: &'a Conv,
    args: &'a Args<'a>,
    y: Output,
}

impl Work<'_> {
    /// Reads and transforms 16 channels of tiles whose first stands at `place` in V.
    fn gather(
        &self,
        tiles: Tiles,
        place: usize,
        block: usize,
        group: usize,
        v: Output,
        region: &mut [f32],
    ) {
        let Work { plan, conv, args, .. } = self;
        let source = &args.source;
        let to = v.pointer().wrapping_add((group * block + place) * 16);
        let (pitch, stride) = (16, plan.v_stride(block));
        let kind = Kind::Input;
        let gather = Gather { plan, conv, source, kind, tiles, group, region, to, pitch, stride };
        // SAFETY: `Plan` gave V and the region their lengths; no other task writes these channels
        // of V.
        unsafe { run_lanes(self.cpu.simd(), gather) }
    }

    /// Multiplies tiles by one panel of output channels and transforms back.
    fn multiply(
        &self,
        tiles: Tiles,
        place: usize,
        block: usize,
        panel: usize,
        v: Output,
        m: &mut [f32],
    ) {
        let plan = &self.plan;
        let vectors = panel_vectors(self.conv.c_out, panel);
        let width = 16 * vectors;
        let depth = plan.groups * 16;
        let u = &self.args.weight[panel * PANEL * plan.frequencies * depth..]
            [..plan.frequencies * depth * width];
        assert!(m.len() >= plan.m_len(block), "too little working memory");
        let kernels = Kernels::of(self.cpu.simd());
        for frequency in 0..plan.frequencies {
            for group in (0..plan.groups).step_by(CHAIN) {
                // SAFETY: V, U and m have the lengths that `Plan` says, checked above for U and m.
                unsafe {
                    let a = v.pointer().add(frequency * plan.v_stride(block) + place * 16);
                    let b = u.as_ptr().add(frequency * depth * width);
                    let product = Product {
                        a: a.add(group * block * 16),
                        row_stride: 16,
                        k_stride: 1,
                        segments: CHAIN.min(plan.groups - group),
                        segment_stride: block * 16,
                        length: 16,
                        b: b.add(group * 16 * width),
                        b_stride: width,
                        c: m.as_mut_ptr().add(frequency * plan.m_stride(block)),
                        c_stride: width,
                        accumulate: group > 0,
                    };
                    kernels.multiply(Layout::Rows16, tiles.len(), vectors, &product);
                }
            }
        }
        let scatter = Scatter { work: self, tiles, block, panel, m: m.as_ptr() };
        // SAFETY: the products lie where they were just put; no other task writes these channels
        // of these tiles.
        unsafe { run_lanes(self.cpu.simd(), scatter) }
    }
}

struct Scatter<'a> {
    work: &'a Work<'a>,
    tiles: Tiles,
    block: usize,
    panel: usize,
    m: *const f32,
}

impl LaneWork for Scatter<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: the caller's promise.
        unsafe {
            if self.work.plan.size == 4 {
                self.tiles::<V, true>()
            } else {
                self.tiles::<V, false>()
            }
        }
    }
}

impl Scatter<'_> {
    #[inline(always)]
    unsafe fn tiles<V: Lanes, const FOUR: bool>(self) {
        let m = if FOUR { 4 } else { 2 };
        let Work { plan, conv, args, y, .. } = self.work;
        let epilogue = &args.epilogue;
        let each = plan.down * plan.across;
        let [height, width] = conv.output;
        let vectors = panel_vectors(conv.c_out, self.panel);
        for tile in self.tiles.clone() {
            let (sample, at) = (tile / each, tile % each);
            let (top, left) = (at / plan.across * m, at % plan.across * m);
            for vector in 0..vectors {
                let channel = self.panel * PANEL + 16 * vector;
                let count = (conv.c_out - channel).min(16);
                let place = tile - self.tiles.start;
                // SAFETY: the products of this tile lie at its place; pixels outside the image
                // are left out; the task owns these channels of the tile's pixels.
                unsafe {
                    let from = self.m.add((place * vectors + vector) * 16);
                    let sums = transform::output::<V, FOUR>(from, plan.m_stride(self.block));
                    for (i, sums) in sums[..m.min(height - top)].iter().enumerate() {
                        for (j, &sum) in sums[..m.min(width - left)].iter().enumerate() {
                            let pixel = (sample * height + top + i) * width + left + j;
                            let place = Place { c_out: conv.c_out, sample, pixel, channel };
                            epilogue.finish(&place, count, sum, y.pointer());
                        }
                    }
                }
            }
        }
    }
}
