//! The direct form: products over (kernel row, kernel column, channel), with no image of patches.
//!
//! A task reads a rectangle of input pixels into a band `[rows][columns][C_in]`. In it the
//! kernel-width × C_in values that one output pixel needs from one kernel row are contiguous, and
//! neighbouring output pixels stand a fixed stride apart, so the product kernel reads it in place.
//!
//! A transposed convolution of stride s is s² convolutions of stride 1, its *phases*: output pixels
//! with the same remainder modulo s read the same elements of the kernel.

use super::super::Cpu;
use super::super::lanes::{LaneWork, Lanes, run as run_lanes};
use super::super::simd::Vectorised;
use super::fill::{Area, fill};
use super::product::{Kernels, Layout, Product};
use super::{
    Args, Conv, Epilogue, Output, PANEL, Place, SLOTS, Source, panel_vectors, panels, with_slots,
};

/// Output pixels of a task, about.
const PIXELS: usize = 64;

/// Longest chain of additions; longer ones are cut, because rounding errors grow with the length.
const CHAIN: usize = 256;

/// One of the convolutions of stride `step` that a convolution consists of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Phase {
    /// Height and width of the part of the kernel.
    pub taps: [usize; 2],
    /// First kernel row and column (transposed only).
    pub residue: [usize; 2],
    /// Input pixels between neighbouring output pixels of the phase.
    step: [usize; 2],
    /// Input row and column of output pixel 0 at tap 0.
    origin: [isize; 2],
    /// Output pixels of the phase.
    count: [usize; 2],
    /// Where they lie in the output.
    first: [usize; 2],
    spacing: [usize; 2],
}

impl Conv {
    pub(super) fn phases(&self) -> usize {
        if self.transposed { self.stride[0] * self.stride[1] } else { 1 }
    }

    pub(super) fn phase(&self, index: usize) -> Phase {
        if !self.transposed {
            return Phase {
                taps: self.kernel,
                residue: [0, 0],
                step: self.stride,
                origin: self.padding.map(|padding| -(padding as isize)),
                count: self.output,
                first: [0, 0],
                spacing: [1, 1],
            };
        }
        let residue = [index / self.stride[1], index % self.stride[1]];
        let axis = |axis: usize| {
            let (stride, padding) = (self.stride[axis], self.padding[axis]);
            let taps = self.kernel[axis].saturating_sub(residue[axis]).div_ceil(stride);
            // Outputs i with (i + padding) mod stride = residue read input (i + padding − k)/stride
            // for the kernel rows k = residue, residue + stride, …
            let first = (residue[axis] + stride - padding % stride) % stride;
            let origin = ((first + padding - residue[axis]) / stride) as isize + 1 - taps as isize;
            let count = self.output[axis].saturating_sub(first).div_ceil(stride);
            (taps, origin, count, first)
        };
        let (vertical, horizontal) = (axis(0), axis(1));
        Phase {
            taps: [vertical.0, horizontal.0],
            residue,
            step: [1, 1],
            origin: [vertical.1, horizontal.1],
            count: [vertical.2, horizontal.2],
            first: [vertical.3, horizontal.3],
            spacing: self.stride,
        }
    }

    /// Whether bands are the input itself.
    fn in_place(&self, source: &Source) -> bool {
        self.kernel == [1, 1]
            && self.padding == [0, 0]
            && !self.transposed
            && !self.upsample
            && self.channels[1] == 0
            && source.affine.is_empty()
            && !source.silu
            && (self.output[0] - 1) * self.stride[0] < self.input[0]
            && (self.output[1] - 1) * self.stride[1] < self.input[1]
    }
}

impl Phase {
    /// Output rows and columns of a task.
    fn tile(&self) -> [usize; 2] {
        let columns = self.count[1].min(PIXELS);
        let rows = (PIXELS / columns.max(1)).clamp(1, self.count[0].max(1));
        [rows, columns.max(1)]
    }

    fn band(&self, tile: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| (tile[axis] - 1) * self.step[axis] + self.taps[axis])
    }
}

