//! Linear layers: a 1×1 convolution of tokens, so that one product body serves both.

use super::conv2d::Conv2d;
use super::{Build, TensorId};
use crate::error::{Error, Result};
use std::sync::Arc;

/// y = x·weightᵀ + bias over the last dimension: `x` [..., C_in], `weight` [C_out, C_in], `bias`
/// [C_out] → [..., C_out].
///
/// The first of two or more dimensions is the sample; all others are its rows. One dimension is one
/// row.
///
/// # Errors
/// When the shapes do not fit.
pub fn linear(
    g: &mut dyn Build,
    x: TensorId,
    weight: TensorId,
    bias: Option<TensorId>,
) -> Result<TensorId> {
    let mut shape = g.ty(x).shape.clone();
    let weight_shape = g.ty(weight).shape.clone();
    let (c_in, c_out) = match (shape.last(), &weight_shape[..]) {
        (Some(&last), &[c_out, c_in]) if c_in == last => (c_in, c_out),
        _ => {
            return Err(Error::operation(
                "linear",
                format!("x {shape:?} and weight {weight_shape:?} do not fit: [..., C], [out, C]"),
            ));
        }
    };
    let (samples, rows) = match &shape[..shape.len() - 1] {
        [] => (1, 1),
        [samples, rows @ ..] => (*samples, rows.iter().product()),
    };
    let tokens = g.reshape(x, &[samples, 1, rows, c_in])?;
    let kernel = g.reshape(weight, &[c_out, c_in, 1, 1])?;
    let mut inputs = vec![tokens, kernel];
    inputs.extend(bias);
    let y = g.push(Arc::new(Conv2d::pointwise(bias.is_some())), &inputs)?[0];
    *shape.last_mut().expect("at least one dimension") = c_out;
    g.reshape(y, &shape)
}
