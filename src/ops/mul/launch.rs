//! Kernel launches of `mul`.

use super::Mul;
use crate::device::KernelWork;
use crate::device::kernels::{MUL_FWD_NHWC_F16, MUL_FWD_NHWC_F32, MUL_ROW_FWD_NHWC_F16};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::add::combine;

impl Mul {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let kernels = [&MUL_FWD_NHWC_F32, &MUL_FWD_NHWC_F16, &MUL_ROW_FWD_NHWC_F16];
        combine("mul", kernels, args)
    }
}
