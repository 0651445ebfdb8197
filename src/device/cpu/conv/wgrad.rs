//! The gradient of a convolution's weight: for each kernel element a product over pixels.
//!
//! A task owns some input channels of one kernel element times one panel of output channels and
//! adds over all pixels: along a row in registers, over the rows of a slice in a tile, over slices
//! in order. Slices are samples, or runs of pixels for 1×1 kernels; so the tree of additions
//! depends on the shapes alone.

use super::super::Cpu;
use super::super::simd::Vectorised;
use super::product::{Kernels, Layout, Product};
use super::{Conv, Output, PANEL, SLOTS, Wgrad, panel_vectors, panels, winograd_wgrad, with_slots};

/// Input channels of a task.
const CHANNELS: usize = 48;

/// Pixels of a slice of a 1×1 kernel, and longest chain in registers.
const CHAIN: usize = 256;

/// Elements of working memory for [`wgrad`]: `dy` with its channels padded to a multiple of 16,
/// where they are none, and sums for each thread.
pub fn wgrad_scratch(conv: &Conv) -> usize {
    if winograd_wgrad::suits(conv) {
        return winograd_wgrad::scratch(conv);
    }
    padded(conv) + tasks(conv).min(SLOTS) * 2 * CHANNELS * PANEL
}

fn padded(conv: &Conv) -> usize {
    if conv.c_out.is_multiple_of(16) {
        return 0;
    }
    conv.batch * conv.output[0] * conv.output[1] * conv.c_out.next_multiple_of(16)
}

fn tasks(conv: &Conv) -> usize {
    conv.kernel[0] * conv.kernel[1] * conv.c_in().div_ceil(CHANNELS) * panels(conv.c_out)
}

/// dw\[o, i, ky, kx\] = Σ over samples and output pixels of dy\[b, y, x, o\] · x\[b, y·s + ky − p,
/// x·s + kx − p, i\], for a convolution of one source.
///
/// # Panics
/// When a slice has not the length that `conv` says, or `scratch` is shorter than
/// [`wgrad_scratch`].
pub fn wgrad(cpu: &Cpu, conv: &Conv, args: &Wgrad, dw: &mut [f32], scratch: &mut [f32]) {
    let c_in = conv.c_in();
    let [kh, kw] = conv.kernel;
    let pixels = conv.batch * conv.output[0] * conv.output[1];
    assert_eq!(args.x.len(), conv.batch * conv.input[0] * conv.input[1] * c_in, "length of x");
    assert_eq!(args.dy.len(), pixels * conv.c_out, "length of dy");
    assert_eq!(dw.len(), conv.c_out * c_in * kh * kw, "length of dw");
    assert!(scratch.len() >= wgrad_scratch(conv), "too little working memory");
    if winograd_wgrad::suits(conv) {
        return winograd_wgrad::wgrad(cpu, conv, args, dw, scratch);
    }
    let (wide, sums) = scratch.split_at_mut(padded(conv));
    let pitch = conv.c_out.next_multiple_of(16);
    if !wide.is_empty() {
        cpu.chunks_mut(wide, 64 * pitch, &|chunk, wide| {
            let rows = args.dy[chunk * 64 * conv.c_out..].chunks_exact(conv.c_out);
            for (to, from) in wide.chunks_exact_mut(pitch).zip(rows) {
                to[..conv.c_out].copy_from_slice(from);
                to[conv.c_out..].fill(0.0);
            }
        });
    }
    let dy = if wide.is_empty() { args.dy } else { wide };
    let panels = panels(conv.c_out);
    let chunks = c_in.div_ceil(CHANNELS);
    let dw = Output(dw.as_mut_ptr());
    with_slots(cpu, sums, 2 * CHANNELS * PANEL, tasks(conv), &|sums, task| {
        let (tap, rest) = (task / (chunks * panels), task % (chunks * panels));
        let (chunk, panel) = (rest / panels, rest % panels);
        let tap = [tap / kw, tap % kw];
        let from = chunk * CHANNELS;
        let channels = CHANNELS.min(c_in - from);
        let part = Part { conv, x: args.x, dy, tap, channel: from, channels, panel, pitch };
        let (total, slice) = sums.split_at_mut(CHANNELS * PANEL);
        part.sum(cpu, total, slice);
        let width = 16 * panel_vectors(conv.c_out, panel);
        let columns = (conv.c_out - panel * PANEL).min(width);
        for row in 0..part.channels {
            for column in 0..columns {
                let at = (panel * PANEL + column) * c_in + from + row;
                // SAFETY: inside `dw`, whose length was checked; no other task has this element.
                unsafe {
                    *dw.pointer().add((at * kh + tap[0]) * kw + tap[1]) =
                        total[row * width + column];
                }
            }
        }
    });
}

/// What one task computes.
struct Part<'a> {
    conv: &'a Conv,
    x: &'a [f32],
    dy: &'a [f32],
    tap: [usize; 2],
    channel: usize,
    channels: usize,
    panel: usize,
    /// Elements between pixels of dy.
    pitch: usize,
}

