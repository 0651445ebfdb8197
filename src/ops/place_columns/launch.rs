//! Kernel launches of `place_columns`: columns are the channels of a row.

use super::PlaceColumns;
use crate::device::KernelWork;
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::concat::{Move, move_channels};

impl PlaceColumns {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x], [table]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let (to, width) = (self.column, x.ty.shape[1]);
        let plan = Move { from: 0, to, width, scale: 1.0, fill: None };
        Ok(vec![move_channels("place_columns", x, table, plan)?])
    }
}
