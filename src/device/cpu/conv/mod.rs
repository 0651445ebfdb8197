//! Convolutions on the CPU: packed weights, direct and Winograd forms, and their gradients.
//!
//! Everything here is safe to call; slices are checked against the shapes once a call. An output
//! element is computed by one chain of operations that depends on its own sample only, so its bits
//! depend neither on the batch nor on how the work is cut.

mod direct;
mod fill;
mod form;
mod pack;
mod product;
mod tiles;
mod transform;
mod wgrad;
mod winograd;
mod winograd_pack;
mod winograd_wgrad;

pub use form::{Algorithm, Pack};
pub use pack::pack;
pub use wgrad::{column_sums, wgrad, wgrad_scratch};

use super::Cpu;
use super::lanes::Lanes;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Output channels that are computed together; the last panel has 16 where 16 suffice.
pub(crate) const PANEL: usize = 32;

/// Threads that one convolution can keep busy with working memory of their own.
const SLOTS: usize = 16;

/// The shape of one convolution, or of the transposed one that gives its input's gradient.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub batch: usize,
    /// Height and width as stored, before the upsampling in the index.
    pub input: [usize; 2],
    /// Read each input pixel as 2×2 pixels.
    pub upsample: bool,
    /// Channels of the two sources.
    pub channels: [usize; 2],
    pub c_out: usize,
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Zeros above and to the left.
    pub padding: [usize; 2],
    pub output: [usize; 2],
    /// Scatter instead of gather: the input is what a convolution with this kernel, stride and
    /// padding put out, the output has the size of what it read.
    pub transposed: bool,
}

/// What a convolution reads: x \[B, H, W, C₁\], optionally x₂ \[B, H, W, C₂\] behind it along the
/// channels, then optionally silu(scale·x + shift). Borders stay zero. Absent parts are empty.
#[derive(Clone, Copy, Default)]
pub struct Source<'a> {
    pub x: &'a [f32],
    pub x2: &'a [f32],
    /// \[B or 1, 2, C₁ + C₂\]: scale and shift of each channel.
    pub affine: &'a [f32],
    pub silu: bool,
}

/// What is added to the sums. Absent parts are empty.
#[derive(Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// \[C_out\]
    pub bias: &'a [f32],
    /// \[B or 1, C_out\]
    pub shift: &'a [f32],
    /// \[B, H_out, W_out, C_out\]
    pub residual: &'a [f32],
}

/// What [`run`] reads.
#[derive(Clone, Copy)]
pub struct Args<'a> {
    pub source: Source<'a>,
    /// Packed, as its [`Pack`] says.
    pub weight: &'a [f32],
    pub epilogue: Epilogue<'a>,
}

/// What [`wgrad()`] reads.
#[derive(Clone, Copy)]
pub struct Wgrad<'a> {
    /// \[B, H, W, C_in\]
    pub x: &'a [f32],
    /// \[B, H_out, W_out, C_out\]
    pub dy: &'a [f32],
}

impl Conv {
    pub fn c_in(&self) -> usize {
        self.channels[0] + self.channels[1]
    }

    /// Whether each output pixel depends on the input pixel at the same place only.
    fn is_pointwise(&self) -> bool {
        self.kernel == [1, 1]
            && self.stride == [1, 1]
            && self.padding == [0, 0]
            && !self.upsample
            && self.input == self.output
    }

    /// A 1×1 convolution of stride 1 as one row of pixels a sample, or, where nothing belongs to
    /// single samples, as one row of pixels.
    fn flattened(self, Args { source, epilogue, .. }: &Args) -> Conv {
        let shared = |part: &[f32], length| part.len() <= length;
        let alike = shared(source.affine, 2 * self.c_in()) && shared(epilogue.shift, self.c_out);
        self.in_rows(alike).unwrap_or(self)
    }

    /// A 1×1 convolution of stride 1 as one row of all pixels where samples are `alike`, else as one a sample; `None`
    /// for others.
    pub fn in_rows(self, alike: bool) -> Option<Conv> {
        let rows = if alike { 1 } else { self.batch };
        let pixels = self.batch * self.input[0] * self.input[1] / rows;
        let row = Conv { batch: rows, input: [1, pixels], output: [1, pixels], ..self };
        self.is_pointwise().then_some(row)
    }

    /// A transposed convolution of stride 1 as the convolution with the turned kernel. Its padding
    /// is what the kernel leaves; a larger one has no such form.
    fn untransposed(mut self) -> Conv {
        if self.transposed {
            let padding = [0, 1].map(|axis| self.kernel[axis] - 1 - self.padding[axis]);
            self = Conv { padding, transposed: false, ..self };
        }
        self
    }

    fn check(&self, Args { source, epilogue, .. }: &Args, y: &[f32]) {
        let pixels = self.batch * self.input[0] * self.input[1];
        let outputs = self.batch * self.output[0] * self.output[1] * self.c_out;
        let either = |length: usize, unit: usize| {
            length == 0 || length == unit || length == unit * self.batch
        };
        assert_eq!(source.x.len(), pixels * self.channels[0], "length of x");
        assert_eq!(source.x2.len(), pixels * self.channels[1], "length of x2");
        assert!(either(source.affine.len(), 2 * self.c_in()), "length of the affine");
        assert!(either(epilogue.shift.len(), self.c_out), "length of the shift");
        assert!([0, self.c_out].contains(&epilogue.bias.len()), "length of the bias");
        assert!([0, outputs].contains(&epilogue.residual.len()), "length of the residual");
        assert_eq!(y.len(), outputs, "length of y");
    }
}

