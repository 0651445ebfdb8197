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
use super::fill::{Area, fill16};
use super::pack::Pack;
use super::product::{Kernels, Layout, Product};
use super::{
    Conv, Epilogue, Output, PANEL, Place, SLOTS, Source, panel_vectors, panels, transform,
    with_slots,
};

/// Floats that V of one block should not exceed by much: half of a second-level cache of 1 MB.
const BLOCK_FLOATS: usize = 128 << 10;

/// Most tiles that all threads work on together.
const TOGETHER: usize = 64;

/// Sizes that follow from a convolution's shape.
#[derive(Clone, Copy)]
struct Plan {
    /// Outputs of a tile, along one axis: 4 or 2.
    size: usize,
    frequencies: usize,
    /// Tiles of a sample, down and across.
    down: usize,
    across: usize,
    tiles: usize,
    /// Groups of 16 input channels.
    groups: usize,
}

impl Plan {
    fn new(conv: &Conv, size: usize) -> Plan {
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
    fn block(&self) -> usize {
        let fitting = BLOCK_FLOATS / (self.frequencies * self.groups * 16) / 8 * 8;
        fitting.clamp(8, 32).min(self.tiles.next_multiple_of(4))
    }

    /// Floats between two frequencies of V, and all of it.
    fn v_stride(&self, block: usize) -> usize {
        self.groups * block * 16 + 16
    }

    fn v_len(&self, block: usize) -> usize {
        self.frequencies * self.v_stride(block)
    }

    /// The same of the products of one panel.
    fn m_stride(&self, block: usize) -> usize {
        block * PANEL + 16
    }

    fn m_len(&self, block: usize) -> usize {
        self.frequencies * self.m_stride(block)
    }

    /// Floats of the region that the tiles of a block read.
    fn region_len(&self, block: usize) -> usize {
        let rows = (block.saturating_sub(1).div_ceil(self.across) + 1).min(self.down);
        (rows * self.size + 2) * (self.across * self.size + 2) * 16
    }
}

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

/// y = the convolution of `source` with a weight packed in `form`, plus the epilogue.
#[allow(clippy::too_many_arguments)]
pub(super) fn run(
    cpu: &Cpu,
    conv: &Conv,
    size: usize,
    source: &Source,
    weight: &[f32],
    epilogue: &Epilogue,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    let plan = Plan::new(conv, size);
    let work = Work { cpu, plan, conv, source, weight, epilogue, y: Output(y.as_mut_ptr()) };
    let block = plan.block();
    let blocks = plan.tiles.div_ceil(block);
    let panels = panels(conv.c_out);
    if cpu.threads() == 1 || blocks >= 4 * cpu.threads() {
        let each = plan.v_len(block) + plan.m_len(block).max(plan.region_len(block));
        with_slots(cpu, scratch, each, blocks, &|memory, index| {
            let tiles = index * block..((index + 1) * block).min(plan.tiles);
            let (v, rest) = memory.split_at_mut(plan.v_len(block));
            let v = Output(v.as_mut_ptr());
            for group in 0..plan.groups {
                work.gather(tiles.clone(), block, group, v, rest);
            }
            for panel in 0..panels {
                work.multiply(tiles.clone(), block, panel, v, rest);
            }
        });
        return;
    }
    let block = plan.tiles.min(TOGETHER);
    let each = plan.m_len(block).max(plan.region_len(block));
    let (v, rest) = scratch.split_at_mut(plan.v_len(block));
    let v = Output(v.as_mut_ptr());
    for from in (0..plan.tiles).step_by(block) {
        let tiles = from..(from + block).min(plan.tiles);
        with_slots(cpu, rest, each, plan.groups, &|memory, group| {
            work.gather(tiles.clone(), block, group, v, memory);
        });
        with_slots(cpu, rest, each, panels, &|memory, panel| {
            work.multiply(tiles.clone(), block, panel, v, memory);
        });
    }
}

/// What all tasks of a call share.
struct Work<'a> {
    cpu: &'a Cpu,
    plan: Plan,
    conv: &'a Conv,
    source: &'a Source<'a>,
    weight: &'a [f32],
    epilogue: &'a Epilogue<'a>,
    y: Output,
}

type Tiles = std::ops::Range<usize>;

