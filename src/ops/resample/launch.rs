//! Kernel launches of upsampling and pooling.

use super::{Pool2d, UpsampleNearest2d};
use crate::device::kernels::{
    self, Kernel, POOL_FWD_NHWC_F16, POOL_FWD_NHWC_F32, UNSET, UPSAMPLE_FWD_NHWC_F16,
    UPSAMPLE_FWD_NHWC_F32, dimension, of_type,
};
use crate::device::{KernelWork, View};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::conv2d::{in_pieces, piece};

kernels::params! {
    /// `Resample` of kernels/elementwise.cu.
    struct Params for UPSAMPLE_FWD_NHWC_F32, UPSAMPLE_FWD_NHWC_F16, POOL_FWD_NHWC_F32,
        POOL_FWD_NHWC_F16
    {
        x: u64, y: u64, rows: i64, width: i32, channels: i32, factor: i32, scale: f32,
        wide: i32, unused: i32,
    }
}

/// `small` is the smaller of the two images; `wide` is for a kernel whose threads have a piece each.
fn resample(
    name: &str,
    [f32, f16]: [&Kernel; 2],
    args: &LaunchArgs,
    small: &View,
    (factor, scale): (usize, f32),
    wide: bool,
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
        wide: i32::from(wide),
        unused: 0,
    };
    dimension(name, w * factor)?;
    let (x, y) = (&args.inputs[0], &args.outputs[0]);
    let kernel = of_type(&x.ty, f32, f16);
    let items = if wide { y.ty.elements() / piece(x.ty.dtype) } else { y.ty.elements() };
    Ok(vec![kernel.over(items, &params, &[Some(x)], &[Some(y)])])
}

impl UpsampleNearest2d {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let how = (self.factor, self.scale);
        let kernels = [&UPSAMPLE_FWD_NHWC_F32, &UPSAMPLE_FWD_NHWC_F16];
        resample("upsample_nearest2d", kernels, args, &args.inputs[0], how, false)
    }
}

impl Pool2d {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let how = (self.factor, self.scale);
        let kernels = [&POOL_FWD_NHWC_F32, &POOL_FWD_NHWC_F16];
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let [.., channels] = x.ty.shape[..] else { unreachable!("inputs are checked") };
        let wide = [x, y].iter().all(|&view| in_pieces(Some(view), channels, view.ty.dtype));
        let works = resample("pool2d", kernels, args, y, how, wide)?;
        Ok(works.into_iter().map(|work| work.with_general(!wide)).collect())
    }
}