/// Elements of working memory that each thread needs: band and sums.
fn slot(conv: &Conv) -> usize {
    if conv.is_pointwise() {
        // The same before and after `Conv::flattened`.
        return (PIXELS * conv.c_in()).next_multiple_of(16) + PIXELS * PANEL;
    }
    let band = (0..conv.phases())
        .map(|index| {
            let phase = conv.phase(index);
            let [rows, columns] = phase.band(phase.tile());
            rows * columns * conv.c_in()
        })
        .max()
        .unwrap_or(0);
    band.next_multiple_of(16) + PIXELS * PANEL
}

/// Elements of working memory for [`run`].
pub fn scratch(conv: &Conv) -> usize {
    let tasks: usize = (0..conv.phases())
        .map(|index| {
            let phase = conv.phase(index);
            let [rows, columns] = phase.tile();
            conv.batch * phase.count[0].div_ceil(rows) * phase.count[1].div_ceil(columns)
        })
        .sum();
    slot(conv) * (tasks * panels(conv.c_out)).clamp(1, SLOTS)
}

struct Fill<'a> {
    conv: &'a Conv,
    source: &'a Source<'a>,
    area: Area,
    out: &'a mut [f32],
}

impl Vectorised for Fill<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        fill(self.conv, self.source, &self.area, self.out);
    }
}

/// Sums of one panel → output pixels.
struct Finish<'a> {
    epilogue: &'a Epilogue<'a>,
    conv: &'a Conv,
    phase: &'a Phase,
    sample: usize,
    /// First output pixel of the task within the phase, and their numbers.
    at: [usize; 2],
    tile: [usize; 2],
    panel: usize,
    sums: *const f32,
    y: *mut f32,
}

impl LaneWork for Finish<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let c_out = self.conv.c_out;
        let vectors = panel_vectors(c_out, self.panel);
        for row in 0..self.tile[0] {
            for col in 0..self.tile[1] {
                let y = self.phase.first[0] + (self.at[0] + row) * self.phase.spacing[0];
                let x = self.phase.first[1] + (self.at[1] + col) * self.phase.spacing[1];
                let [height, line] = self.conv.output;
                let pixel = (self.sample * height + y) * line + x;
                for vector in 0..vectors {
                    let channel = self.panel * PANEL + 16 * vector;
                    let count = (c_out - channel).min(16);
                    let place = Place { c_out, sample: self.sample, pixel, channel };
                    // SAFETY: the sums of this pixel lie at its place in the tile; the task owns
                    // the pixel's channels of this panel.
                    unsafe {
                        let at = ((row * self.tile[1] + col) * vectors + vector) * 16;
                        let sums = V::load(self.sums.add(at));
                        self.epilogue.finish(&place, count, sums, self.y);
                    }
                }
            }
        }
    }
}

/// y = the convolution of `source` with weights packed by [`super::pack`], plus the epilogue.
///
/// # Panics
/// When a slice has not the length that `conv` says, or `scratch` is shorter than [`scratch`].
pub fn run(cpu: &Cpu, conv: &Conv, args: &Args, y: &mut [f32], scratch: &mut [f32]) {
    let conv = &conv.flattened(args);
    conv.check(args, y);
    let [kh, kw] = conv.kernel;
    let depth = kh * kw * conv.c_in();
    let mut weight = args.weight;
    assert_eq!(weight.len(), depth * conv.c_out.next_multiple_of(16), "length of the weight");
    let y = Output(y.as_mut_ptr());
    for index in 0..conv.phases() {
        let phase = conv.phase(index);
        let length = phase.taps[0] * phase.taps[1] * conv.c_in();
        let (this, rest) = weight.split_at(length * conv.c_out.next_multiple_of(16));
        weight = rest;
        run_phase(cpu, conv, &phase, &Args { weight: this, ..*args }, y, scratch);
    }
}

