//! Layers whose weights are normalised in use, without bias: the product of [`WeightNorm`] with a
//! convolution or a linear layer (Karras et al. 2024, arXiv:2312.02696, eq. 66).

use super::conv2d::{Conv2d, Operands};
use super::linear::linear;
use super::weight_norm::WeightNorm;
use super::{Build, TensorId};
use crate::error::{Error, Result};
use std::sync::Arc;

/// A linear layer over the last dimension of `x` for a `weight` [C_out, C_in]; for [C_out, C_in, k, k],
/// k odd, a convolution of `x` [B, H, W, C_in] that keeps height and width. `gain` [1] is the learned
/// one, if `norm` has one.
///
/// # Errors
/// When the shapes do not fit.
pub fn mp_layer(
    g: &mut dyn Build,
    x: TensorId,
    weight: TensorId,
    norm: WeightNorm,
    gain: Option<TensorId>,
) -> Result<TensorId> {
    let mut inputs = vec![weight];
    inputs.extend(gain);
    let normalised = g.push(Arc::new(norm), &inputs)?[0];
    match g.ty(weight).shape[..] {
        [_, _] => linear(g, x, normalised, None),
        [_, _, height, width] if height % 2 == 1 && width % 2 == 1 => {
            let (vertical, horizontal) = (height / 2, width / 2);
            let padding = [vertical, vertical, horizontal, horizontal];
            let op = Conv2d { stride: [1, 1], padding, operands: Operands::default() };
            Ok(g.push(Arc::new(op), &[x, normalised])?[0])
        }
        _ => Err(Error::operation(
            "mp_layer",
            format!("needs a weight [out, in] or [out, in, k, k], k odd, not {:?}", g.ty(weight)),
        )),
    }
}
