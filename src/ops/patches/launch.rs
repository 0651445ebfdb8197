//! Launches of kernels/patches.cu.

use super::Patches;
use crate::device::kernels::{
    self, PATCHES_FWD_NHWC_F16, PATCHES_FWD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::device::{DType, KernelWork};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::conv2d::piece;

/// Most pixels that a thread makes its piece of, one after another.
const MOST_ROUNDS: usize = 4;

kernels::params! {
    /// `Patches` of kernels/patches.cu.
    struct Params for PATCHES_FWD_NHWC_F32, PATCHES_FWD_NHWC_F16 {
        x: [u64; 2], y: u64,
        pixels: i32, height: i32, width: i32, c1: i32, c2: i32, out_height: i32, out_width: i32,
        pieces: i32, each: i32, rounds: i32, kh: i32, kw: i32,
        stride_h: i32, stride_w: i32, top: i32, left: i32, turned: i32, unused: i32,
    }
}

impl Patches {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (x, x2, y) = (&args.inputs[0], args.inputs.get(1), &args.outputs[0]);
        let [_, height, width, channels] = x.ty.shape[..] else {
            unreachable!("inputs are checked")
        };
        let int = |size| dimension("patches", size);
        let kernel = of_type(&x.ty, &PATCHES_FWD_NHWC_F32, &PATCHES_FWD_NHWC_F16);
        let pieces = y.ty.shape[3] / piece(DType::F16);
        let pixels = y.ty.elements() / y.ty.shape[3];
        // Pixels of a block at a time; several times where there are enough for all multiprocessors.
        let each = kernel.threads as usize / pieces;
        let blocks = pixels.div_ceil(each);
        let rounds = (blocks / (4 * args.target.multiprocessors as usize)).clamp(1, MOST_ROUNDS);
        // The kernel counts rows and columns of the source in 32 bits.
        for axis in 0..2 {
            int(self.output[axis] * self.stride[axis] + self.kernel[axis])?;
        }
        let [top, left] = self.padding.map(|zeros| zeros as i32);
        let params = Params {
            x: [UNSET; 2],
            y: UNSET,
            pixels: int(pixels)?,
            height: int(height)?,
            width: int(width)?,
            c1: int(channels)?,
            c2: int(x2.map_or(0, |second| second.ty.shape[3]))?,
            out_height: int(self.output[0])?,
            out_width: int(self.output[1])?,
            pieces: int(pieces)?,
            each: int(each)?,
            rounds: int(rounds)?,
            kh: int(self.kernel[0])?,
            kw: int(self.kernel[1])?,
            stride_h: int(self.stride[0])?,
            stride_w: int(self.stride[1])?,
            top,
            left,
            turned: i32::from(self.turned),
            unused: 0,
        };
        let grid = [int(blocks.div_ceil(rounds))? as u32, 1, 1];
        let block = [kernel.threads, 1, 1];
        Ok(vec![kernel.launch(grid, block, 0, &params, &[Some(x), x2], &[Some(y)])])
    }
}
