//! Kernel launches of accumulation.

use super::Accumulate;
use crate::device::KernelWork;
use crate::device::kernels::{self, ACCUMULATE_FWD_NHWC_F32, UNSET};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Accumulate` of kernels/optimizer.cu.
    struct Params for ACCUMULATE_FWD_NHWC_F32 {
        x: u64, sum: u64, elements: i64, scale: f32, unused: i32,
    }
}

impl Accumulate {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x], [sum]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let elements = x.ty.elements();
        let scale = self.scale;
        let params = Params { x: UNSET, sum: UNSET, elements: elements as i64, scale, unused: 0 };
        Ok(vec![ACCUMULATE_FWD_NHWC_F32.over(elements, &params, &[Some(x)], &[Some(sum)])])
    }
}
