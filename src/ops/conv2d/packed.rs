//! The CPU's forms: the packing of a weight, and a convolution that reads a packed weight.

use super::form::{Form, flops, output_type};
use crate::device::cpu::conv::{self, Pack};
use crate::device::{Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::Op;

/// Weight \[out, in, kh, kw\] → the packed form, a vector whose layout only [`PackedConv2d`]
/// knows. Depends on weights only, so it runs in `prepare`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dPack(pub Pack);

impl Op for Conv2dPack {
    fn name(&self) -> &'static str {
        "conv2d_pack"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        match inputs {
            [weight] if weight.shape == self.0.dims => Ok(vec![TensorType::f32([self.0.len()])]),
            _ => Err(Error::operation(
                "conv2d_pack",
                format!("takes a weight {:?}, not {inputs:?}", self.0.dims),
            )),
        }
    }
}

/// A convolution whose weight is packed; otherwise the inputs of the operation it comes from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PackedConv2d {
    pub(super) form: Form,
    pub(super) pack: Pack,
}

impl Op for PackedConv2d {
    fn name(&self) -> &'static str {
        self.form.name
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let conv = self.form.describe(inputs, self.pack.dims)?;
        let weight = inputs[self.form.operands.weight_index()];
        if weight.elements() != self.pack.len()
            || self.form.pack(&conv, self.pack.dims) != self.pack
        {
            return Err(Error::operation(
                self.form.name,
                format!("the packed weight {weight:?} doesn't belong to inputs {inputs:?}"),
            ));
        }
        Ok(vec![output_type(&conv, inputs[0].dtype)])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.form.describe(inputs, self.pack.dims).map_or(0, |conv| flops(&conv))
    }

    fn scratch(&self, _: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        self.form
            .describe(inputs, self.pack.dims)
            .map_or(0, |conv| conv::scratch(&conv, &self.pack))
    }
}