impl Work<'_> {
    /// Reads and transforms 16 channels of a block of tiles.
    fn gather(&self, tiles: Tiles, block: usize, group: usize, v: Output, region: &mut [f32]) {
        let gather = Gather { work: self, tiles, block, group, v, region };
        // SAFETY: `Plan` gave V and the region their lengths; no other task writes these channels
        // of V.
        unsafe { run_lanes(self.cpu.simd(), gather) }
    }

    /// Multiplies a block by one panel of output channels and transforms back.
    fn multiply(&self, tiles: Tiles, block: usize, panel: usize, v: Output, m: &mut [f32]) {
        let plan = &self.plan;
        let vectors = panel_vectors(self.conv.c_out, panel);
        let width = 16 * vectors;
        let depth = plan.groups * 16;
        let u = &self.weight[panel * PANEL * plan.frequencies * depth..]
            [..plan.frequencies * depth * width];
        assert!(m.len() >= plan.m_len(block), "too little working memory");
        let kernels = Kernels::of(self.cpu.simd());
        for frequency in 0..plan.frequencies {
            // SAFETY: V, U and m have the lengths that `Plan` says, checked above for U and m.
            unsafe {
                let product = Product {
                    a: v.pointer().add(frequency * plan.v_stride(block)),
                    row_stride: 16,
                    k_stride: 1,
                    segments: plan.groups,
                    segment_stride: block * 16,
                    length: 16,
                    b: u.as_ptr().add(frequency * depth * width),
                    b_stride: width,
                    c: m.as_mut_ptr().add(frequency * plan.m_stride(block)),
                    c_stride: width,
                    accumulate: false,
                };
                kernels.multiply(Layout::Rows16, tiles.len(), vectors, &product);
            }
        }
        let scatter = Scatter { work: self, tiles, block, panel, m: m.as_ptr() };
        // SAFETY: the products lie where they were just put; no other task writes these channels
        // of these tiles.
        unsafe { run_lanes(self.cpu.simd(), scatter) }
    }
}

struct Gather<'a> {
    work: &'a Work<'a>,
    tiles: Tiles,
    block: usize,
    group: usize,
    v: Output,
    region: &'a mut [f32],
}

impl LaneWork for Gather<'_> {
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

impl Gather<'_> {
    #[inline(always)]
    unsafe fn tiles<V: Lanes, const FOUR: bool>(self) {
        let m = if FOUR { 4 } else { 2 };
        let Work { plan, conv, source, .. } = self.work;
        let each = plan.down * plan.across;
        let mut tile = self.tiles.start;
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
            let pitch = (right - left + 1) * m + 2;
            let area = Area {
                sample,
                y: (top * m) as isize - conv.padding[0] as isize,
                rows: (bottom - top + 1) * m + 2,
                x: (left * m) as isize - conv.padding[1] as isize,
                columns: pitch,
                channel: self.group * 16,
                width: 16,
            };
            fill16(conv, source, &area, &mut self.region[..area.rows * pitch * 16]);
            for at in first..first + count {
                let (row, column) = (at / plan.across - top, at % plan.across - left);
                let place = tile + at - first - self.tiles.start;
                // SAFETY: the tile lies in the region just filled; V has a place for each tile of
                // the block, group and frequency.
                unsafe {
                    let from = self.region.as_ptr().add((row * m * pitch + column * m) * 16);
                    let to = self.v.pointer().add((self.group * self.block + place) * 16);
                    transform::input::<V, FOUR>(from, pitch, to, plan.v_stride(self.block));
                }
            }
            tile += count;
        }
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
        let Work { plan, conv, epilogue, y, .. } = self.work;
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

/// Packs a canonical weight as U.
pub(super) fn pack(cpu: &Cpu, form: &Pack, size: usize, weight: &[f32], packed: &mut [f32]) {
    let (c_in, c_out) = form.channels();
    let groups = c_in.div_ceil(16);
    let out = Output(packed.as_mut_ptr());
    cpu.run(groups * panels(c_out), &|task| {
        let (panel, group) = (task / groups, task % groups);
        let work = PackWork { form, size, weight, out, panel, group };
        // SAFETY: `packed` has the length that the form says, and each task its own part.
        unsafe { run_lanes(cpu.simd(), work) }
    });
}

struct PackWork<'a> {
    form: &'a Pack,
    size: usize,
    weight: &'a [f32],
    out: Output,
    panel: usize,
    group: usize,
}

impl LaneWork for PackWork<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (c_in, c_out) = self.form.channels();
        let inner = self.form.dims[1];
        let depth = c_in.next_multiple_of(16);
        let frequencies = (self.size + 2) * (self.size + 2);
        let vectors = panel_vectors(c_out, self.panel);
        let start = self.panel * PANEL * frequencies * depth;
        for k in self.group * 16..(self.group + 1) * 16 {
            for vector in 0..vectors {
                let column = self.panel * PANEL + 16 * vector;
                let mut taps = [[0.0f32; 16]; 9];
                if k < c_in {
                    for lane in 0..(c_out - column).min(16) {
                        let at = if self.form.transposed {
                            k * inner + column + lane
                        } else {
                            (column + lane) * inner + k
                        };
                        let kernel = &self.weight[at * 9..at * 9 + 9];
                        for (tap, &value) in kernel.iter().enumerate() {
                            // The transposed convolution turns the kernel by half a turn.
                            taps[if self.form.transposed { 8 - tap } else { tap }][lane] = value;
                        }
                    }
                }
                // SAFETY: row k of each frequency of this panel lies inside the packed weight.
                unsafe {
                    let width = 16 * vectors;
                    let to = self.out.pointer().add(start + k * width + 16 * vector);
                    let from = taps.as_ptr().cast::<f32>();
                    if self.size == 4 {
                        transform::weight::<V, true>(from, to, depth * width);
                    } else {
                        transform::weight::<V, false>(from, to, depth * width);
                    }
                }
            }
        }
    }
}
