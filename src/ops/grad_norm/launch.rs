//! Kernel launches of the global norm, and the sums of squares that it shares with the loss.

use super::GradNorm;
use crate::device::kernels::{
    self, GRAD_NORM_FWD_NHWC_F32, SQUARE_SUMS_FWD_NHWC_F32, UNSET, dimension,
};
use crate::device::{KernelWork, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;

/// Elements that one block sums, as in kernels/squares.cu.
const SLICE: usize = 16_384;

kernels::params! {
    /// `SquareSums` of kernels/squares.cu.
    struct Sums for SQUARE_SUMS_FWD_NHWC_F32 {
        x: u64, target: u64, sums: u64, elements: i64, slices: i32, unused: i32,
    }
}

kernels::params! {
    /// `GradNorm` of kernels/squares.cu.
    struct Norm for GRAD_NORM_FWD_NHWC_F32 { sums: u64, norm: u64, count: i32, unused: i32 }
}

/// Sums of squares of one sample of so many elements.
pub(in crate::ops) fn slices(elements: usize) -> usize {
    elements.div_ceil(SLICE)
}

/// Sums of squares of `x`, or of its difference to `target`, of `samples` samples by slices.
pub(in crate::ops) fn square_sums(
    name: &str,
    x: &View,
    target: Option<&View>,
    sums: &View,
    samples: usize,
) -> Result<KernelWork> {
    let elements = x.ty.elements() / samples;
    if samples > 65_535 {
        return Err(Error::operation(name, "more than 65,535 samples in a batch"));
    }
    let slices = slices(elements);
    let params = Sums {
        x: UNSET,
        target: UNSET,
        sums: UNSET,
        elements: elements as i64,
        slices: dimension(name, slices)?,
        unused: 0,
    };
    let grid = [slices as u32, samples as u32, 1];
    let kernel = &SQUARE_SUMS_FWD_NHWC_F32;
    Ok(kernel.launch(grid, [256, 1, 1], 0, &params, &[Some(x), target], &[Some(sums)]))
}

impl GradNorm {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([grads], [norm]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let Some(sums) = args.scratch else { unreachable!("working memory was asked for") };
        let count = dimension("grad_norm", slices(grads.ty.elements()))?;
        let params = Norm { sums: UNSET, norm: UNSET, count, unused: 0 };
        Ok(vec![
            square_sums("grad_norm", grads, None, sums, 1)?,
            GRAD_NORM_FWD_NHWC_F32.over(1, &params, &[Some(sums)], &[Some(norm)]),
        ])
    }
}
