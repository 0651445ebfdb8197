//! Kernel launches of accumulation.

use super::Accumulate;
use crate::device::KernelWork;
use crate::device::kernels::{self, ACCUMULATE_FWD_NHWC_F32, UNSET};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Accumulate` of kernels/optimizer.cu.
    struct Params for ACCUMULATE_FWD_NHWC_F32 {
        x: u64, state: u64, sum: u64, elements: i64, scale: f32, decay: i32,
    }
}

impl Accumulate {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (x, sum) = (&args.inputs[0], &args.outputs[0]);
        let elements = x.ty.elements();
        kernels::check_fours("accumulate", [x, sum])?;
        let (scale, decay) = match *self {
            Accumulate::Sum { scale } => (scale, 0),
            Accumulate::Average { decay } => (0.0, decay as i32),
        };
        let params =
            Params { x: UNSET, state: UNSET, sum: UNSET, elements: elements as i64, scale, decay };
        let read = [Some(x), args.inputs.get(1)];
        Ok(vec![ACCUMULATE_FWD_NHWC_F32.over(elements.div_ceil(4), &params, &read, &[Some(sum)])])
    }
}
