//! The kernel launch of the global norm, and the grid of sums of squares that it shares with the losses.

use super::GradNorm;
use crate::device::KernelWork;
use crate::device::kernels::{self, GRAD_NORM_FWD_NHWC_F32, UNSET, dimension};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;

/// Elements that one block sums, as in kernels/squares.cu.
const SLICE: usize = 16_384;

kernels::params! {
    /// `GradNorm` of kernels/squares.cu.
    struct Norm for GRAD_NORM_FWD_NHWC_F32 { x: u64, norm: u64, sums: u64, ticket: u64, elements: i64 }
}

/// Sums of squares of one sample of so many elements.
pub(in crate::ops) fn slices(elements: usize) -> usize {
    elements.div_ceil(SLICE)
}

/// Blocks that sum squares: slices of `elements` elements by samples.
///
/// # Errors
/// More than blocks can be numbered.
pub(in crate::ops) fn grid(name: &str, elements: usize, samples: usize) -> Result<[u32; 3]> {
    if samples > 65_535 {
        return Err(Error::operation(name, "more than 65,535 samples in a batch"));
    }
    // Kernels count all blocks in 32 bits.
    dimension(name, slices(elements) * samples)?;
    Ok([slices(elements) as u32, samples as u32, 1])
}

impl GradNorm {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([grads], [norm]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let elements = grads.ty.elements();
        let params =
            Norm { x: UNSET, norm: UNSET, sums: UNSET, ticket: UNSET, elements: elements as i64 };
        let written = [Some(norm), args.scratch, args.tickets];
        let grid = grid("grad_norm", elements, 1)?;
        let kernel = &GRAD_NORM_FWD_NHWC_F32;
        Ok(vec![kernel.launch(grid, [kernel.threads, 1, 1], 0, &params, &[Some(grads)], &written)])
    }
}