fn run_phase(cpu: &Cpu, conv: &Conv, phase: &Phase, args: &Args, y: Output, scratch: &mut [f32]) {
    let Args { source, weight, epilogue } = args;
    let c_in = conv.c_in();
    let tile = phase.tile();
    let across = phase.count[1].div_ceil(tile[1]);
    let down = phase.count[0].div_ceil(tile[0]);
    let tiles = conv.batch * down * across;
    // Few tiles: share the panels out as well.
    let panels = panels(conv.c_out);
    let groups = (4 * cpu.threads()).div_ceil(tiles.max(1)).clamp(1, panels.max(1));
    let kernels = Kernels::of(cpu.simd());
    let in_place = conv.in_place(source);
    let each = slot(conv);
    let depth = phase.taps[0] * phase.taps[1] * c_in;
    with_slots(cpu, scratch, each, tiles * groups, &|memory, task| {
        let (index, group) = (task / groups, task % groups);
        let sample = index / (down * across);
        let at = [index / across % down * tile[0], index % across * tile[1]];
        let size = [0, 1].map(|axis| tile[axis].min(phase.count[axis] - at[axis]));
        let band_size = phase.band(size);
        let (band, sums) = memory.split_at_mut(each - PIXELS * PANEL);
        let corner = [0, 1].map(|axis| phase.origin[axis] + (at[axis] * phase.step[axis]) as isize);
        let (start, line) = if in_place {
            let pixel = (sample * conv.input[0] + corner[0] as usize) * conv.input[1];
            (source.x[(pixel + corner[1] as usize) * c_in..].as_ptr(), conv.input[1] * c_in)
        } else {
            let area = Area {
                sample,
                y: corner[0],
                rows: band_size[0],
                x: corner[1],
                columns: band_size[1],
                channel: 0,
                width: c_in,
            };
            let out = &mut band[..band_size[0] * band_size[1] * c_in];
            cpu.simd().dispatch(Fill { conv, source, area, out });
            (band.as_ptr(), band_size[1] * c_in)
        };
        for panel in group * panels / groups..(group + 1) * panels / groups {
            let vectors = panel_vectors(conv.c_out, panel);
            let width = 16 * vectors;
            let b = &weight[panel * PANEL * depth..][..depth * width];
            let rows = phase.step[0] * line;
            let product = Product {
                a: start,
                row_stride: phase.step[1] * c_in,
                k_stride: 1,
                segments: 1,
                segment_stride: line,
                length: 0,
                b: b.as_ptr(),
                b_stride: width,
                c: sums.as_mut_ptr(),
                c_stride: width,
                accumulate: false,
            };
            each_chain(
                phase.taps[0],
                phase.taps[1] * c_in,
                &mut |first, from, segments, length| {
                    for row in 0..size[0] {
                        // SAFETY: the band holds the taps of every output pixel of the tile, the panel
                        // holds `depth` rows, and `sums` has room for PIXELS rows of 32.
                        unsafe {
                            let part = Product {
                                a: start.add(row * rows + first * line + from),
                                segments,
                                length,
                                b: b.as_ptr().add((first * phase.taps[1] * c_in + from) * width),
                                c: product.c.add(row * size[1] * width),
                                accumulate: first + from > 0,
                                ..product
                            };
                            kernels.multiply(Layout::Rows, size[1], vectors, &part);
                        }
                    }
                },
            );
            let finish = Finish {
                epilogue,
                conv,
                phase,
                sample,
                at,
                tile: size,
                panel,
                sums: sums.as_ptr(),
                y: y.pointer(),
            };
            // SAFETY: lengths were checked by `run`; tasks own disjoint pixels and panels.
            unsafe { run_lanes(cpu.simd(), finish) };
        }
    });
}

/// Cuts `rows` kernel rows of `length` values each into chains of about [`CHAIN`] additions:
/// `chain(first row, first value in it, rows, values of each row)`.
fn each_chain(rows: usize, length: usize, chain: &mut dyn FnMut(usize, usize, usize, usize)) {
    if rows * length <= CHAIN {
        return chain(0, 0, rows, length);
    }
    let cuts = length.div_ceil(CHAIN);
    for row in 0..rows {
        for cut in 0..cuts {
            let from = cut * length / cuts;
            chain(row, from, 1, (cut + 1) * length / cuts - from);
        }
    }
}
