//! Kernel launches of preconditioned outputs.

use super::Preconditioned;
use crate::device::KernelWork;
use crate::device::kernels::{
    self, PRECONDITIONED_FWD_NHWC_F16, PRECONDITIONED_FWD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::error::Result;
use crate::ops::shape::Extent;
use crate::ops::{LaunchArgs, Op};

kernels::params! {
    /// `Preconditioned` of kernels/elementwise.cu.
    struct Params for PRECONDITIONED_FWD_NHWC_F32, PRECONDITIONED_FWD_NHWC_F16 {
        x: u64, output: u64, c_skip: u64, c_out: u64, y: u64, elements: i64, sample: i64,
        channels: i32, rows: i32,
    }
}

impl Preconditioned {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x, output, c_skip, c_out], [y]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let extent = Extent::of(&x.ty.shape);
        let elements = x.ty.elements();
        let int = |size| dimension(self.name(), size);
        let params = Params {
            x: UNSET,
            output: UNSET,
            c_skip: UNSET,
            c_out: UNSET,
            y: UNSET,
            elements: elements as i64,
            sample: extent.sample() as i64,
            channels: int(extent.channels)?,
            rows: int(c_skip.ty.shape[0])?,
        };
        let kernel =
            of_type(&output.ty, &PRECONDITIONED_FWD_NHWC_F32, &PRECONDITIONED_FWD_NHWC_F16);
        let read = [x, output, c_skip, c_out].map(Some);
        Ok(vec![kernel.over(elements, &params, &read, &[Some(y)])])
    }
}
