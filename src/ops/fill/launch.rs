//! Kernel launches of constants.

use super::Fill;
use crate::device::KernelWork;
use crate::device::kernels::{self, FILL_FWD_NHWC_F32, UNSET};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Fill` of kernels/optimizer.cu.
    struct Params for FILL_FWD_NHWC_F32 { y: u64, elements: i64, value: f32, unused: i32 }
}

impl Fill {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let y = &args.outputs[0];
        let elements = y.ty.elements();
        let params = Params { y: UNSET, elements: elements as i64, value: self.value, unused: 0 };
        Ok(vec![FILL_FWD_NHWC_F32.over(elements, &params, &[], &[Some(y)])])
    }
}
