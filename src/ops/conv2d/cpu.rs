//! CPU kernels of the convolutions: operands to slices; the work is in `device::cpu::conv`.

use super::form::{Form, Operand};
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

fn run_packed(
    form: &Form,
    pack: &Pack,
    cpu: &Cpu,
    weight: &[f32],
    io: Io<'_, '_>,
    scratch: &mut [f32],
) {
    let data =
        |operand| form.operands.index(operand).map_or(&[][..], |index| io.inputs[index].data);
    let source = Source {
        x: data(Operand::X),
        x2: data(Operand::X2),
        affine: data(Operand::Affine),
        silu: form.operands.silu,
    };
    let epilogue = Epilogue {
        bias: data(Operand::Bias),
        shift: data(Operand::Shift),
        residual: data(Operand::Residual),
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

impl CpuKernel for Conv2dWgrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (x, dy) = (io.inputs[0], io.inputs[1]);
        let conv = Conv {
            batch: x.shape[0],
            input: [x.shape[1], x.shape[2]],
            upsample: false,
            channels: [x.shape[3], 0],
            c_out: dy.shape[3],
            kernel: self.kernel,
            stride: self.stride,
            padding: [self.padding[0], self.padding[2]],
            output: [dy.shape[1], dy.shape[2]],
            transposed: false,
        };
        let args = Wgrad { x: x.data, dy: dy.data };
        conv::wgrad(cpu, &conv, &args, io.outputs[0].data, io.scratch);
        if self.bias {
            conv::column_sums(cpu, 1, conv.c_out, dy.data, io.outputs[1].data);
        }
    }
}
