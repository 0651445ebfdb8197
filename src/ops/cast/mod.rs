//! Conversion between float32 and float16.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape};
use crate::device::{DType, KernelWork, TensorType};
use crate::error::{Error, Result};

/// x → the same elements as `to`: float16 is rounded to the nearest even value, and what is too large
/// for it becomes infinite. The pass [`crate::graph::precision`] inserts it after differentiation, so
/// it has no gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cast {
    pub to: DType,
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 1..=1)?;
        match (inputs[0].dtype, self.to) {
            (DType::F32, DType::F16) | (DType::F16, DType::F32) => {
                Ok(vec![inputs[0].with_dtype(self.to)])
            }
            (_, to) => Err(Error::operation(
                self.name(),
                format!("turns float32 into float16 and back, not {:?} into {to:?}", inputs[0]),
            )),
        }
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        Ok(self.launches(args))
    }
}
