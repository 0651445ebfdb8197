//! Kernel launches of SiLU: one thread an element.

use super::{Silu, SiluGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, SILU_DGRAD_NHWC_F16, SILU_DGRAD_NHWC_F32, SILU_FWD_NHWC_F16, SILU_FWD_NHWC_F32, UNSET,
    of_type,
};
use crate::ops::LaunchArgs;

kernels::params! {
    /// `SiluForward` of kernels/silu.cu.
    struct Forward for SILU_FWD_NHWC_F32, SILU_FWD_NHWC_F16 { x: u64, y: u64, elements: i64 }
}

kernels::params! {
    /// `SiluBackward` of kernels/silu.cu.
    struct Backward for SILU_DGRAD_NHWC_F32, SILU_DGRAD_NHWC_F16 { x: u64, dy: u64, dx: u64, elements: i64 }
}

impl Silu {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Vec<KernelWork> {
        let ([x], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let elements = y.ty.elements();
        let params = Forward { x: UNSET, y: UNSET, elements: elements as i64 };
        let kernel = of_type(&x.ty, &SILU_FWD_NHWC_F32, &SILU_FWD_NHWC_F16);
        vec![kernel.over(elements, &params, &[Some(x)], &[Some(y)])]
    }
}

impl SiluGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Vec<KernelWork> {
        let ([dy, x], [dx]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let elements = dx.ty.elements();
        let params = Backward { x: UNSET, dy: UNSET, dx: UNSET, elements: elements as i64 };
        let kernel = of_type(&x.ty, &SILU_DGRAD_NHWC_F32, &SILU_DGRAD_NHWC_F16);
        vec![kernel.over(elements, &params, &[Some(x), Some(dy)], &[Some(dx)])]
    }
}
