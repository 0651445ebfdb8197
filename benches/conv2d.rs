//! Convolutions as the CPU's programs run them: weights packed beforehand, norm, SiLU, bias, time
//! embedding and residual fused. `cargo bench --bench conv2d [-- FILTER]`; `RAYON_NUM_THREADS` and
//! `CYANEA_SIMD` choose threads and SIMD level. `benches/peers/` holds the PyTorch side.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use cyanea::device::cpu::{Cpu, CpuKernel, Io, Tensor, TensorMut};
use cyanea::device::{Target, TensorType};
use cyanea::ops::Op;
use cyanea::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad, Operands};
use std::hint::black_box;

/// Memory aligned to cache lines, like a session's.
struct Buffer {
    data: Vec<f32>,
    start: usize,
    shape: Vec<usize>,
}

impl Buffer {
    fn new(ty: &TensorType) -> Buffer {
        // Values that are neither zero nor alike.
        let value = |at: usize| ((at * 7919 % 1999) as f32 - 999.0) * 1e-3;
        let data: Vec<f32> = (0..ty.elements() + 16).map(value).collect();
        Buffer { start: data.as_ptr().align_offset(64), data, shape: ty.shape.clone() }
    }

    fn range(&self) -> std::ops::Range<usize> {
        self.start..self.start + self.shape.iter().product::<usize>()
    }

    fn read(&self) -> Tensor<'_> {
        Tensor { shape: &self.shape, data: &self.data[self.range()] }
    }

    fn write(&mut self) -> TensorMut<'_> {
        let range = self.range();
        TensorMut { shape: &self.shape, data: &mut self.data[range] }
    }
}

/// Runs an operation once, its output types inferred; returns what `time` makes of it.
fn with_operation(op: &dyn Op, inputs: &[Buffer], mut time: impl FnMut(&mut dyn FnMut())) {
    let types: Vec<TensorType> =
        inputs.iter().map(|buffer| TensorType::f32(buffer.shape.clone())).collect();
    let types: Vec<&TensorType> = types.iter().collect();
    let outputs = op.infer(&types).expect("shapes that fit");
    let output_types: Vec<&TensorType> = outputs.iter().collect();
    let scratch = op.scratch(&Target::CPU, &types, &output_types);
    let mut scratch = Buffer::new(&TensorType::f32([scratch]));
    let mut results: Vec<Buffer> = outputs.iter().map(Buffer::new).collect();
    let cpu = Cpu::shared();
    let _awake = cpu.awake();
    let inputs: Vec<Tensor> = inputs.iter().map(Buffer::read).collect();
    time(&mut || {
        let mut outputs: Vec<TensorMut> = results.iter_mut().map(Buffer::write).collect();
        let io = Io { inputs: &inputs, outputs: &mut outputs, scratch: scratch.write().data };
        CpuKernel::run(op, &cpu, io);
        black_box(&outputs[0].data[0]);
    });
}

/// One convolution: batch, height and width, channels in and out, kernel, stride.
type Case = (usize, usize, usize, usize, usize, usize);

const CASES: [Case; 20] = [
    (1, 64, 128, 128, 3, 1),
    (1, 64, 384, 128, 3, 1),
    (1, 32, 256, 256, 3, 1),
    (1, 32, 512, 256, 3, 1),
    (1, 16, 256, 256, 3, 1),
    (1, 16, 512, 256, 3, 1),
    (1, 8, 256, 256, 3, 1),
    (1, 8, 512, 256, 3, 1),
    (1, 64, 128, 128, 3, 2),
    (1, 64, 3, 128, 3, 1),
    (1, 64, 128, 3, 3, 1),
    (1, 16, 256, 768, 1, 1),
    (1, 32, 32, 32, 3, 1),
    (1, 16, 64, 64, 3, 1),
    (1, 8, 64, 64, 3, 1),
    (16, 32, 32, 32, 3, 1),
    (16, 16, 64, 64, 3, 1),
    (16, 8, 64, 64, 3, 1),
    (16, 32, 48, 48, 3, 1),
    (16, 8, 64, 192, 1, 1),
];

fn forward(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("conv2d");
    for (batch, size, c_in, c_out, kernel, stride) in CASES {
        let operands = Operands {
            affine: true,
            silu: kernel == 3,
            bias: true,
            shift: true,
            residual: true,
            ..Operands::default()
        };
        let padding = kernel / 2;
        let plain = Conv2d::new([stride; 2], [padding; 2], true);
        let op = Conv2d { operands, ..plain };
        let out = (size + 2 * padding - kernel) / stride + 1;
        let types = [
            TensorType::f32([batch, size, size, c_in]),
            TensorType::f32([batch, 2, c_in]),
            TensorType::f32([c_out, c_in, kernel, kernel]),
            TensorType::f32([c_out]),
            TensorType::f32([batch, c_out]),
            TensorType::f32([batch, out, out, c_out]),
        ];
        let references: Vec<&TensorType> = types.iter().collect();
        let flops = op.flops(&references, &[]);
        let lowered = op.lower(&Target::CPU, &references).expect("a form for the CPU");
        let mut inputs: Vec<Buffer> = types.iter().map(Buffer::new).collect();
        for (index, prepare) in &lowered.prepare {
            let packed = prepare.infer(&[&types[*index]]).expect("the weight's shape");
            let mut to = Buffer::new(&packed[0]);
            let io = Io {
                inputs: &[inputs[*index].read()],
                outputs: &mut [to.write()],
                scratch: &mut [],
            };
            CpuKernel::run(&**prepare, &Cpu::shared(), io);
            inputs[*index] = to;
        }
        group.throughput(Throughput::Elements(flops));
        let name = format!("{batch}x{size}x{size} {c_in}-{c_out} k{kernel} s{stride}");
        with_operation(&*lowered.op, &inputs, |run| {
            group.bench_function(&name, |bencher| bencher.iter(&mut *run));
        });
    }
}

fn gradients(criterion: &mut Criterion) {
    for (batch, size, c_in, c_out, kernel, stride) in CASES.into_iter().filter(|case| case.0 > 1) {
        let padding = [kernel / 2; 4];
        let x = TensorType::f32([batch, size, size, c_in]);
        let dy = TensorType::f32([batch, size / stride, size / stride, c_out]);
        let weight = TensorType::f32([c_out, c_in, kernel, kernel]);
        let stride = [stride; 2];
        let name = format!("{batch}x{size}x{size} {c_in}-{c_out} k{kernel}");
        let dgrad = Conv2dDgrad { stride, padding, input: [size; 2] };
        let inputs = [Buffer::new(&dy), Buffer::new(&weight)];
        // With the packing of the weight, which training repeats every step.
        with_operation(&dgrad, &inputs, |run| {
            criterion.bench_function(&format!("conv2d_dgrad/{name}"), |b| b.iter(&mut *run));
        });
        let wgrad = Conv2dWgrad { stride, padding, kernel: [kernel; 2], bias: true };
        let inputs = [Buffer::new(&x), Buffer::new(&dy)];
        with_operation(&wgrad, &inputs, |run| {
            criterion.bench_function(&format!("conv2d_wgrad/{name}"), |b| b.iter(&mut *run));
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).without_plots();
    targets = forward, gradients
}
criterion_main!(benches);
