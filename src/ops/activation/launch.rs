//! Kernel launches of functions of single elements: one thread an element.

use super::{Activation, ActivationGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, CLIP_DGRAD_NHWC_F16, CLIP_DGRAD_NHWC_F32, CLIP_FWD_NHWC_F16, CLIP_FWD_NHWC_F32,
    SILU_DGRAD_NHWC_F16, SILU_DGRAD_NHWC_F32, SILU_FWD_NHWC_F16, SILU_FWD_NHWC_F32, UNSET, of_type,
};
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Activation` of kernels/activation.cu.
    struct Forward for SILU_FWD_NHWC_F32, SILU_FWD_NHWC_F16, CLIP_FWD_NHWC_F32, CLIP_FWD_NHWC_F16 {
        x: u64, y: u64, elements: i64, parameter: f32, unused: i32,
    }
}

kernels::params! {
    /// `ActivationBackward` of kernels/activation.cu.
    struct Backward for SILU_DGRAD_NHWC_F32, SILU_DGRAD_NHWC_F16, CLIP_DGRAD_NHWC_F32,
        CLIP_DGRAD_NHWC_F16
    {
        x: u64, dy: u64, dx: u64, elements: i64, parameter: f32, unused: i32,
    }
}

impl Activation {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Vec<KernelWork> {
        let ([x], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let (f32, f16, parameter) = match *self {
            Activation::Silu { scale } => (&SILU_FWD_NHWC_F32, &SILU_FWD_NHWC_F16, scale),
            Activation::Clip { limit } => (&CLIP_FWD_NHWC_F32, &CLIP_FWD_NHWC_F16, limit),
        };
        let count = y.ty.elements();
        let elements = count as i64;
        let params = Forward { x: UNSET, y: UNSET, elements, parameter, unused: 0 };
        vec![of_type(&x.ty, f32, f16).over(count, &params, &[Some(x)], &[Some(y)])]
    }
}

impl ActivationGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Vec<KernelWork> {
        let ([dy, x], [dx]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let (f32, f16, parameter) = match self.0 {
            Activation::Silu { scale } => (&SILU_DGRAD_NHWC_F32, &SILU_DGRAD_NHWC_F16, scale),
            Activation::Clip { limit } => (&CLIP_DGRAD_NHWC_F32, &CLIP_DGRAD_NHWC_F16, limit),
        };
        let count = dx.ty.elements();
        let elements = count as i64;
        let params = Backward { x: UNSET, dy: UNSET, dx: UNSET, elements, parameter, unused: 0 };
        vec![of_type(&x.ty, f32, f16).over(count, &params, &[Some(x), Some(dy)], &[Some(dx)])]
    }
}
