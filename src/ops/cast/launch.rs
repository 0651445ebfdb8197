//! Kernel launches of casts: one thread an element.

use super::Cast;
use crate::device::kernels::{self, CAST_FWD_NHWC_F16, CAST_FWD_NHWC_F32, UNSET};
use crate::device::{DType, KernelWork};
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Cast` of kernels/elementwise.cu.
    struct Params for CAST_FWD_NHWC_F16, CAST_FWD_NHWC_F32 { x: u64, y: u64, elements: i64 }
}

impl Cast {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Vec<KernelWork> {
        let ([x], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let elements = y.ty.elements();
        let params = Params { x: UNSET, y: UNSET, elements: elements as i64 };
        let kernel = match self.to {
            DType::F16 => &CAST_FWD_NHWC_F16,
            _ => &CAST_FWD_NHWC_F32,
        };
        vec![kernel.over(elements, &params, &[Some(x)], &[Some(y)])]
    }
}
