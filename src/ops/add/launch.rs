//! Kernel launches of `add`, and of `mul`, which differs in the kernel alone.

use super::Add;
use crate::device::kernels::{
    self, ADD_FWD_NHWC_F16, ADD_FWD_NHWC_F32, ADD_ROW_FWD_NHWC_F16, Kernel, UNSET, dimension,
};
use crate::device::{DType, KernelWork};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `Combine` of kernels/elementwise.cu.
    struct Combine for ADD_FWD_NHWC_F32, ADD_FWD_NHWC_F16, ADD_ROW_FWD_NHWC_F16,
        MUL_FWD_NHWC_F32, MUL_FWD_NHWC_F16, MUL_ROW_FWD_NHWC_F16
    {
        a: u64, b: u64, y: u64, elements: i64, sample: i64, channels: i32, rows: i32,
    }
}

/// Combines `a` with `b` of the same shape or with rows of it. The kernels are for float32, for
/// float16, and for float16 with rows of float32.
pub(in crate::ops) fn combine(
    name: &str,
    kernels: [&Kernel; 3],
    args: &LaunchArgs,
) -> Result<Vec<KernelWork>> {
    let ([a, b], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
    let Extent { channels, .. } = Extent::of(&a.ty.shape);
    let elements = a.ty.elements();
    let same = a.ty.shape == b.ty.shape;
    let kernel = match (a.ty.dtype, b.ty.dtype) {
        (DType::F16, DType::F16) => kernels[1],
        (DType::F16, _) => kernels[2],
        _ => kernels[0],
    };
    let params = Combine {
        a: UNSET,
        b: UNSET,
        y: UNSET,
        elements: elements as i64,
        sample: Extent::of(&a.ty.shape).sample() as i64,
        channels: dimension(name, channels)?,
        rows: if same { 0 } else { dimension(name, b.ty.elements() / channels)? },
    };
    Ok(vec![kernel.over(elements, &params, &[Some(a), Some(b)], &[Some(y)])])
}

impl Add {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let kernels = [&ADD_FWD_NHWC_F32, &ADD_FWD_NHWC_F16, &ADD_ROW_FWD_NHWC_F16];
        combine("add", kernels, args)
    }
}
