//! The neighbourhoods of pixels as channels: what makes a convolution of few channels a product of rows.

mod cpu;
mod launch;

use super::conv2d::piece;
use super::{LaunchArgs, Op, shape};
use crate::device::{DType, KernelWork, TensorType};
use crate::error::{Error, Result};

/// Whether a convolution of so many channels reads less that way: its kernel's taps take the place of the channels
/// that a piece of 16 bytes, of which tensor cores take two, would leave empty.
pub fn are_worth_it(channels: usize, [kh, kw]: [usize; 2]) -> bool {
    channels < piece(DType::F16) && kh * kw > 1 && channels * kh * kw <= MOST
}

/// Most elements of a patch.
const MOST: usize = 128;

/// x \[B, H, W, C\], or two whose channels follow each other, of float32 or float16 → patches \[B, oh, ow, K\] in
/// float16: element (c·kh + ky)·kw + kx at (oy, ox) is x\[oy·s + ky − top, ox·s + kx − left, c\], 0 outside of the
/// image. K is C·kh·kw, rounded up to whole pieces of 16 bytes, with zeros. Of `turned` ones (ky, kx) counts from the
/// kernel's end, as gradients of inputs read neighbours. `graph::fuse` inserts it after differentiation, so it has no
/// gradient; in training an image's patches live until its weight's gradient has read them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patches {
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Of the source at the top and left; what a gradient's padding leaves may be negative.
    pub padding: [isize; 2],
    /// Height and width of the result.
    pub output: [usize; 2],
    pub turned: bool,
}

impl Patches {
    /// Elements of a patch of so many channels.
    pub fn elements(&self, channels: usize) -> usize {
        (channels * self.kernel[0] * self.kernel[1]).next_multiple_of(piece(DType::F16))
    }

    /// The source's row (column, axis 1) that tap `k` reads at place `at` of the result.
    fn source(&self, axis: usize, at: usize, k: usize) -> isize {
        let k = if self.turned { self.kernel[axis] - 1 - k } else { k };
        (at * self.stride[axis] + k) as isize - self.padding[axis]
    }
}

impl Op for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 1..=2)?;
        let (x, last) = (inputs[0], inputs[inputs.len() - 1]);
        let alike = last.dtype == x.dtype && last.shape.get(..3) == x.shape.get(..3);
        let (&[batch, _, _, channels], true) = (&x.shape[..], alike && last.shape.len() == 4)
        else {
            return Err(Error::operation(
                self.name(),
                format!("takes one [B, H, W, C] or two that differ in C, not {inputs:?}"),
            ));
        };
        let channels = channels + inputs.get(1).map_or(0, |second| second.shape[3]);
        let shape = vec![batch, self.output[0], self.output[1], self.elements(channels)];
        Ok(vec![TensorType { shape, dtype: DType::F16 }])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}
