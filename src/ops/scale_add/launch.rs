//! Kernel launches of `scale_add`.

use crate::device::KernelWork;
use crate::device::kernels::{
    self, SCALE_ADD_FWD_NHWC_F16, SCALE_ADD_FWD_NHWC_F32, UNSET, of_type,
};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `ScaleAdd` of kernels/elementwise.cu.
    struct Params for SCALE_ADD_FWD_NHWC_F32, SCALE_ADD_FWD_NHWC_F16 {
        x: u64, y: u64, elements: i64, scale: f32, offset: f32,
    }
}

impl super::ScaleAdd {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let elements = y.ty.elements();
        let (scale, offset) = (self.scale, self.offset);
        let params = Params { x: UNSET, y: UNSET, elements: elements as i64, scale, offset };
        let kernel = of_type(&x.ty, &SCALE_ADD_FWD_NHWC_F32, &SCALE_ADD_FWD_NHWC_F16);
        Ok(vec![kernel.over(elements, &params, &[Some(x)], &[Some(y)])])
    }
}
