//! Attention of one tensor that holds queries, keys and values side by side, and normalises their rows
//! while it reads them: what fusion makes of the magnitude-preserving network's cosine attention
//! (Karras et al. 2024, arXiv:2312.02696, section 2.3).

use super::{Attention, Sizes, cpu};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};

/// `x` `[B, N, 3·heads·D]` → `y` `[B, N, heads·D]`, `lse` `[B, N, heads]`: [`Attention`] of the three
/// thirds of the channels of `x` as queries, keys and values, after
/// [`PixelNorm`](crate::ops::pixel_norm::PixelNorm) in runs of D.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedAttention {
    pub heads: usize,
    pub scale: f32,
}

impl PackedAttention {
    /// From the shape of `x`.
    pub(super) fn sizes(&self, x: &[usize]) -> Sizes {
        let depth = x[2] / (3 * self.heads);
        Sizes { batch: x[0], queries: x[1], keys: x[1], heads: self.heads, depth }
    }
}

impl Op for PackedAttention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        let x = inputs[0];
        let &[batch, tokens, channels] = &x.shape[..] else {
            return Err(Error::operation(self.name(), format!("takes [B, N, 3·C], not {x:?}")));
        };
        if self.heads == 0 || !channels.is_multiple_of(3 * self.heads) {
            return Err(Error::operation(
                self.name(),
                format!(
                    "{channels} channels can't be cut into queries, keys and values of {} heads",
                    self.heads
                ),
            ));
        }
        let y = TensorType { shape: vec![batch, tokens, channels / 3], dtype: x.dtype };
        Ok(vec![y, self.sizes(&x.shape).lse()])
    }

    fn grad(&self, _: &mut dyn Build, _: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        Err(Error::operation(
            self.name(),
            "has no gradient once normalisation is fused into it; differentiate before fusing",
        ))
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        2 * self.sizes(&inputs[0].shape).product_flops()
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if !target.is_cpu() {
            return 0;
        }
        inputs[0].elements() + cpu::scratch(&self.sizes(&inputs[0].shape))
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl From<Attention> for PackedAttention {
    fn from(Attention { heads, scale }: Attention) -> PackedAttention {
        PackedAttention { heads, scale }
    }
}
