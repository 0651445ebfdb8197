//! What forward, input-gradient and transposed convolutions have in common: operands and their
//! order, the shape rule, cost and lowering.

use super::{Conv2dPack, PackedConv2d};
use crate::device::cpu::conv::{self, Conv, Pack};
use crate::device::{DType, Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::Lowered;
use std::sync::Arc;

/// Which inputs a convolution has besides x and weight, and how it reads its sources.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Operands {
    /// A second source, concatenated behind x along the channels without being written.
    pub second: bool,
    /// Scale and shift of each sample and channel, applied while reading: the lazily normalised
    /// operand (GroupNorm's statistics and affine in one).
    pub affine: bool,
    /// SiLU while reading, after the affine.
    pub silu: bool,
    /// Read each source pixel as 2×2 pixels (nearest upsampling in the index).
    pub upsample: bool,
    pub bias: bool,
    /// A row added to all pixels of a sample (time embedding).
    pub shift: bool,
    /// A tensor of the output's shape that is added.
    pub residual: bool,
}

/// An input of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// \[B, H, W, C₁\]
    X,
    /// \[B, H, W, C₂\]
    X2,
    /// \[B or 1, 2, C₁ + C₂\]: scales, then shifts: z = scale·x + shift.
    Affine,
    /// \[C_out, C₁ + C₂, kh, kw\]
    Weight,
    /// \[C_out\]
    Bias,
    /// \[B or 1, C_out\]
    Shift,
    /// \[B, H_out, W_out, C_out\]
    Residual,
}

impl Operands {
    fn has(&self, operand: Operand) -> bool {
        match operand {
            Operand::X | Operand::Weight => true,
            Operand::X2 => self.second,
            Operand::Affine => self.affine,
            Operand::Bias => self.bias,
            Operand::Shift => self.shift,
            Operand::Residual => self.residual,
        }
    }

    /// All operands that are there, in the order of the inputs.
    pub fn list(&self) -> impl Iterator<Item = Operand> {
        let operands = *self;
        [
            Operand::X,
            Operand::X2,
            Operand::Affine,
            Operand::Weight,
            Operand::Bias,
            Operand::Shift,
            Operand::Residual,
        ]
        .into_iter()
        .filter(move |&operand| operands.has(operand))
    }

    /// Which inputs are float16 in half precision: sources and residual. What is added a row at a
    /// time, or normalises, stays float32, and so do weights until they are packed.
    pub fn half(&self) -> Vec<bool> {
        let half = |operand| {
            use Operand::*;
            matches!(operand, X | X2 | Residual)
        };
        self.list().map(half).collect()
    }

    /// Number of inputs.
    pub fn count(&self) -> usize {
        self.list().count()
    }

    /// Where an operand stands among the inputs.
    pub fn index(&self, operand: Operand) -> Option<usize> {
        self.list().position(|other| other == operand)
    }

    /// Where the weight stands.
    pub fn weight_index(&self) -> usize {
        1 + usize::from(self.second) + usize::from(self.affine)
    }
}

/// Which way a convolution goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Direction {
    Forward,
    /// From what a convolution put out to what it read, whose size is given.
    Transposed([usize; 2]),
    /// As before, to the smallest input that gives such an output.
    TransposedSmallest,
}

/// A convolution without its shapes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Form {
    pub name: &'static str,
    pub stride: [usize; 2],
    /// Top, bottom, left, right.
    pub padding: [usize; 4],
    pub operands: Operands,
    pub direction: Direction,
}

impl Form {
    fn refuse<T>(&self, what: String) -> Result<T> {
        Err(Error::operation(self.name, what))
    }

