//! The gradient of a 3×3 weight of stride 1 in Winograd form, the transpose of F(4×4):
//! dg = Gᵀ[Σ over tiles (Bᵀ d B) ⊙ (A dY Aᵀ)]G, a quarter of the multiplications.
//!
//! A slice of tiles at a time, all threads together: transform the input to
//! V \[frequency\]\[C_in/16\]\[tile\]\[16\] and the output's gradient to D \[frequency\]\[panel\]\[tile\]\[32\],
//! then add the products over the tiles of the slice to P \[frequency\]\[panel\]\[C_in\]\[32\]. The length
//! of a slice depends on the numbers of channels only, so the order of additions is that of the
//! tiles, whatever the threads.

use super::super::Cpu;
use super::super::lanes::{LaneWork, Lanes, run as run_lanes};
use super::product::{Kernels, Layout, Product};
use super::tiles::{Gather, Kind, Plan, Tiles};
use super::{
    Conv, Output, PANEL, SLOTS, Source, Wgrad, panel_vectors, panels, transform, with_slots,
};

/// Parts in which the tiles of a slice are transformed.
const PARTS: usize = 4;

const FREQUENCIES: usize = 36;

/// Whether this form suits a convolution.
pub(super) fn suits(conv: &Conv) -> bool {
    conv.kernel == [3, 3]
        && conv.stride == [1, 1]
        && conv.c_in().min(conv.c_out) >= 16
        && conv.output[0].min(conv.output[1]) > 4
}

/// Sizes of V, D and P.
#[derive(Clone, Copy)]
struct Sizes {
    plan: Plan,
    /// Tiles of a slice.
    slice: usize,
    /// Channels of V and D, padded.
    c_in: usize,
    c_out: usize,
}

impl Sizes {
    fn new(conv: &Conv) -> Sizes {
        let (c_in, c_out) = (conv.c_in().next_multiple_of(16), conv.c_out.next_multiple_of(16));
        // V and D of a slice together: about 4 MB at most.
        let fitting = (1 << 20) / (FREQUENCIES * (c_in + c_out)) / 16 * 16;
        Sizes { plan: Plan::new(conv, 4), slice: fitting.clamp(32, 128), c_in, c_out }
    }

    /// Floats between two frequencies; see [`super::winograd`] for the 16 more.
    fn v_stride(&self) -> usize {
        self.c_in * self.slice + 16
    }

    fn d_stride(&self) -> usize {
        self.c_out * self.slice + 16
    }

    fn p_stride(&self) -> usize {
        self.c_in * self.c_out + 16
    }

    fn region(&self) -> usize {
        self.plan.region_len(self.slice.div_ceil(PARTS))
    }
}

/// Elements of working memory for [`wgrad`].
pub(super) fn scratch(conv: &Conv) -> usize {
    let sizes = Sizes::new(conv);
    let each = sizes.v_stride() + sizes.d_stride() + sizes.p_stride();
    FREQUENCIES * each + SLOTS * sizes.region()
}