impl Part<'_> {
    fn sum(&self, cpu: &Cpu, total: &mut [f32], slice: &mut [f32]) {
        let conv = self.conv;
        total.fill(0.0);
        let kernels = Kernels::of(cpu.simd());
        let add = |slice: &[f32], total: &mut [f32]| {
            cpu.simd().dispatch(Add { from: slice, to: total });
        };
        if conv.is_pointwise() {
            let pixels = conv.batch * conv.input[0] * conv.input[1];
            for from in (0..pixels).step_by(CHAIN) {
                let run = CHAIN.min(pixels - from);
                self.multiply(kernels, [from, from], run, slice, false);
                add(slice, total);
            }
            return;
        }
        let [height, width] = conv.input;
        let axis = |axis: usize| valid(conv, axis, self.tap[axis]);
        let ((top, bottom), (left, right)) = (axis(0), axis(1));
        if top >= bottom || left >= right {
            return;
        }
        for sample in 0..conv.batch {
            for y in top..bottom {
                let row = y * conv.stride[0] + self.tap[0] - conv.padding[0];
                let column = left * conv.stride[1] + self.tap[1] - conv.padding[1];
                let from = (sample * height + row) * width + column;
                let to = (sample * conv.output[0] + y) * conv.output[1] + left;
                self.multiply(kernels, [from, to], right - left, slice, y > top);
            }
            add(slice, total);
        }
    }

    /// Adds `run` pixels, from pixel `from` of x and pixel `to` of dy on.
    fn multiply(
        &self,
        kernels: &Kernels,
        [from, to]: [usize; 2],
        run: usize,
        slice: &mut [f32],
        accumulate: bool,
    ) {
        let Part { conv, x, dy, .. } = *self;
        let c_in = conv.c_in();
        let vectors = panel_vectors(conv.c_out, self.panel);
        let k_stride = conv.stride[1] * c_in;
        let a = &x[from * c_in + self.channel..];
        let b = &dy[to * self.pitch + self.panel * PANEL..];
        assert!(a.len() >= (run - 1) * k_stride + self.channels, "pixels outside x");
        assert!(b.len() >= (run - 1) * self.pitch + 16 * vectors, "pixels outside dy");
        assert!(slice.len() >= self.channels * 16 * vectors, "too little room for the sums");
        let product = Product {
            a: a.as_ptr(),
            row_stride: 1,
            k_stride,
            segments: 1,
            segment_stride: 0,
            length: run,
            b: b.as_ptr(),
            b_stride: self.pitch,
            c: slice.as_mut_ptr(),
            c_stride: 16 * vectors,
            accumulate,
        };
        // SAFETY: the assertions above bound every element that the product names.
        unsafe { kernels.multiply(Layout::Columns, self.channels, vectors, &product) };
    }
}

/// Output rows (or columns) for which the kernel row `tap` reads inside the input.
fn valid(conv: &Conv, axis: usize, tap: usize) -> (usize, usize) {
    let (stride, padding) = (conv.stride[axis], conv.padding[axis]);
    let from = padding.saturating_sub(tap).div_ceil(stride);
    let to = (conv.input[axis] + padding).saturating_sub(tap).div_ceil(stride);
    (from, to.min(conv.output[axis]))
}

struct Add<'a> {
    from: &'a [f32],
    to: &'a mut [f32],
}

impl Vectorised for Add<'_> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (to, from) in self.to.iter_mut().zip(self.from) {
            *to += from;
        }
    }
}

/// sums\[g, c\] = Σ over the rows of group g of rows\[g, r, c\], for `groups` groups of equally
/// many rows: 256 rows at a time, then those in order.
///
/// # Panics
/// When the lengths don't fit.
pub fn column_sums(cpu: &Cpu, groups: usize, columns: usize, rows: &[f32], sums: &mut [f32]) {
    assert_eq!(sums.len(), groups * columns, "length of the sums");
    assert!(rows.len().is_multiple_of(sums.len().max(1)), "length of the rows");
    if sums.is_empty() {
        return;
    }
    let count = rows.len() / sums.len();
    let blocks = columns.div_ceil(16);
    let out = Output(sums.as_mut_ptr());
    cpu.run(groups * blocks, &|task| {
        let (group, block) = (task / blocks, task % blocks);
        let from = block * 16;
        let width = 16.min(columns - from);
        let rows = &rows[group * count * columns..][..count * columns];
        let total = cpu.simd().dispatch(ColumnSum { rows, columns, from, width });
        for (lane, total) in total[..width].iter().enumerate() {
            // SAFETY: inside `sums`, whose length was checked; each task has its own columns.
            unsafe { *out.pointer().add(group * columns + from + lane) = *total };
        }
    });
}

struct ColumnSum<'a> {
    rows: &'a [f32],
    columns: usize,
    from: usize,
    width: usize,
}

impl Vectorised for ColumnSum<'_> {
    type Output = [f32; 16];
    #[inline(always)]
    fn run(self) -> [f32; 16] {
        let mut total = [0.0f32; 16];
        for run in self.rows.chunks(CHAIN * self.columns) {
            let mut sum = [0.0f32; 16];
            for row in run.chunks_exact(self.columns) {
                let row = &row[self.from..self.from + self.width];
                if let Ok(row) = <&[f32; 16]>::try_from(row) {
                    for lane in 0..16 {
                        sum[lane] += row[lane];
                    }
                } else {
                    for (sum, value) in sum.iter_mut().zip(row) {
                        *sum += value;
                    }
                }
            }
            for lane in 0..16 {
                total[lane] += sum[lane];
            }
        }
        total
    }
}
