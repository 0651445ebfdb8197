//! `place_columns`: writes a matrix into some columns of a wider one.

mod cpu;
mod launch;

use super::{LaunchArgs, Op};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// x [N, K] → columns `column .. column + K` of a table [N, `columns`], in place; the other
/// columns stay. This is how `table` collects what the step reads by row.
#[derive(Debug)]
pub struct PlaceColumns {
    pub columns: usize,
    pub column: usize,
}

impl Op for PlaceColumns {
    fn name(&self) -> &'static str {
        "place_columns"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        match inputs[0].shape[..] {
            [rows, width] if self.column + width <= self.columns => {
                Ok(vec![TensorType::f32([rows, self.columns])])
            }
            _ => Err(Error::operation(
                "place_columns",
                format!(
                    "{:?} does not fit at column {} of {}",
                    inputs[0], self.column, self.columns
                ),
            )),
        }
    }

    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * inputs[0].bytes() as u64
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}
