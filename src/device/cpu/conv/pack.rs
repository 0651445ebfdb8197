//! Weights in the order in which the products read them.
//!
//! Direct: for each phase `[panel][ky][kx][C_in][width of the panel]`, one phase for a convolution,
//! stride² phases for a transposed one (see [`super::direct`]). Winograd:
//! `[panel][frequency][C_in padded to 16][width of the panel]`.

use super::super::Cpu;
use super::direct::Phase;
use super::{Conv, PANEL, panel_vectors, winograd_pack};

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    Direct,
    /// F(2×2, 3×3): 4 multiplications an output instead of 9.
    Winograd2,
    /// F(4×4, 3×3): 2.25 multiplications an output, weights four times as large.
    Winograd4,
}

impl Algorithm {
    /// What suits the shape of one sample and the weight; the batch has no part in it.
    fn of(conv: &Conv) -> Algorithm {
        let [height, width] = conv.output;
        let reaches = |axis: usize| !conv.transposed || conv.padding[axis] < 3;
        let winograd = conv.kernel == [3, 3]
            && conv.stride == [1, 1]
            && conv.c_in() >= 16
            && height.min(width) > 4
            && reaches(0)
            && reaches(1);
        if !winograd {
            Algorithm::Direct
        } else if height * width <= 64 && conv.c_in() * conv.c_out >= 128 * 128 {
            // Few tiles: the weights are the traffic.
            Algorithm::Winograd2
        } else {
            Algorithm::Winograd4
        }
    }
}

/// Which packed form, of a weight `[out, in, kh, kw]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Pack {
    pub algorithm: Algorithm,
    /// `[out, in, kh, kw]` of the canonical weight.
    pub dims: [usize; 4],
    /// For the transposed convolution: sums run over `out`, and the stride cuts the kernel into
    /// phases.
    pub transposed: bool,
    pub stride: [usize; 2],
}

impl Pack {
    /// The form that suits a convolution with a weight of these dimensions; the batch has no part
    /// in the choice.
    pub fn of(conv: &Conv, dims: [usize; 4]) -> Pack {
        Pack {
            algorithm: Algorithm::of(conv),
            dims,
            transposed: conv.transposed,
            stride: conv.stride,
        }
    }

    /// Channels that the convolution reads and writes.
    pub(super) fn channels(&self) -> (usize, usize) {
        let [out, inner, ..] = self.dims;
        if self.transposed { (out, inner) } else { (inner, out) }
    }

    /// The convolution as far as packing needs it.
    fn conv(&self) -> Conv {
        let (c_in, c_out) = self.channels();
        Conv {
            batch: 1,
            input: [1, 1],
            upsample: false,
            channels: [c_in, 0],
            c_out,
            kernel: [self.dims[2], self.dims[3]],
            stride: self.stride,
            padding: [0, 0],
            output: [1, 1],
            transposed: self.transposed,
        }
    }

    /// Elements of the packed form.
    pub fn len(&self) -> usize {
        let (c_in, c_out) = self.channels();
        let (rows, depth) = match self.algorithm {
            Algorithm::Direct => (self.dims[2] * self.dims[3], c_in),
            Algorithm::Winograd2 => (16, c_in.next_multiple_of(16)),
            Algorithm::Winograd4 => (36, c_in.next_multiple_of(16)),
        };
        rows * depth * c_out.next_multiple_of(16)
    }

    /// Whether there is nothing to pack.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Packs a canonical weight.
///
/// # Panics
/// When a slice has not the length that `form` says.
pub fn pack(cpu: &Cpu, form: &Pack, weight: &[f32], packed: &mut [f32]) {
    let [out, inner, kh, kw] = form.dims;
    assert_eq!(weight.len(), out * inner * kh * kw, "length of the weight");
    assert_eq!(packed.len(), form.len(), "length of the packed weight");
    match form.algorithm {
        Algorithm::Direct => {}
        Algorithm::Winograd2 => return winograd_pack::pack(cpu, form, 2, weight, packed),
        Algorithm::Winograd4 => return winograd_pack::pack(cpu, form, 4, weight, packed),
    }
    let (c_in, c_out) = form.channels();
    let conv = form.conv();
    let mut rest = packed;
    for index in 0..conv.phases() {
        let phase = conv.phase(index);
        let [th, tw] = phase.taps;
        let whole = th * tw * c_in;
        let (this, next) = rest.split_at_mut(whole * c_out.next_multiple_of(16));
        rest = next;
        if this.is_empty() {
            continue;
        }
        cpu.chunks_mut(this, whole * PANEL, &|panel, this| {
            let width = 16 * panel_vectors(c_out, panel);
            let columns = (c_out - panel * PANEL).min(width);
            for (k, row) in this.chunks_exact_mut(width).enumerate() {
                let (tap, channel) = (k / c_in, k % c_in);
                let [ky, kx] = kernel_tap(form, &phase, [tap / tw, tap % tw]);
                for (j, value) in row.iter_mut().enumerate() {
                    let column = panel * PANEL + j;
                    *value = if j >= columns {
                        0.0
                    } else if form.transposed {
                        weight[((channel * inner + column) * kh + ky) * kw + kx]
                    } else {
                        weight[((column * inner + channel) * kh + ky) * kw + kx]
                    };
                }
            }
        });
    }
}

/// The element of the canonical kernel that a tap of a phase reads.
fn kernel_tap(form: &Pack, phase: &Phase, [ty, tx]: [usize; 2]) -> [usize; 2] {
    if !form.transposed {
        return [ty, tx];
    }
    let [th, tw] = phase.taps;
    [
        phase.residue[0] + form.stride[0] * (th - 1 - ty),
        phase.residue[1] + form.stride[1] * (tw - 1 - tx),
    ]
}
