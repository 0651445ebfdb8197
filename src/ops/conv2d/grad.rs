//! The gradients of a convolution.

use super::form::{Direction, Form, Operand, Operands, of_rows};
use crate::device::cpu::conv::{self, Conv};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::{LaunchArgs, Lowered, Op};

/// dx \[B, H, W, C_in\] from dy \[B, H_out, W_out, C_out\] and the weight \[C_out, C_in, kh, kw\]:
/// each element of dx is the sum of what it was multiplied with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dDgrad {
    /// Stride and padding of the convolution.
    pub stride: [usize; 2],
    pub padding: [usize; 4],
    /// Height and width of its input.
    pub input: [usize; 2],
}

impl Conv2dDgrad {
    pub(crate) fn form(&self) -> Form {
        Form {
            name: "conv2d_dgrad",
            stride: self.stride,
            padding: self.padding,
            operands: Operands::default(),
            direction: Direction::Transposed(self.input),
        }
    }
}

impl Op for Conv2dDgrad {
    fn name(&self) -> &'static str {
        "conv2d_dgrad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![self.form().infer(inputs)?])
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

/// Most convolutions of the same sources in one operation.
pub(super) const MOST_SIBLINGS: usize = 3;

/// Inputs x \[B, H, W, C_in\], those that `operands` adds as in [`Conv2d`](super::Conv2d), and dy
/// \[B, H_out, W_out, C_out\]; outputs dw \[C_out, C_in, kh, kw\] and, with `bias`, the sums of dy over
/// all pixels \[C_out\]. Of each sibling, a 1×1 convolution of the same sources, dy and outputs follow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Conv2dWgrad {
    /// Stride and padding of the convolution.
    pub stride: [usize; 2],
    pub padding: [usize; 4],
    pub kernel: [usize; 2],
    /// How the convolution reads its sources; the flags of what it adds behind the sums stay unset.
    pub operands: Operands,
    pub bias: bool,
    /// Convolutions beside the first.
    pub siblings: usize,
    /// Which input is made of patches; the fields above are of the 1×1 convolution that reads them.
    pub patched: Patched,
}

/// Which input of [`Conv2dWgrad`] [`Patches`](crate::ops::patches::Patches) take the place of, for targets with
/// kernels, with the kernel of the weight whose gradient is asked for, and its channels there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Patched {
    Neither,
    /// x: an element of a patch is an input channel and a tap.
    Source {
        kernel: [usize; 2],
        channels: usize,
    },
    /// dy: an element of a patch is an output channel and a tap, of which `bias_tap` reads all of dy.
    Gradient {
        kernel: [usize; 2],
        channels: usize,
        bias_tap: usize,
    },
}

impl Conv2dWgrad {
    /// Of a convolution of one plain source.
    pub fn new(
        stride: [usize; 2],
        padding: [usize; 4],
        kernel: [usize; 2],
        bias: bool,
    ) -> Conv2dWgrad {
        Conv2dWgrad {
            stride,
            padding,
            kernel,
            operands: Operands::default(),
            bias,
            siblings: 0,
            patched: Patched::Neither,
        }
    }

    /// With the gradient of another convolution of the same sources; `None` where they differ.
    pub(crate) fn with_sibling(&self, other: &Conv2dWgrad) -> Option<Conv2dWgrad> {
        let alike = *other == Conv2dWgrad { siblings: 0, ..self.clone() };
        let room = self.kernel == [1, 1] && self.siblings + 1 < MOST_SIBLINGS;
        (alike && room).then(|| Conv2dWgrad { siblings: self.siblings + 1, ..self.clone() })
    }

    /// The convolution whose weight's gradient this is, without its shapes.
    pub(super) fn form(&self) -> Form {
        Form {
            name: "conv2d_wgrad",
            stride: self.stride,
            padding: self.padding,
            operands: self.operands,
            direction: Direction::Forward,
        }
    }