    /// Checks all shapes but the weight's, whose canonical dimensions are given, and describes the
    /// convolution.
    pub fn describe(&self, inputs: &[&TensorType], dims: [usize; 4]) -> Result<Conv> {
        let operands = self.operands;
        if inputs.len() != operands.count() {
            return self.refuse(format!(
                "takes {} inputs ({:?}), not {}",
                operands.count(),
                operands.list().collect::<Vec<_>>(),
                inputs.len()
            ));
        }
        let dtype = inputs[0].dtype;
        let halves = operands.half();
        for (index, ty) in inputs.iter().enumerate() {
            let wanted = if halves[index] { dtype } else { DType::F32 };
            // A packed weight has the type of the sources.
            let fits = ty.dtype == wanted || index == operands.weight_index();
            if dtype == DType::U32 || !fits {
                return self.refuse(format!(
                    "computes in float32, or on sources of float16, not on {ty:?}"
                ));
            }
        }
        if self.stride.contains(&0) {
            return self.refuse(format!("stride is {:?}; it must be at least 1", self.stride));
        }
        let x = inputs[0];
        let &[batch, height, width, first] = &x.shape[..] else {
            return self.refuse(format!("x is {x:?}; it must be [B, H, W, C]"));
        };
        if x.elements() == 0 || dims.contains(&0) {
            return self.refuse(format!("x {x:?} and weight {dims:?} must not be empty"));
        }
        let second = match operands.index(Operand::X2).map(|index| inputs[index]) {
            None => 0,
            Some(ty) if ty.shape.len() == 4 && ty.shape[..3] == x.shape[..3] && ty.shape[3] > 0 => {
                ty.shape[3]
            }
            Some(ty) => {
                return self
                    .refuse(format!("x2 is {ty:?}; only its channels may differ from {x:?}"));
            }
        };
        let transposed = self.direction != Direction::Forward;
        if transposed && operands.affine {
            return self.refuse("it is transposed, and reads its source as it is".into());
        }
        let [out, inner, kh, kw] = dims;
        let (c_in, c_out) = if transposed { (out, inner) } else { (inner, out) };
        if c_in != first + second {
            return self.refuse(format!(
                "the weight {dims:?} reads {c_in} channels, but the input has {}",
                first + second
            ));
        }
        let conv = Conv {
            batch,
            input: [height, width],
            upsample: operands.upsample,
            channels: [first, second],
            c_out,
            kernel: [kh, kw],
            stride: self.stride,
            padding: [self.padding[0], self.padding[2]],
            output: self.output([height, width], [kh, kw])?,
            transposed,
        };
        let rest = operands.list().zip(inputs).skip(1);
        for (operand, ty) in rest {
            let shape = &ty.shape[..];
            let rows = |row: &[usize]| {
                shape.len() == row.len() + 1
                    && (shape[0] == 1 || shape[0] == batch)
                    && shape[1..] == *row
            };
            let (fits, want) = match operand {
                Operand::Affine => (rows(&[2, c_in]), format!("[{batch} or 1, 2, {c_in}]")),
                Operand::Bias => (shape == [c_out], format!("[{c_out}]")),
                Operand::Shift => (rows(&[c_out]), format!("[{batch} or 1, {c_out}]")),
                Operand::Residual => {
                    let want = [batch, conv.output[0], conv.output[1], c_out];
                    (shape == want, format!("{want:?}"))
                }
                Operand::X | Operand::X2 | Operand::Weight => continue,
            };
            if !fits {
                return self.refuse(format!("{operand:?} is {ty:?}; it must be {want}"));
            }
        }
        Ok(conv)
    }

    /// Height and width of the output.
    fn output(&self, input: [usize; 2], kernel: [usize; 2]) -> Result<[usize; 2]> {
        let [top, bottom, left, right] = self.padding;
        let padding = [top + bottom, left + right];
        let shrink = |size: [usize; 2]| -> Result<[usize; 2]> {
            for axis in 0..2 {
                if kernel[axis] > size[axis] + padding[axis] {
                    return self.refuse(format!(
                        "the kernel {kernel:?} is larger than the image {size:?} with its padding \
                         {:?} (top, bottom, left, right)",
                        self.padding
                    ));
                }
            }
            Ok([0, 1]
                .map(|axis| (size[axis] + padding[axis] - kernel[axis]) / self.stride[axis] + 1))
        };
        match self.direction {
            Direction::Forward => {
                let up = usize::from(self.operands.upsample);
                shrink(input.map(|size| size << up))
            }
            Direction::Transposed(output) => {
                if shrink(output)? != input {
                    return self.refuse(format!(
                        "an image of {output:?} has no gradient of {input:?} with stride {:?} and \
                         padding {:?}",
                        self.stride, self.padding
                    ));
                }
                Ok(output)
            }
            Direction::TransposedSmallest => {
                let full = [0, 1].map(|axis| (input[axis] - 1) * self.stride[axis] + kernel[axis]);
                if full[0] <= padding[0] || full[1] <= padding[1] {
                    return self.refuse(format!(
                        "the padding {:?} leaves nothing of an output of {full:?}",
                        self.padding
                    ));
                }
                Ok([full[0] - padding[0], full[1] - padding[1]])
            }
        }
    }

