//! Kernel launches of `dropout`: one thread an element.

use crate::device::KernelWork;
use crate::device::kernels::{
    self, DROPOUT_FWD_NHWC_F16, DROPOUT_FWD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `Dropout` of kernels/elementwise.cu.
    struct Params for DROPOUT_FWD_NHWC_F32, DROPOUT_FWD_NHWC_F16 {
        x: u64, state: u64, y: u64,
        batch: i32, pixels: i32, channels: i32, purpose: u32, threshold: u32, scale: f32,
    }
}

impl super::Dropout {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x, state], [y]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let extent = Extent::of(&x.ty.shape);
        let int = |size| dimension("dropout", size);
        int(extent.sample())?;
        let params = Params {
            x: UNSET,
            state: UNSET,
            y: UNSET,
            batch: int(extent.batch)?,
            pixels: int(extent.pixels)?,
            channels: int(extent.channels)?,
            purpose: self.purpose,
            threshold: self.threshold(),
            scale: self.scale(),
        };
        let kernel = of_type(&x.ty, &DROPOUT_FWD_NHWC_F32, &DROPOUT_FWD_NHWC_F16);
        let elements = y.ty.elements();
        Ok(vec![kernel.over(elements, &params, &[Some(x), Some(state)], &[Some(y)])])
    }
}