/// See [`super::wgrad()`], which checks lengths.
pub(super) fn wgrad(cpu: &Cpu, conv: &Conv, args: &Wgrad, dw: &mut [f32], scratch: &mut [f32]) {
    let sizes = Sizes::new(conv);
    let plan = &sizes.plan;
    let (v, rest) = scratch.split_at_mut(FREQUENCIES * sizes.v_stride());
    let (d, rest) = rest.split_at_mut(FREQUENCIES * sizes.d_stride());
    let (p, regions) = rest.split_at_mut(FREQUENCIES * sizes.p_stride());
    let (v, d) = (Output(v.as_mut_ptr()), Output(d.as_mut_ptr()));
    let input = Source { x: args.x, ..Source::default() };
    let gradient = Source { x: args.dy, ..Source::default() };
    // The output's gradient, read as the input of a convolution.
    let behind = Conv { input: conv.output, channels: [conv.c_out, 0], padding: [0, 0], ..*conv };
    let (groups_in, groups_out) = (sizes.c_in / 16, sizes.c_out / 16);
    for from in (0..plan.tiles).step_by(sizes.slice) {
        let count = sizes.slice.min(plan.tiles - from);
        let transforms = PARTS * (groups_in + groups_out);
        with_slots(cpu, regions, sizes.region(), transforms, &|region, task| {
            let (group, part) = (task / PARTS, task % PARTS);
            let (first, last) = (part * count / PARTS, (part + 1) * count / PARTS);
            let tiles: Tiles = from + first..from + last;
            let gather = if group < groups_in {
                let to = v.pointer().wrapping_add((group * sizes.slice + first) * 16);
                let (pitch, stride) = (16, sizes.v_stride());
                let (source, kind) = (&input, Kind::Input);
                Gather { plan, conv, source, kind, tiles, group, region, to, pitch, stride }
            } else {
                let group = group - groups_in;
                let panel = group * 16 / PANEL;
                let pitch = 16 * panel_vectors(conv.c_out, panel);
                let place = panel * PANEL * sizes.slice + first * pitch + group * 16 % PANEL;
                let to = d.pointer().wrapping_add(place);
                let stride = sizes.d_stride();
                let (source, kind, conv) = (&gradient, Kind::Gradient, &behind);
                Gather { plan, conv, source, kind, tiles, group, region, to, pitch, stride }
            };
            // SAFETY: `Sizes` gave V, D and the regions their lengths; each task has channels and
            // tiles of its own.
            unsafe { run_lanes(cpu.simd(), gather) };
        });
        let kernels = Kernels::of(cpu.simd());
        let sums = Output(p.as_mut_ptr());
        let panels = panels(conv.c_out);
        cpu.run(FREQUENCIES * panels, &|task| {
            let (frequency, panel) = (task / panels, task % panels);
            let vectors = panel_vectors(conv.c_out, panel);
            let width = 16 * vectors;
            for group in 0..groups_in {
                // SAFETY: V and D were filled for `count` tiles, P has room for all channels, and
                // each task has a frequency and a panel of its own.
                unsafe {
                    let at = frequency * sizes.p_stride() + panel * PANEL * sizes.c_in;
                    let product = Product {
                        a: v.pointer().add(frequency * sizes.v_stride() + group * sizes.slice * 16),
                        row_stride: 1,
                        k_stride: 16,
                        segments: 1,
                        segment_stride: 0,
                        length: count,
                        b: d.pointer()
                            .add(frequency * sizes.d_stride() + panel * PANEL * sizes.slice),
                        b_stride: width,
                        c: sums.pointer().add(at + group * 16 * width),
                        c_stride: width,
                        accumulate: from > 0,
                    };
                    kernels.multiply(Layout::Columns, 16, vectors, &product);
                }
            }
        });
    }
    let dw = Output(dw.as_mut_ptr());
    cpu.run(groups_in * groups_out, &|task| {
        let (group, column) = (task / groups_out, task % groups_out * 16);
        // SAFETY: P is complete; each task writes kernels of its own inside `dw`, whose length
        // was checked.
        unsafe { run_lanes(cpu.simd(), Back { conv, sizes: &sizes, p, dw, group, column }) };
    });
}

/// 16×16 kernels: from P to the canonical gradient.
struct Back<'a> {
    conv: &'a Conv,
    sizes: &'a Sizes,
    p: &'a [f32],
    dw: Output,
    group: usize,
    column: usize,
}

impl LaneWork for Back<'_> {
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Conv { c_out, .. } = *self.conv;
        let c_in = self.conv.c_in();
        let panel = self.column / PANEL;
        let width = 16 * panel_vectors(c_out, panel);
        for channel in self.group * 16..c_in.min(self.group * 16 + 16) {
            let at = panel * PANEL * self.sizes.c_in + channel * width + self.column % PANEL;
            let mut taps = [[0.0f32; 16]; 9];
            // SAFETY: P holds the 16 sums of each frequency there; kernels lie inside dw.
            unsafe {
                let kernel = transform::kernel::<V>(self.p[at..].as_ptr(), self.sizes.p_stride());
                for (row, values) in kernel.into_iter().enumerate() {
                    for (column, value) in values.into_iter().enumerate() {
                        value.store(taps[row * 3 + column].as_mut_ptr());
                    }
                }
                for lane in 0..(c_out - self.column).min(16) {
                    let to = self.dw.pointer().add(((self.column + lane) * c_in + channel) * 9);
                    for (tap, values) in taps.iter().enumerate() {
                        *to.add(tap) = values[lane];
                    }
                }
            }
        }
    }
}
