//! Convolutions on the CPU: packed weights, direct and Winograd forms, and their gradients.
//!
//! Everything here is safe to call; slices are checked against the shapes once a call. An output
//! element is computed by one chain of operations that depends on its own sample only, so its bits
//! depend neither on the batch nor on how the work is cut.

mod direct;
mod fill;
mod pack;
mod product;
mod wgrad;

pub use pack::{Pack, pack};
pub use wgrad::{Wgrad, column_sums, wgrad, wgrad_scratch};

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
    pub fn flattened(mut self, source: &Source, epilogue: &Epilogue) -> Conv {
        if self.is_pointwise() {
            let pixels = self.input[0] * self.input[1];
            let shared = |part: &[f32], length| part.len() <= length;
            let alike =
                shared(source.affine, 2 * self.c_in()) && shared(epilogue.shift, self.c_out);
            let (batch, pixels) =
                if alike { (1, self.batch * pixels) } else { (self.batch, pixels) };
            self = Conv { batch, input: [1, pixels], output: [1, pixels], ..self };
        }
        self
    }

    fn check(&self, source: &Source, epilogue: &Epilogue, y: &[f32]) {
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

/// Elements of working memory for [`run`].
pub fn scratch(conv: &Conv, _form: &Pack) -> usize {
    direct::scratch(conv)
}

/// y = the convolution of `source` with a weight packed in `form`, plus the epilogue.
///
/// # Panics
/// When a slice has not the length that `conv` says, or `scratch` is shorter than [`scratch`] says.
#[allow(clippy::too_many_arguments)]
pub fn run(
    cpu: &Cpu,
    conv: &Conv,
    form: &Pack,
    source: &Source,
    weight: &[f32],
    epilogue: &Epilogue,
    y: &mut [f32],
    scratch: &mut [f32],
) {
    conv.check(source, epilogue, y);
    assert_eq!(weight.len(), form.len(), "length of the packed weight");
    direct::run(cpu, conv, source, weight, epilogue, y, scratch);
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

impl Epilogue<'_> {
    /// Adds bias, shift and residual to `count` sums and writes them to channels `column…` of one
    /// output pixel. `pixel` counts through the batch.
    ///
    /// # Safety
    /// `sums` holds `count` values and `y` is an output of `conv`'s shape in which nobody else
    /// touches those channels; the epilogue fits the shape.
    #[inline(always)]
    unsafe fn finish<V: Lanes>(
        &self,
        c_out: usize,
        sample: usize,
        pixel: usize,
        column: usize,
        count: usize,
        sums: *const f32,
        y: *mut f32,
    ) {
        let shift_row = if self.shift.len() == c_out { 0 } else { sample * c_out };
        let at = pixel * c_out + column;
        let mut done = 0;
        // SAFETY: the caller's promise; `done + 16 <= count` bounds the vectors.
        unsafe {
            while done + 16 <= count {
                let mut sum = V::load(sums.add(done));
                if !self.bias.is_empty() {
                    sum = sum.add(V::load(self.bias.as_ptr().add(column + done)));
                }
                if !self.shift.is_empty() {
                    sum = sum.add(V::load(self.shift.as_ptr().add(shift_row + column + done)));
                }
                if !self.residual.is_empty() {
                    sum = sum.add(V::load(self.residual.as_ptr().add(at + done)));
                }
                sum.store(y.add(at + done));
                done += 16;
            }
            while done < count {
                let mut sum = *sums.add(done);
                if !self.bias.is_empty() {
                    sum += self.bias.get_unchecked(column + done);
                }
                if !self.shift.is_empty() {
                    sum += self.shift.get_unchecked(shift_row + column + done);
                }
                if !self.residual.is_empty() {
                    sum += self.residual.get_unchecked(at + done);
                }
                *y.add(at + done) = sum;
                done += 1;
            }
        }
    }
}
