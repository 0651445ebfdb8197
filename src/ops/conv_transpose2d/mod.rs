//! 2-D transposed convolution with PyTorch's weights `[in, out, kh, kw]`: the input gradient of the
//! convolution with the same weight, plus a bias.

mod cpu;

use super::conv2d::{Conv2d, Conv2dWgrad, Direction, Form, Operands};
use super::sum_pixels::{Rows, SumPixels};
use super::{Build, GradArgs, Lowered, Op, TensorId};
use crate::device::{Target, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// Inputs x \[B, H, W, C_in\], weight \[C_in, C_out, kh, kw\] and, with `bias`, \[C_out\]; output y
/// \[B, H_out, W_out, C_out\] with H_out = (H − 1)·stride + kh − top − bottom:
/// y\[b, iy·s + ky − p, ix·s + kx − p, o\] sums weight\[i, o, ky, kx\] · x\[b, iy, ix, i\].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvTranspose2d {
    pub stride: [usize; 2],
    /// Rows and columns taken away at the top, bottom, left and right.
    pub padding: [usize; 4],
    pub bias: bool,
}

impl ConvTranspose2d {
    /// With equal padding on both sides.
    pub fn new(stride: [usize; 2], padding: [usize; 2], bias: bool) -> ConvTranspose2d {
        let [vertical, horizontal] = padding;
        ConvTranspose2d { stride, padding: [vertical, vertical, horizontal, horizontal], bias }
    }

    fn form(&self) -> Form {
        Form {
            name: "conv_transpose2d",
            stride: self.stride,
            padding: self.padding,
            operands: Operands { bias: self.bias, ..Operands::default() },
            direction: Direction::TransposedSmallest,
        }
    }
}

impl Op for ConvTranspose2d {
    fn name(&self) -> &'static str {
        "conv_transpose2d"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![self.form().infer(inputs)?])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let mut grads = vec![None; args.inputs.len()];
        let Some(dy) = args.output_grads[0] else { return Ok(grads) };
        let (x, weight) = (args.inputs[0], args.inputs[1]);
        let (stride, padding) = (self.stride, self.padding);
        if args.needs[0] {
            let op = Conv2d { stride, padding, operands: Operands::default() };
            grads[0] = Some(graph.push(Arc::new(op), &[dy, weight])?[0]);
        }
        if args.needs[1] {
            let shape = &graph.ty(weight).shape;
            let kernel = [shape[2], shape[3]];
            let op = Conv2dWgrad::new(stride, padding, kernel, false);
            grads[1] = Some(graph.push(Arc::new(op), &[dy, x])?[0]);
        }
        if self.bias && args.needs[2] {
            grads[2] = Some(graph.push(Arc::new(SumPixels { rows: Rows::Flat }), &[dy])?[0]);
        }
        Ok(grads)
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.form().flops(inputs)
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { self.form().scratch(inputs) } else { 0 }
    }

    fn lower(&self, target: &Target, inputs: &[&TensorType]) -> Option<Lowered> {
        self.form().lower(target, inputs)
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        self.form().operands.half()
    }
}
