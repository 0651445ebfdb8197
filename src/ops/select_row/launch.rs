//! Kernel launches of row selection.

use super::SelectRow;
use crate::device::KernelWork;
use crate::device::kernels::{self, SELECT_ROW_FWD_NHWC_F32, UNSET, dimension};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `SelectRow` of kernels/diffusion.cu.
    struct Params for SELECT_ROW_FWD_NHWC_F32 {
        table: u64, state: u64, rows: u64, y: u64, width: i64, height: i32, count: i32,
    }
}

impl SelectRow {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([table, rows], [y]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let (elements, count) = (y.ty.elements(), y.ty.shape[0]);
        let params = Params {
            table: UNSET,
            state: UNSET,
            rows: UNSET,
            y: UNSET,
            width: (elements / count) as i64,
            height: dimension("select_row", table.ty.shape[0])?,
            count: dimension("select_row", count)?,
        };
        let read = match self {
            SelectRow::Current => [Some(table), Some(rows), None],
            SelectRow::Each => [Some(table), None, Some(rows)],
        };
        Ok(vec![SELECT_ROW_FWD_NHWC_F32.over(elements, &params, &read, &[Some(y)])])
    }
}
