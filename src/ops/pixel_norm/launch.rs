//! Kernel launches of the normalisation of pixels; kernels/magnitude.cu says how work is split.

use super::{PixelNorm, PixelNormGrad, PooledPixelNorm};
use crate::device::kernels::{
    self, Kernel, PIXEL_NORM_DGRAD_NHWC_F16, PIXEL_NORM_DGRAD_NHWC_F32, PIXEL_NORM_FWD_NHWC_F16,
    PIXEL_NORM_FWD_NHWC_F32, PIXEL_NORM_POOLED_FWD_NHWC_F16, PIXEL_NORM_POOLED_FWD_NHWC_F32, UNSET,
    dimension, of_type,
};
use crate::device::{KernelWork, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `PixelNorm` of kernels/magnitude.cu.
    struct Params for PIXEL_NORM_FWD_NHWC_F32, PIXEL_NORM_FWD_NHWC_F16, PIXEL_NORM_DGRAD_NHWC_F32,
        PIXEL_NORM_DGRAD_NHWC_F16, PIXEL_NORM_POOLED_FWD_NHWC_F32, PIXEL_NORM_POOLED_FWD_NHWC_F16
    {
        x: u64, dy: u64, y: u64, runs: i64, length: i32, groups: i32, width: i32, unused: i32,
    }
}

/// Runs of one block: one a warp.
const RUNS: usize = 8;

fn work(
    name: &str,
    kernel: &Kernel,
    [x, dy]: [Option<&View>; 2],
    y: &View,
    groups: usize,
) -> Result<Vec<KernelWork>> {
    let length = Extent::of(&y.ty.shape).channels / groups;
    let runs = y.ty.elements() / length;
    let params = Params {
        x: UNSET,
        dy: UNSET,
        y: UNSET,
        runs: runs as i64,
        length: dimension(name, length)?,
        groups: dimension(name, groups)?,
        width: dimension(name, *y.ty.shape.iter().rev().nth(1).unwrap_or(&1))?,
        unused: 0,
    };
    let blocks = u32::try_from(runs.div_ceil(RUNS)).map_err(|_| {
        Error::operation(name, format!("{runs} pixels are beyond a kernel's limits"))
    })?;
    Ok(vec![kernel.launch([blocks, 1, 1], [256, 1, 1], 0, &params, &[x, dy], &[Some(y)])])
}

impl PixelNorm {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let kernel = of_type(&x.ty, &PIXEL_NORM_FWD_NHWC_F32, &PIXEL_NORM_FWD_NHWC_F16);
        work("pixel_norm", kernel, [Some(x), None], y, self.groups)
    }
}

impl PooledPixelNorm {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (x, y) = (&args.inputs[0], &args.outputs[0]);
        let (f32, f16) = (&PIXEL_NORM_POOLED_FWD_NHWC_F32, &PIXEL_NORM_POOLED_FWD_NHWC_F16);
        work("pixel_norm", of_type(&x.ty, f32, f16), [Some(x), None], y, self.groups)
    }
}

impl PixelNormGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (dy, x, dx) = (&args.inputs[0], &args.inputs[1], &args.outputs[0]);
        let kernel = of_type(&x.ty, &PIXEL_NORM_DGRAD_NHWC_F32, &PIXEL_NORM_DGRAD_NHWC_F16);
        work("pixel_norm_grad", kernel, [Some(x), Some(dy)], dx, self.groups)
    }
}