    /// The shapes, from inputs with a canonical weight.
    pub fn conv(&self, inputs: &[&TensorType]) -> Result<Conv> {
        self.describe(inputs, self.dims(inputs)?)
    }

    pub fn dims(&self, inputs: &[&TensorType]) -> Result<[usize; 4]> {
        let Some(weight) = inputs.get(self.operands.weight_index()) else {
            return self.refuse(format!(
                "takes {} inputs ({:?}), not {}",
                self.operands.count(),
                self.operands.list().collect::<Vec<_>>(),
                inputs.len()
            ));
        };
        match <[usize; 4]>::try_from(&weight.shape[..]) {
            Ok(dims) if weight.dtype == DType::F32 => Ok(dims),
            _ => self.refuse(format!(
                "the weight is {weight:?}; it must be float32 and have 4 dimensions"
            )),
        }
    }

    pub fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType> {
        let conv = self.conv(inputs)?;
        Ok(output_type(&conv, inputs[0].dtype))
    }

    /// Which inputs are float16 in half precision; of a linear layer of rows none.
    pub fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        let weight = &inputs[self.operands.weight_index()].shape;
        match of_rows(inputs[0], &weight[2..]) {
            true => Vec::new(),
            false => self.operands.half(),
        }
    }

    pub fn flops(&self, inputs: &[&TensorType]) -> u64 {
        self.conv(inputs).map_or(0, |conv| flops(&conv))
    }

    pub fn pack(&self, conv: &Conv, dims: [usize; 4]) -> Pack {
        Pack::of(conv, dims)
    }

    /// Working memory of the form that isn't lowered: it packs the weight itself.
    pub fn scratch(&self, inputs: &[&TensorType]) -> usize {
        let Ok(conv) = self.conv(inputs) else { return 0 };
        let Ok(dims) = self.dims(inputs) else { return 0 };
        let pack = self.pack(&conv, dims);
        pack.len().next_multiple_of(16) + conv::scratch(&conv, &pack)
    }

    /// Everywhere a convolution reads a packed weight.
    pub fn lower(&self, target: &Target, inputs: &[&TensorType]) -> Option<Lowered> {
        if !target.is_cpu() {
            return self.lower_tiled(inputs);
        }
        let dims = self.dims(inputs).ok()?;
        let pack = self.pack(&self.describe(inputs, dims).ok()?, dims);
        Some(Lowered {
            op: Arc::new(PackedConv2d { form: *self, pack }),
            prepare: vec![(self.operands.weight_index(), Arc::new(Conv2dPack(pack)))],
        })
    }
}

/// Whether a convolution is a linear layer of rows ([`shape::is_rows`]), which it has as images of one
/// pixel.
pub(super) fn of_rows(x: &TensorType, kernel: &[usize]) -> bool {
    matches!(x.shape[..], [_, 1, 1, _]) && kernel == [1, 1]
}

/// The output has the sources' element type.
pub(super) fn output_type(conv: &Conv, dtype: DType) -> TensorType {
    let shape = vec![conv.batch, conv.output[0], conv.output[1], conv.c_out];
    TensorType { shape, dtype }
}

/// Twice the multiplications of the direct algorithm.
pub(super) fn flops(conv: &Conv) -> u64 {
    let places = if conv.transposed { conv.input } else { conv.output };
    [conv.batch, places[0], places[1], conv.c_in(), conv.c_out, conv.kernel[0], conv.kernel[1]]
        .iter()
        .fold(2, |flops, &factor| flops * factor as u64)
}
