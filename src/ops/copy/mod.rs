//! `copy`: the same elements in another place.

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// x → x, any shape. Inserted where a tensor must land in a slot that its maker can't write to.
#[derive(Debug)]
pub struct Copy;

impl Op for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, _: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        Ok(vec![args.output_grads[0]])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}
