//! Kernel launches of the moving average.

use super::Ema;
use crate::device::KernelWork;
use crate::device::kernels::{self, EMA_FWD_NHWC_F32, UNSET};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Ema` of kernels/optimizer.cu.
    struct Params for EMA_FWD_NHWC_F32 { w: u64, state: u64, ema: u64, elements: i64 }
}

impl Ema {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([w, state], [ema]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let elements = w.ty.elements();
        let params = Params { w: UNSET, state: UNSET, ema: UNSET, elements: elements as i64 };
        let read = [Some(w), Some(state)];
        Ok(vec![EMA_FWD_NHWC_F32.over(elements, &params, &read, &[Some(ema)])])
    }
}
