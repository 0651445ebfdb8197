//! Kernel launches of row selection.

use super::SelectRow;
use crate::device::KernelWork;
use crate::device::kernels::{self, SELECT_ROW_FWD_NHWC_F32, UNSET, dimension};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `SelectRow` of kernels/diffusion.cu.
    struct Params for SELECT_ROW_FWD_NHWC_F32 {
        table: u64, state: u64, row: u64, width: i64, rows: i32, unused: i32,
    }
}

impl SelectRow {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([table, state], [row]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let width = row.ty.elements();
        let params = Params {
            table: UNSET,
            state: UNSET,
            row: UNSET,
            width: width as i64,
            rows: dimension("select_row", table.ty.shape[0])?,
            unused: 0,
        };
        let read = [Some(table), Some(state)];
        Ok(vec![SELECT_ROW_FWD_NHWC_F32.over(width, &params, &read, &[Some(row)])])
    }
}
