//! Kernel launches of `sum_pixels`; kernels/sum_pixels.cu says how work is split.

use super::{Rows, SumPixels};
use crate::device::kernels::{
    self, SUM_PIXELS_FWD_NHWC_F16, SUM_PIXELS_FWD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::device::{KernelWork, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `SumPixels`.
    struct Params for SUM_PIXELS_FWD_NHWC_F32, SUM_PIXELS_FWD_NHWC_F16 {
        x: u64, y: u64, batch: i32, pixels: i32, channels: i32, all_samples: i32,
    }
}

/// Sums `x` over pixels into `y`, and over samples too if `all_samples`.
fn sum_pixels(x: &View, y: &View, all_samples: bool) -> Result<KernelWork> {
    let Extent { batch, pixels, channels } = Extent::of(&x.ty.shape);
    let int = |size| dimension("sum_pixels", size);
    let params = Params {
        x: UNSET,
        y: UNSET,
        batch: int(batch)?,
        pixels: int(pixels)?,
        channels: int(channels)?,
        all_samples: i32::from(all_samples),
    };
    let samples = if all_samples { 1 } else { batch };
    if samples > 65_535 {
        return Err(Error::operation("sum_pixels", "more than 65,535 samples in a batch"));
    }
    let grid = [channels.div_ceil(32) as u32, samples as u32, 1];
    let kernel = of_type(&x.ty, &SUM_PIXELS_FWD_NHWC_F32, &SUM_PIXELS_FWD_NHWC_F16);
    Ok(kernel.launch(grid, [256, 1, 1], 0, &params, &[Some(x)], &[Some(y)]))
}

impl SumPixels {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let all_samples = self.rows != Rows::Samples;
        Ok(vec![sum_pixels(&args.inputs[0], &args.outputs[0], all_samples)?])
    }
}
