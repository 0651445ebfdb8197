//! 2-D convolution of NHWC tensors with PyTorch's weights `[out, in, kh, kw]`, its gradients, and
//! the forms that the CPU runs.
//!
//! [`Conv2d`] is both the plain convolution that models build and the rich one that fusion makes of
//! it: [`Operands`] says what else is read. Differentiation comes before fusion, so gradient rules
//! exist for the plain form (with bias, shift and residual).

mod cpu;
mod form;
mod geometry;
mod grad;
mod launch;
mod packed;
mod patched;
#[cfg(test)]
mod tests;
mod tiles;

pub use form::{Operand, Operands};
pub use grad::{Conv2dDgrad, Conv2dWgrad};
pub use packed::{Conv2dPack, PackedConv2d};
pub use tiles::{ExtraOutput, Norm, TilePack, TilePacks, TiledConv2d};

pub(crate) use cpu::run_unpacked;
pub(crate) use form::{Direction, Form};
pub(in crate::ops) use geometry::{PIECE, in_pieces, piece};

use super::sum_pixels::{Rows, SumPixels};
use super::{Build, GradArgs, Lowered, Op, TensorId};
use crate::device::{Target, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// y\[b, oy, ox, o\] = bias\[o\] + shift\[b, o\] + residual\[b, oy, ox, o\]
/// + Σ over ky, kx, i of weight\[o, i, ky, kx\] · z\[b, oy·s + ky − p, ox·s + kx − p, i\],
///
/// where z is what [`Operands`] makes of the sources and is 0 outside the image (after norm and
/// SiLU). Inputs in this order, those in brackets where their flag is set: x, \[x2\], \[affine\],
/// weight, \[bias\], \[shift\], \[residual\]; see [`Operand`] for shapes. Output: y
/// \[B, H_out, W_out, C_out\] with H_out = (H + top + bottom − kh) / stride + 1.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv2d {
    /// Vertical and horizontal.
    pub stride: [usize; 2],
    /// Zeros at the top, bottom, left and right.
    pub padding: [usize; 4],
    pub operands: Operands,
}

impl Conv2d {
    /// The plain convolution with equal padding on both sides; inputs x, weight, \[bias\].
    pub fn new(stride: [usize; 2], padding: [usize; 2], bias: bool) -> Conv2d {
        let [vertical, horizontal] = padding;
        Conv2d {
            stride,
            padding: [vertical, vertical, horizontal, horizontal],
            operands: Operands { bias, ..Operands::default() },
        }
    }

    /// Stride 1 and the padding that keeps the size, for an odd kernel.
    pub fn same(kernel: [usize; 2], bias: bool) -> Conv2d {
        Conv2d::new([1, 1], kernel.map(|k| k / 2), bias)
    }

    /// 1×1 with stride 1: a linear layer on the channels of each pixel.
    pub fn pointwise(bias: bool) -> Conv2d {
        Conv2d::new([1, 1], [0, 0], bias)
    }

    /// Where an operand stands among the inputs, `None` if its flag isn't set.
    pub fn index(&self, operand: Operand) -> Option<usize> {
        self.operands.index(operand)
    }

    pub(crate) fn form(&self) -> Form {
        Form {
            name: "conv2d",
            stride: self.stride,
            padding: self.padding,
            operands: self.operands,
            direction: Direction::Forward,
        }
    }
}

impl Op for Conv2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![self.form().infer(inputs)?])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let operands = self.operands;
        if operands.second || operands.affine || operands.silu || operands.upsample {
            return Err(Error::operation(
                "conv2d",
                "has no gradient once norm, concatenation or upsampling are fused into it; \
                 differentiate before fusing",
            ));
        }
        let mut grads = vec![None; args.inputs.len()];
        let Some(dy) = args.output_grads[0] else { return Ok(grads) };
        let weight = operands.weight_index();
        let (x, w) = (args.inputs[0], args.inputs[weight]);
        if args.needs[0] {
            let shape = &graph.ty(x).shape;
            let input = [shape[1], shape[2]];
            let op = Conv2dDgrad { stride: self.stride, padding: self.padding, input };
            grads[0] = Some(graph.push(Arc::new(op), &[dy, w])?[0]);
        }
        let bias = self.index(Operand::Bias).filter(|&index| args.needs[index]);
        if args.needs[weight] {
            let shape = &graph.ty(w).shape;
            let kernel = [shape[2], shape[3]];
            let op = Conv2dWgrad::new(self.stride, self.padding, kernel, bias.is_some());
            let outputs = graph.push(Arc::new(op), &[x, dy])?;
            grads[weight] = Some(outputs[0]);
            if let Some(bias) = bias {
                grads[bias] = Some(outputs[1]);
            }
        } else if let Some(bias) = bias {
            grads[bias] = Some(graph.push(Arc::new(SumPixels { rows: Rows::Flat }), &[dy])?[0]);
        }
        if let Some(shift) = self.index(Operand::Shift).filter(|&index| args.needs[index]) {
            let rows = Rows::of(graph.ty(dy), graph.ty(args.inputs[shift]));
            let rows = rows.expect("shapes were checked");
            grads[shift] = Some(graph.push(Arc::new(SumPixels { rows }), &[dy])?[0]);
        }
        if let Some(residual) = self.index(Operand::Residual).filter(|&index| args.needs[index]) {
            grads[residual] = Some(dy);
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

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        self.form().half(inputs)
    }
}
