//! Kernel launches of sums and products.

use super::Combine;
use crate::device::kernels::{
    self, ADD_FWD_NHWC_F16, ADD_FWD_NHWC_F32, ADD_ROW_FWD_NHWC_F16, Kernel, MUL_FWD_NHWC_F16,
    MUL_FWD_NHWC_F32, MUL_ROW_FWD_NHWC_F16, UNSET, dimension,
};
use crate::device::{DType, KernelWork};
use crate::error::Result;
use crate::ops::shape::Extent;
use crate::ops::{LaunchArgs, Op};

kernels::params! {
    /// `Combine` of kernels/elementwise.cu.
    struct Params for ADD_FWD_NHWC_F32, ADD_FWD_NHWC_F16, ADD_ROW_FWD_NHWC_F16,
        MUL_FWD_NHWC_F32, MUL_FWD_NHWC_F16, MUL_ROW_FWD_NHWC_F16
    {
        a: u64, b: u64, y: u64, elements: i64, sample: i64, channels: i32, rows: i32,
        scale_a: f32, scale_b: f32,
    }
}

impl Combine {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([a, b], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let Extent { channels, .. } = Extent::of(&a.ty.shape);
        let elements = a.ty.elements();
        let same = a.ty.shape == b.ty.shape;
        // For float32, for float16, and for float16 with rows of float32.
        let (kernels, scales): ([&Kernel; 3], [f32; 2]) = match *self {
            Combine::Sum(scales) => {
                ([&ADD_FWD_NHWC_F32, &ADD_FWD_NHWC_F16, &ADD_ROW_FWD_NHWC_F16], scales)
            }
            Combine::Product => {
                ([&MUL_FWD_NHWC_F32, &MUL_FWD_NHWC_F16, &MUL_ROW_FWD_NHWC_F16], [1.0; 2])
            }
        };
        let kernel = match (a.ty.dtype, b.ty.dtype) {
            (DType::F16, DType::F16) => kernels[1],
            (DType::F16, _) => kernels[2],
            _ => kernels[0],
        };
        let int = |size| dimension(self.name(), size);
        let params = Params {
            a: UNSET,
            b: UNSET,
            y: UNSET,
            elements: elements as i64,
            sample: Extent::of(&a.ty.shape).sample() as i64,
            channels: int(channels)?,
            rows: if same { 0 } else { int(b.ty.elements() / channels)? },
            scale_a: scales[0],
            scale_b: scales[1],
        };
        Ok(vec![kernel.over(elements, &params, &[Some(a), Some(b)], &[Some(y)])])
    }
}
