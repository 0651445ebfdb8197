//! CPU kernels of the convolutions: operands to slices; the work is in `device::cpu::conv`.

use super::form::{Form, Operand, Operands};
use super::{Conv2d, Conv2dDgrad, Conv2dPack, Conv2dWgrad, PackedConv2d};
use crate::device::cpu::conv::{self, Args, Conv, Epilogue, Pack, Source, Wgrad};
use crate::device::cpu::{Cpu, CpuKernel, Io, Tensor};

/// The shapes again, as views carry them; the shape rule accepted them when the graph was built.
fn describe(form: &Form, inputs: &[Tensor], dims: [usize; 4]) -> Conv {
    let operand = |operand| form.operands.index(operand).map(|index| inputs[index].shape);
    let x = inputs[0].shape;
    let transposed = form.direction != super::Direction::Forward;
    Conv {
        batch: x[0],
        input: [x[1], x[2]],
        upsample: form.operands.upsample,
        channels: [x[3], operand(Operand::X2).map_or(0, |shape| shape[3])],
        c_out: if transposed { dims[1] } else { dims[0] },
        kernel: [dims[2], dims[3]],
        stride: form.stride,
        padding: [form.padding[0], form.padding[2]],
        output: [0, 0],
        transposed,
    }
}

/// An operand's elements; empty where it is absent.
fn data<'a>(form: &Form, inputs: &[Tensor<'a>], operand: Operand) -> &'a [f32] {
    form.operands.index(operand).map_or(&[], |index| inputs[index].data)
}

fn source<'a>(form: &Form, inputs: &[Tensor<'a>]) -> Source<'a> {
    Source {
        x: data(form, inputs, Operand::X),
        x2: data(form, inputs, Operand::X2),
        affine: data(form, inputs, Operand::Affine),
        silu: form.operands.silu,
    }
}

fn run_packed(
    form: &Form,
    pack: &Pack,
    cpu: &Cpu,
    weight: &[f32],
    io: Io<'_, '_>,
    scratch: &mut [f32],
) {
    let source = source(form, io.inputs);
    let epilogue = Epilogue {
        bias: data(form, io.inputs, Operand::Bias),
        shift: data(form, io.inputs, Operand::Shift),
        residual: data(form, io.inputs, Operand::Residual),
    };
    let y = &mut io.outputs[0];
    let conv = Conv { output: [y.shape[1], y.shape[2]], ..describe(form, io.inputs, pack.dims) };
    conv::run(cpu, &conv, pack, &Args { source, weight, epilogue }, y.data, scratch);
}

impl CpuKernel for PackedConv2d {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let weight = io.inputs[self.form.operands.weight_index()].data;
        let Io { inputs, outputs, scratch } = io;
        let io = Io { inputs, outputs, scratch: &mut [] };
        run_packed(&self.form, &self.pack, cpu, weight, io, scratch);
    }
}

/// Packs the weight into working memory first.
pub(crate) fn run_unpacked(form: &Form, cpu: &Cpu, io: Io<'_, '_>) {
    let weight = io.inputs[form.operands.weight_index()];
    let [out, inner, kh, kw] = *weight.shape else { unreachable!("the shape rule asks for four") };
    let dims = [out, inner, kh, kw];
    let y = &io.outputs[0];
    let conv = Conv { output: [y.shape[1], y.shape[2]], ..describe(form, io.inputs, dims) };
    let pack = form.pack(&conv, dims);
    let Io { inputs, outputs, scratch } = io;
    let (packed, scratch) = scratch.split_at_mut(pack.len().next_multiple_of(16));
    let packed = &mut packed[..pack.len()];
    conv::pack(cpu, &pack, weight.data, packed);
    run_packed(form, &pack, cpu, packed, Io { inputs, outputs, scratch: &mut [] }, scratch);
}

impl CpuKernel for Conv2d {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        run_unpacked(&self.form(), cpu, io);
    }
}

impl CpuKernel for Conv2dDgrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        run_unpacked(&self.form(), cpu, io);
    }
}

impl CpuKernel for Conv2dPack {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        conv::pack(cpu, &self.0, io.inputs[0].data, io.outputs[0].data);
    }
}

impl Conv2dWgrad {
    /// The convolution of one plain source, and the elements of that source where it has to be written
    /// out first.
    pub(super) fn plain(&self, conv: &Conv) -> (Conv, usize) {
        if self.operands == Operands::default() {
            return (*conv, 0);
        }
        let input = conv.input.map(|size| size << usize::from(conv.upsample));
        let plain = Conv { input, upsample: false, channels: [conv.c_in(), 0], ..*conv };
        (plain, conv.batch * input[0] * input[1] * conv.c_in())
    }
}

impl CpuKernel for Conv2dWgrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let form = self.form();
        let (_, gradients) = io.inputs.split_at(form.operands.weight_index());
        let dy = gradients[0];
        let [kh, kw] = self.kernel;
        let conv = describe(&form, io.inputs, [dy.shape[3], 0, kh, kw]);
        let conv = Conv { output: [dy.shape[1], dy.shape[2]], ..conv };
        let source = source(&form, io.inputs);
        let (plain, elements) = self.plain(&conv);
        let (written, scratch) = io.scratch.split_at_mut(elements.next_multiple_of(16));
        let written = &mut written[..elements];
        if elements > 0 {
            conv::write_source(cpu, &conv, &source, written);
        }
        let x = if elements > 0 { written } else { source.x };
        let each = io.outputs.chunks_mut(1 + usize::from(self.bias));
        for (dy, outputs) in gradients.iter().zip(each) {
            let args = Wgrad { x, dy: dy.data };
            conv::wgrad(cpu, &plain, &args, outputs[0].data, scratch);
            if let Some(bias) = outputs.get_mut(1) {
                conv::column_sums(cpu, 1, conv.c_out, dy.data, bias.data);
            }
        }
    }
}