/// What the taps of a convolution see of its source, written out: \[B, H, W, C₁ + C₂\], H and W after the
/// upsampling.
///
/// # Panics
/// When a slice is shorter than `conv` says.
pub fn write_source(cpu: &Cpu, conv: &Conv, source: &Source, z: &mut [f32]) {
    let [height, width] = conv.input.map(|size| size << usize::from(conv.upsample));
    let channels = conv.c_in();
    cpu.chunks_mut(z, width * channels, &|row, z| {
        let (sample, y) = (row / height, (row % height) as isize);
        let area =
            fill::Area { sample, y, rows: 1, x: 0, columns: width, channel: 0, width: channels };
        write_area(cpu.simd(), conv, source, &area, z);
    });
}

crate::vectorised! {
    fn write_area<'a>(conv: &'a Conv, source: &'a Source<'a>, area: &'a fill::Area, z: &'a mut [f32]) {
        fill::fill(conv, source, area, z);
    }
}

/// Elements of working memory for [`run`].
pub fn scratch(conv: &Conv, form: &Pack) -> usize {
    match form.algorithm {
        Algorithm::Direct => direct::scratch(conv),
        Algorithm::Winograd4 => winograd::scratch(&conv.untransposed(), 4),
        Algorithm::Winograd2 => winograd::scratch(&conv.untransposed(), 2),
    }
}

/// y = the convolution of a source with a weight packed in `form`, plus the epilogue.
///
/// # Panics
/// When a slice has not the length that `conv` says, or `scratch` is shorter than [`scratch`] says.
pub fn run(cpu: &Cpu, conv: &Conv, form: &Pack, args: &Args, y: &mut [f32], scratch: &mut [f32]) {
    conv.check(args, y);
    assert_eq!(args.weight.len(), form.len(), "length of the packed weight");
    let size = match form.algorithm {
        Algorithm::Direct => return direct::run(cpu, conv, args, y, scratch),
        Algorithm::Winograd4 => 4,
        Algorithm::Winograd2 => 2,
    };
    winograd::run(cpu, &conv.untransposed(), size, args, y, scratch);
}

/// Panels of an output with `c_out` channels.
fn panels(c_out: usize) -> usize {
    c_out.div_ceil(PANEL)
}

/// Vectors of 16 columns in a panel: 2, or 1 where the last panel needs no more.
fn panel_vectors(c_out: usize, panel: usize) -> usize {
    (c_out - panel * PANEL).div_ceil(16).min(2)
}

/// Runs `task(working memory, item)` for every item, each thread with `each` elements of its own.
fn with_slots(
    cpu: &Cpu,
    scratch: &mut [f32],
    each: usize,
    items: usize,
    task: &(dyn Fn(&mut [f32], usize) + Sync),
) {
    let slots = (scratch.len() / each).min(items);
    assert!(slots > 0 || items == 0, "no working memory");
    let next = AtomicUsize::new(0);
    cpu.chunks_mut(&mut scratch[..slots * each], each, &|_, slot| {
        loop {
            let item = next.fetch_add(1, Ordering::Relaxed);
            if item >= items {
                return;
            }
            task(slot, item);
        }
    });
}

/// An output that tasks write at disjoint places.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: every task writes elements that no other task touches.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

impl Output {
    /// The pointer; a method, so that closures capture the whole struct.
    fn pointer(&self) -> *mut f32 {
        self.0
    }
}

/// Channels of an output pixel that a task writes.
struct Place {
    c_out: usize,
    sample: usize,
    /// Counts through the batch.
    pixel: usize,
    channel: usize,
}

impl Epilogue<'_> {
    /// Adds bias, shift and residual to the first `count` (at most 16) of the sums of one output
    /// pixel and writes them.
    ///
    /// # Safety
    /// The epilogue fits the output `y`, whose channels at `place` exist and are touched by nobody
    /// else.
    #[inline(always)]
    unsafe fn finish<V: Lanes>(&self, place: &Place, count: usize, mut sum: V, y: *mut f32) {
        let &Place { c_out, sample, pixel, channel } = place;
        let shift = if self.shift.len() == c_out { channel } else { sample * c_out + channel };
        let at = pixel * c_out + channel;
        // SAFETY: the caller's promise bounds the first `count` values of each operand.
        unsafe {
            if count == 16 {
                if !self.bias.is_empty() {
                    sum = sum.add(V::load(self.bias.as_ptr().add(channel)));
                }
                if !self.shift.is_empty() {
                    sum = sum.add(V::load(self.shift.as_ptr().add(shift)));
                }
                if !self.residual.is_empty() {
                    sum = sum.add(V::load(self.residual.as_ptr().add(at)));
                }
                return sum.store(y.add(at));
            }
            let mut sums = [0.0f32; 16];
            sum.store(sums.as_mut_ptr());
            for (lane, &sum) in sums[..count].iter().enumerate() {
                let mut sum = sum;
                if !self.bias.is_empty() {
                    sum += self.bias.get_unchecked(channel + lane);
                }
                if !self.shift.is_empty() {
                    sum += self.shift.get_unchecked(shift + lane);
                }
                if !self.residual.is_empty() {
                    sum += self.residual.get_unchecked(at + lane);
                }
                *y.add(at + lane) = sum;
            }
        }
    }
}
