//! Normalisation of pixels that are means of four, as an image of half the height and width begins.

use super::run_length;
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::resample::Pool2d;
use crate::ops::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};

/// `x` `[B, 2H, 2W, C]` → `y` `[B, H, W, C]`: the average pool by two, then
/// [`PixelNorm`](super::PixelNorm). What fusion makes of both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PooledPixelNorm {
    pub groups: usize,
}

impl PooledPixelNorm {
    /// What it takes in.
    pub const POOL: Pool2d = Pool2d { factor: 2, scale: 0.25 };
}

impl Op for PooledPixelNorm {
    fn name(&self) -> &'static str {
        "pixel_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        run_length(self.name(), inputs[0], self.groups)?;
        PooledPixelNorm::POOL.infer(inputs)
    }

    fn grad(&self, _: &mut dyn Build, _: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        Err(Error::operation(
            self.name(),
            "has no gradient once pooling is fused into it; differentiate before fusing",
        ))
    }

    fn scratch(&self, target: &Target, _: &[&TensorType], outputs: &[&TensorType]) -> usize {
        if target.is_cpu() { outputs[0].elements() } else { 0 }
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}
