//! Convolutions of few channels, and gradients of their weights, as products of [`Patches`]: on tensor cores a piece of
//! channels that is mostly empty costs as much as a full one, and so does each tap of it.

use super::form::{Direction, Form, Operands};
use super::grad::{Conv2dWgrad, Patched};
use super::tiles::{Extras, TiledConv2d};
use crate::device::cpu::conv::Conv;
use crate::device::{DType, TensorType};
use crate::ops::patches::{Patches, are_worth_it};

/// What a convolution is to read instead of its sources; `None` where it isn't worth it, would have more elements than
/// a tensor may, or a transposed convolution has a stride.
fn patches_of(conv: &Conv) -> Option<Patches> {
    let apart = conv.transposed && conv.stride != [1, 1];
    if apart || !are_worth_it(conv.c_in(), conv.kernel) {
        return None;
    }
    let padding = [0, 1].map(|axis| {
        let zeros = conv.padding[axis] as isize;
        if conv.transposed { conv.kernel[axis] as isize - 1 - zeros } else { zeros }
    });
    let patches = Patches {
        kernel: conv.kernel,
        stride: conv.stride,
        padding,
        output: conv.output,
        turned: conv.transposed,
    };
    let sizes = [conv.batch, conv.output[0], conv.output[1], patches.elements(conv.c_in())];
    let elements = sizes.into_iter().try_fold(1usize, usize::checked_mul)?;
    i32::try_from(elements).is_ok().then_some(patches)
}

/// What only reads one source as it is.
fn is_plain(operands: Operands) -> bool {
    let Operands { bias, shift, residual, .. } = operands;
    operands == Operands { bias, shift, residual, ..Operands::default() }
}

impl TiledConv2d {
    /// What is to be read of its source or both instead of them, and the 1×1 convolution that reads that; `None`
    /// where it isn't worth it, they aren't read as they are, or others are in the same launch.
    pub fn of_patches(&self, inputs: &[&TensorType]) -> Option<(Patches, TiledConv2d)> {
        let conv = self.conv(inputs).ok()?;
        let Extras { norm: None, siblings: 0, shortcut: None, .. } = self.extras else {
            return None;
        };
        let packed = self.pack();
        let half = packed.is_half() && !packed.patched && !packed.pair;
        let operands = Operands { second: false, ..self.form.operands };
        if !half || !is_plain(operands) {
            return None;
        }
        let patches = patches_of(&conv)?;
        let mut pointwise = self.clone();
        pointwise.form = Form {
            stride: [1, 1],
            padding: [0; 4],
            direction: Direction::Forward,
            operands,
            ..self.form
        };
        pointwise.pack.patched = true;
        Some((patches, pointwise))
    }
}

impl Conv2dWgrad {
    /// What is to be read instead of one of its inputs, of which the number is given, and the gradient of the 1×1
    /// convolution that reads that; `None` where it isn't worth it, or x has few channels and isn't read as it is.
    pub fn of_patches(&self, inputs: &[&TensorType]) -> Option<(usize, Patches, Conv2dWgrad)> {
        let conv = self.conv(inputs).ok()?;
        if inputs[0].dtype != DType::F16 || self.siblings > 0 || self.patched != Patched::Neither {
            return None;
        }
        let whole = |channels: usize| channels.is_multiple_of(super::piece(DType::F16));
        let kernel = self.kernel;
        let pointwise = |patched| Conv2dWgrad {
            stride: [1, 1],
            padding: [0; 4],
            kernel: [1, 1],
            patched,
            ..self.clone()
        };
        if is_plain(self.operands)
            && whole(conv.c_out)
            && let Some(patches) = patches_of(&conv)
        {
            let patched = Patched::Source { kernel, channels: conv.c_in() };
            return Some((0, patches, pointwise(patched)));
        }
        // The sums of dy for the bias are those of a tap that reads all of it.
        let ([kh, kw], [top, bottom, left, right]) = (kernel, self.padding);
        let reaches = !self.bias || (top + bottom < kh && left + right < kw);
        if conv.upsample || !conv.channels.into_iter().all(whole) || !reaches {
            return None;
        }
        // dy is read as by the input's gradient.
        let dgrad = Conv {
            transposed: true,
            input: conv.output,
            output: conv.input,
            channels: [conv.c_out, 0],
            c_out: conv.c_in(),
            ..conv
        };
        let patches = patches_of(&dgrad)?;
        let bias_tap = top * kw + left;
        let patched = Patched::Gradient { kernel, channels: conv.c_out, bias_tap };
        Some((self.operands.weight_index(), patches, pointwise(patched)))
    }
}
