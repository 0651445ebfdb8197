//! Kernel launches of counting.

use super::AdvanceState;
use crate::device::KernelWork;
use crate::device::kernels::{self, ADVANCE_STATE_FWD_NHWC_U32, UNSET};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `AdvanceState` of kernels/diffusion.cu.
    struct Params for ADVANCE_STATE_FWD_NHWC_U32 {
        state: u64, step: u32, row: u32, sample: u32, unused: u32,
    }
}

impl AdvanceState {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let AdvanceState { step, row, sample } = *self;
        let params = Params { state: UNSET, step, row, sample, unused: 0 };
        Ok(vec![ADVANCE_STATE_FWD_NHWC_U32.over(1, &params, &[], &[Some(&args.outputs[0])])])
    }
}
