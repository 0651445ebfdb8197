//! Which form of its weights a convolution reads, and how long that is.

use super::Conv;

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
    pub(super) fn conv(&self) -> Conv {
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
