//! Kernel launches of upsampling and pooling.

use super::{Pool2d, UpsampleNearest2d};
use crate::device::kernels::{
    self, Kernel, POOL_FWD_NHWC_F16, POOL_FWD_NHWC_F32, UNSET, UPSAMPLE_FWD_NHWC_F16,
    UPSAMPLE_FWD_NHWC_F32, dimension, of_type,
};
use crate::device::{KernelWork, View};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Resample` of kernels/elementwise.cu.
    struct Params for UPSAMPLE_FWD_NHWC_F32, UPSAMPLE_FWD_NHWC_F16, POOL_FWD_NHWC_F32,
        POOL_FWD_NHWC_F16
    {
        x: u64, y: u64, rows: i64, width: i32, channels: i32, factor: i32, scale: f32,
    }
}

/// `small` is the smaller of the two images.
fn resample(
    name: &str,
    [f32, f16]: [&Kernel; 2],
    args: &LaunchArgs,
    small: &View,
    (factor, scale): (usize, f32),
) -> Result<Vec<KernelWork>> {
    let [b, h, w, c] = small.ty.shape[..] else { unreachable!("inputs are checked") };
    let params = Params {
        x: UNSET,
        y: UNSET,
        rows: (b * h) as i64,
        width: dimension(name, w)?,
        channels: dimension(name, c)?,
        factor: dimension(name, factor)?,
        scale,
    };
    dimension(name, w * factor)?;
    let (x, y) = (&args.inputs[0], &args.outputs[0]);
    let kernel = of_type(&x.ty, f32, f16);
    Ok(vec![kernel.over(y.ty.elements(), &params, &[Some(x)], &[Some(y)])])
}

impl UpsampleNearest2d {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let how = (self.factor, self.scale);
        let kernels = [&UPSAMPLE_FWD_NHWC_F32, &UPSAMPLE_FWD_NHWC_F16];
        resample("upsample_nearest2d", kernels, args, &args.inputs[0], how)
    }
}

impl Pool2d {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let how = (self.factor, self.scale);
        let kernels = [&POOL_FWD_NHWC_F32, &POOL_FWD_NHWC_F16];
        resample("pool2d", kernels, args, &args.outputs[0], how)
    }
}
