//! Convolutions: weights packed beforehand; norm, SiLU, bias, time embedding and residual fused; and
//! their gradients.

use crate::harness::{Bench, activation, weight};
use cyanea::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad, Operands};

/// One convolution: batch, height and width, channels in and out, kernel, stride.
type Case = (usize, usize, usize, usize, usize, usize);

/// Of `ddpm-64` at batch 1 and 64, of `ddpm-32` at batch 1 and 16, and one for the emulator. Forward all are
/// normalised, so that of few channels none reads patches, as the first one of `ddpm-64` does; their gradients do.
const CASES: [Case; 30] = [
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
    (1, 8, 16, 16, 3, 1),
    (16, 32, 32, 32, 3, 1),
    (16, 16, 64, 64, 3, 1),
    (16, 8, 64, 64, 3, 1),
    (16, 32, 48, 48, 3, 1),
    (16, 8, 64, 192, 1, 1),
    (64, 64, 128, 128, 3, 1),
    (64, 32, 256, 256, 3, 1),
    (64, 16, 256, 256, 3, 1),
    (64, 8, 256, 256, 3, 1),
    (64, 64, 128, 128, 3, 2),
    (64, 64, 3, 128, 3, 1),
    (64, 64, 128, 3, 3, 1),
    (64, 32, 512, 256, 1, 1),
    (64, 16, 256, 256, 1, 1),
];

pub fn benches(bench: &mut Bench) {
    for case in CASES {
        // Minutes on a CPU.
        if case.0 == 64 && bench.on_cpu() {
            continue;
        }
        forward(bench, case);
        if case.0 > 1 || case.1 == 8 {
            gradients(bench, case);
        }
    }
}

fn forward(bench: &mut Bench, (batch, size, c_in, c_out, kernel, stride): Case) {
    let operands = Operands {
        affine: true,
        silu: kernel == 3,
        bias: true,
        shift: true,
        residual: true,
        ..Operands::default()
    };
    let padding = kernel / 2;
    let op = Conv2d { operands, ..Conv2d::new([stride; 2], [padding; 2], true) };
    let out = (size + 2 * padding - kernel) / stride + 1;
    let inputs = [
        activation([batch, size, size, c_in]),
        activation([batch, 2, c_in]),
        weight([c_out, c_in, kernel, kernel]),
        weight([c_out]),
        activation([batch, c_out]),
        activation([batch, out, out, c_out]),
    ];
    let name = format!("fwd {batch}x{size}x{size} {c_in}-{c_out} k{kernel} s{stride}");
    bench.time("conv2d", &name, op, &inputs, &[]);
}

fn gradients(bench: &mut Bench, (batch, size, c_in, c_out, kernel, stride): Case) {
    let padding = [kernel / 2; 4];
    let strided = if stride > 1 { format!(" s{stride}") } else { String::new() };
    let name = format!("{batch}x{size}x{size} {c_in}-{c_out} k{kernel}{strided}");
    let x = activation([batch, size, size, c_in]);
    let dy = || activation([batch, size / stride, size / stride, c_out]);
    let strides = [stride; 2];
    let dgrad = Conv2dDgrad { stride: strides, padding, input: [size; 2] };
    let inputs = [dy(), weight([c_out, c_in, kernel, kernel])];
    bench.time("conv2d", &format!("dgrad {name}"), dgrad, &inputs, &[]);
    let wgrad = Conv2dWgrad::new(strides, padding, [kernel; 2], true);
    bench.time("conv2d", &format!("wgrad {name}"), wgrad, &[x, dy()], &[]);
}
