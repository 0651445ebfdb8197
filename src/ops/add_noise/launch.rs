//! Kernel launches of the forward process.

use super::AddNoise;
use crate::device::KernelWork;
use crate::device::kernels::{self, ADD_NOISE_FWD_NHWC_F32, UNSET, dimension};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `AddNoise` of kernels/diffusion.cu.
    struct Params for ADD_NOISE_FWD_NHWC_F32 {
        x0: u64, noise: u64, table: u64, timesteps: u64, x_t: u64, v: u64,
        elements: i64, sample: i64, rows: i32, unused: i32,
    }
}

impl AddNoise {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x0, noise, table, timesteps], [x_t, v @ ..]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let elements = x0.ty.elements();
        let params = Params {
            x0: UNSET,
            noise: UNSET,
            table: UNSET,
            timesteps: UNSET,
            x_t: UNSET,
            v: UNSET,
            elements: elements as i64,
            sample: Extent::of(&x0.ty.shape).sample() as i64,
            rows: dimension("add_noise", table.ty.shape[0])?,
            unused: 0,
        };
        let read = [x0, noise, table, timesteps].map(Some);
        Ok(vec![ADD_NOISE_FWD_NHWC_F32.over(elements, &params, &read, &[Some(x_t), v.first()])])
    }
}