    /// The weight whose gradient it is.
    pub(super) fn weight(&self, conv: &Conv) -> [usize; 4] {
        let [out, inner] = [conv.c_out, conv.c_in()];
        match self.patched {
            Patched::Neither => [out, inner, conv.kernel[0], conv.kernel[1]],
            Patched::Source { kernel: [kh, kw], channels } => [out, channels, kh, kw],
            Patched::Gradient { kernel: [kh, kw], channels, .. } => [channels, inner, kh, kw],
        }
    }

    /// The convolution whose weight's gradient this is.
    pub(crate) fn conv(&self, inputs: &[&TensorType]) -> Result<Conv> {
        let operands = self.operands;
        let Operands { bias: false, shift: false, residual: false, .. } = operands else {
            return Err(Error::operation(
                self.name(),
                format!("what is added behind the sums has no part in it: {operands:?}"),
            ));
        };
        let count = operands.count() + self.siblings;
        if inputs.len() != count {
            return Err(Error::operation(
                self.name(),
                format!(
                    "takes {count} inputs, {:?} with {} dy for the weight, not {}",
                    operands.list().collect::<Vec<_>>(),
                    1 + self.siblings,
                    inputs.len()
                ),
            ));
        }
        if self.siblings > 0 && (self.kernel != [1, 1] || self.siblings >= MOST_SIBLINGS) {
            return Err(Error::operation(
                self.name(),
                format!(
                    "takes {MOST_SIBLINGS} convolutions of 1×1 together, not {} of {:?}",
                    1 + self.siblings,
                    self.kernel
                ),
            ));
        }
        let (sources, gradients) = inputs.split_at(operands.weight_index());
        let dy = gradients[0];
        let channels = |ty: &TensorType| ty.shape.last().copied().unwrap_or(0);
        let x = sources[0];
        let second = operands.index(Operand::X2).map_or(0, |index| channels(sources[index]));
        let dims = [channels(dy), channels(x) + second, self.kernel[0], self.kernel[1]];
        let weight = TensorType { shape: dims.to_vec(), dtype: x.dtype };
        let with_weight: Vec<&TensorType> = sources.iter().copied().chain([&weight]).collect();
        let conv = self.form().describe(&with_weight, dims)?;
        let want = super::form::output_type(&conv, x.dtype);
        for &dy in gradients {
            if *dy != want {
                return Err(Error::operation(
                    self.name(),
                    format!(
                        "dy is {dy:?}; for x {x:?} and kernel {:?} it must be {want:?}",
                        self.kernel
                    ),
                ));
            }
        }
        Ok(conv)
    }
}

impl Op for Conv2dWgrad {
    fn name(&self) -> &'static str {
        "conv2d_wgrad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let weight = self.weight(&self.conv(inputs)?);
        let mut outputs = vec![TensorType::f32(weight)];
        if self.bias {
            outputs.push(TensorType::f32([weight[0]]));
        }
        Ok(vec![outputs; 1 + self.siblings].concat())
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        let each = 1 + self.siblings as u64;
        self.conv(inputs).map_or(0, |conv| {
            // Not of the zeros that patches end with.
            let weight: usize = self.weight(&conv).iter().product();
            let pixels = conv.batch * conv.output[0] * conv.output[1];
            2 * (pixels * weight) as u64 * each
        })
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if !target.is_cpu() {
            return self.gpu_scratch(target, inputs);
        }
        self.conv(inputs).map_or(0, |conv| {
            let (plain, source) = self.plain(&conv);
            source.next_multiple_of(16) + conv::wgrad_scratch(&plain)
        })
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { 0 } else { self.gpu_tickets(target, inputs) }
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        if of_rows(inputs[0], &self.kernel) {
            return Vec::new();
        }
        // Sources and dy; what normalises stays float32.
        let first = self.operands.list().map(|operand| operand != Operand::Affine);
        first.chain(std::iter::repeat_n(true, self.siblings)).collect()
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}
