//! Kernel launches of noise.

use super::Normal;
use crate::device::KernelWork;
use crate::device::kernels::{self, NORMAL_FWD_NHWC_F32, UNSET, dimension};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `Normal` of kernels/diffusion.cu.
    struct Params for NORMAL_FWD_NHWC_F32 {
        state: u64, seeds: u64, noise: u64,
        batch: i32, pixels: i32, channels: i32, purpose: u32,
    }
}

impl Normal {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let [_, state, seeds @ ..] = args.inputs else { unreachable!("inputs are checked") };
        let noise = &args.outputs[0];
        let extent = Extent::of(&noise.ty.shape);
        let int = |size| dimension("normal", size);
        int(extent.sample())?;
        let params = Params {
            state: UNSET,
            seeds: UNSET,
            noise: UNSET,
            batch: int(extent.batch)?,
            pixels: int(extent.pixels)?,
            channels: int(extent.channels)?,
            purpose: self.purpose,
        };
        let read = [Some(state), seeds.first()];
        let elements = noise.ty.elements();
        Ok(vec![NORMAL_FWD_NHWC_F32.over(elements, &params, &read, &[Some(noise)])])
    }
}
