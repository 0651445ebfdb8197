//! Convolutions of few channels, and gradients of their weights, as products of [`Patches`]: on tensor cores a piece of
//! channels that is mostly empty costs as much as a full one, and so does each tap of it.

use super::form::{Direction, Form, Operands};
use super::grad::{Conv2dWgrad, Patched};
use super::tiles::{Extras, TiledConv2d};
use crate::device::{DType, TensorType};
use crate::ops::patches::{Patches, are_worth_it};

/// The patches, unless they would have more elements than a tensor may.
fn countable(patches: Patches, batch: usize, channels: usize) -> Option<Patches> {
    let sizes = [batch, patches.output[0], patches.output[1], patches.elements(channels)];
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
        let apart = conv.transposed && conv.stride != [1, 1];
        let operands = Operands { second: false, ..self.form.operands };
        if !half || apart || !is_plain(operands) {
            return None;
        }
        if !are_worth_it(conv.c_in(), conv.kernel) {
            return None;
        }
        let [kh, kw] = conv.kernel.map(|taps| taps as isize);
        let [top, left] = conv.padding.map(|zeros| zeros as isize);
        let patches = Patches {
            kernel: conv.kernel,
            stride: conv.stride,
            padding: if conv.transposed { [kh - 1 - top, kw - 1 - left] } else { [top, left] },
            output: conv.output,
            turned: conv.transposed,
        };
        let form = Form {
            stride: [1, 1],
            padding: [0; 4],
            direction: Direction::Forward,
            operands,
            ..self.form
        };
        let patches = countable(patches, conv.batch, conv.c_in())?;
        let mut pointwise = self.clone();
        pointwise.form = form;
        pointwise.pack.patched = true;
        Some((patches, pointwise))
    }
}

impl Conv2dWgrad {
    /// What is to be read instead of one of its inputs, of which the number is given, and the gradient of the 1×1
    /// convolution that reads that; `None` where it isn't worth it, or x has few channels and isn't read as it is.
    pub fn of_patches(&self, inputs: &[&TensorType]) -> Option<(usize, Patches, Conv2dWgrad)> {
        let conv = self.conv(inputs).ok()?;
        let whole = |channels: usize| channels.is_multiple_of(super::piece(DType::F16));
        if inputs[0].dtype != DType::F16 || self.siblings > 0 || self.patched != Patched::Neither {
            return None;
        }
        let [kh, kw] = self.kernel;
        let [top, bottom, left, right] = self.padding;
        let pointwise =
            Conv2dWgrad { stride: [1, 1], padding: [0; 4], kernel: [1, 1], ..self.clone() };
        let worth_it = |channels| are_worth_it(channels, self.kernel);
        if is_plain(self.operands) && worth_it(conv.c_in()) && whole(conv.c_out) {
            let patches = Patches {
                kernel: self.kernel,
                stride: self.stride,
                padding: [top as isize, left as isize],
                output: conv.output,
                turned: false,
            };
            let patches = countable(patches, conv.batch, conv.c_in())?;
            let patched = Patched::Source { kernel: self.kernel, channels: conv.c_in() };
            return Some((0, patches, Conv2dWgrad { patched, ..pointwise }));
        }
        // The sums of dy for the bias are those of a tap that reads all of it.
        let reaches = !self.bias || (top + bottom < kh && left + right < kw);
        let sources = conv.channels.into_iter().all(whole) && !conv.upsample;
        if self.stride == [1, 1] && sources && reaches && worth_it(conv.c_out) {
            let patches = Patches {
                kernel: self.kernel,
                stride: [1, 1],
                padding: [kh as isize - 1 - top as isize, kw as isize - 1 - left as isize],
                output: conv.input,
                turned: true,
            };
            let patches = countable(patches, conv.batch, conv.c_out)?;
            let patched = Patched::Gradient {
                kernel: self.kernel,
                channels: conv.c_out,
                bias_tap: top * kw + left,
            };
            let dy = self.operands.weight_index();
            return Some((dy, patches, Conv2dWgrad { patched, ..pointwise }));
        }
        None
    }
}
