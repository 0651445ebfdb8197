//! Patches, and the convolutions and weights' gradients that read them, beside the CPU's convolutions.

use super::{BOTH, compare, compare_on, emulate, rounded};
use crate::device::cpu::Cpu;
use crate::device::{DType, Target, TensorType};
use crate::ops::Op;
use crate::ops::conv_transpose2d::ConvTranspose2d;
use crate::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad, Operand, Operands, TiledConv2d};
use crate::ops::patches::Patches;
use crate::ops::testing::{Host, run, run_on};
use std::any::Any;

/// Strides, asymmetric padding, more than a block's pixels, patches of one piece and of several that fill no block
/// evenly; gradients whose padding is negative.
#[test]
pub(super) fn patches() {
    for (size, kernel, stride, padding, output, turned) in [
        ([2, 7, 5, 3], [3, 3], [1, 1], [1, 1], [7, 5], false),
        ([1, 9, 8, 5], [3, 3], [2, 1], [0, 1], [4, 8], false),
        ([3, 4, 6, 1], [2, 4], [1, 3], [1, 2], [5, 2], false),
        ([2, 5, 7, 2], [3, 3], [1, 1], [1, 1], [5, 7], true),
        ([1, 6, 5, 4], [1, 5], [1, 1], [-1, 2], [4, 5], true),
        ([1, 40, 37, 3], [5, 7], [1, 1], [2, 3], [40, 37], false),
    ] {
        let op = Patches { kernel, stride, padding, output, turned };
        let x = Host::random(&size, 1);
        let half = rounded(&x);
        for source in [&x, &half] {
            let want = run(&op, &[source]);
            // Of few multiprocessors a block makes several rounds of pixels.
            let small = BOTH.map(|full| Target { multiprocessors: 1, ..full });
            compare(&BOTH, &op, &[source], &[], &want, 0.0);
            compare(&small, &op, &[source], &[], &want, 0.0);
        }
    }
    let op =
        Patches { kernel: [3, 3], stride: [1, 1], padding: [1, 1], output: [6, 5], turned: false };
    let (x, x2) = (Host::random(&[2, 6, 5, 3], 1), Host::random(&[2, 6, 5, 2], 2));
    compare(&BOTH, &op, &[&x, &x2], &[], &run(&op, &[&x, &x2]), 0.0);
}

/// Inputs as `op` takes them in half precision, and what the CPU makes of the same values.
pub(super) fn in_half(op: &dyn Op, inputs: &[&Host]) -> (Vec<Host>, Vec<Host>) {
    let types: Vec<&TensorType> = inputs.iter().map(|host| &host.ty).collect();
    let half = op.half(&types);
    let half = inputs.iter().enumerate().map(|(index, &host)| match half.get(index) {
        Some(true) => rounded(host),
        _ => host.clone(),
    });
    let half: Vec<Host> = half.collect();
    let plain: Vec<Host> = (half.iter().zip(inputs))
        .map(|(host, given)| Host { ty: given.ty.clone(), data: host.data.clone() })
        .collect();
    let want = run_on(&Cpu::new(2), op, &plain.iter().collect::<Vec<_>>(), &[]).unwrap();
    (half, want)
}

/// What kernels make on `target` of a convolution with inputs of these types, and what it takes.
pub(super) fn tiled(
    target: &Target,
    op: &dyn Op,
    types: &[&TensorType],
) -> (TiledConv2d, Vec<TensorType>) {
    let lowered = op.lower(target, types).expect("a form for kernels");
    let conv: &TiledConv2d = (&*lowered.op as &dyn Any).downcast_ref().expect("of tiles");
    let weight = conv.operands().weight_index();
    let mut taken: Vec<TensorType> = types.iter().map(|&ty| ty.clone()).collect();
    taken[weight] = conv.pack().infer(&[types[weight]]).unwrap().remove(0);
    (conv.clone(), taken)
}

/// A convolution, or an input's gradient, that reads patches of its source or of both.
fn check_convolution(op: &dyn Op, inputs: &[&Host]) {
    let (half, want) = in_half(op, inputs);
    for target in &BOTH {
        let types: Vec<&TensorType> = half.iter().map(|host| &host.ty).collect();
        let (conv, taken) = tiled(target, op, &types);
        let weight = conv.operands().weight_index();
        let taken: Vec<&TensorType> = taken.iter().collect();
        let (patches, pointwise) = conv.of_patches(&taken).expect("few channels");
        let sources: Vec<&Host> = half[..weight].iter().collect();
        let mut given = emulate(target, 1, &patches, &sources, &[]);
        given.extend(emulate(target, 1, &pointwise.pack(), &[&half[weight]], &[]));
        given.extend_from_slice(&half[weight + 1..]);
        compare_on(target, &pointwise, &given.iter().collect::<Vec<_>>(), &[], &want, 2e-3);
    }
}

#[test]
fn convolutions_of_patches() {
    for (size, [c_in, c_out], kernel, stride, padding) in [
        ([2, 9, 7], [3, 24], [3, 3], [1, 1], [1, 1, 1, 1]),
        ([1, 10, 21], [4, 70], [3, 3], [2, 1], [0, 1, 1, 1]),
        ([3, 6, 5], [1, 9], [5, 2], [1, 2], [2, 2, 0, 1]),
    ] {
        let [b, h, w] = size;
        let operands = Operands { bias: true, shift: true, residual: true, ..Operands::default() };
        let conv = Conv2d { stride, padding, operands };
        let [kh, kw] = kernel;
        let out = |axis: usize, size: usize, k: usize| {
            (size + padding[2 * axis] + padding[2 * axis + 1] - k) / stride[axis] + 1
        };
        let y = [b, out(0, h, kh), out(1, w, kw), c_out];
        let inputs = operands.list().map(|operand| match operand {
            Operand::X => Host::random(&[b, h, w, c_in], 1),
            Operand::Weight => Host::random(&[c_out, c_in, kh, kw], 2),
            Operand::Bias => Host::random(&[c_out], 3),
            Operand::Shift => Host::random(&[b, c_out], 4),
            _ => Host::random(&y, 5),
        });
        let inputs: Vec<Host> = inputs.collect();
        check_convolution(&conv, &inputs.iter().collect::<Vec<_>>());
    }
    let conv = Conv2d::same([3, 3], false);
    let operands = Operands { second: true, ..conv.operands };
    let [x, x2] = [4, 1].map(|channels| Host::random(&[2, 6, 5, channels], channels as u64));
    let weight = Host::random(&[16, 5, 3, 3], 3);
    check_convolution(&Conv2d { operands, ..conv }, &[&x, &x2, &weight]);
    for ([c_in, c_out], kernel, padding) in [
        ([24, 3], [3, 3], [1, 1, 1, 1]),
        ([9, 5], [3, 4], [0, 1, 2, 0]),
        ([16, 2], [2, 2], [2, 1, 0, 2]),
    ] {
        let [kh, kw] = kernel;
        let input = [8, 11];
        let [top, bottom, left, right] = padding;
        let dy = [2, 8 + top + bottom + 1 - kh, 11 + left + right + 1 - kw, c_out];
        let dgrad = Conv2dDgrad { stride: [1, 1], padding, input };
        let weight = Host::random(&[c_out, c_in, kh, kw], 2);
        check_convolution(&dgrad, &[&Host::random(&dy, 1), &weight]);
    }
    let (x, weight) = (Host::random(&[2, 5, 7, 3], 1), Host::random(&[3, 34, 4, 3], 2));
    let bias = Host::random(&[34], 3);
    check_convolution(&ConvTranspose2d::new([1, 1], [1, 1], true), &[&x, &weight, &bias]);
}

/// A weight's gradient that reads patches of one of its inputs, which is `of`.
fn check_gradient(wgrad: &Conv2dWgrad, inputs: &[&Host], of: usize) {
    let (half, want) = in_half(wgrad, inputs);
    let types: Vec<&TensorType> = half.iter().map(|host| &host.ty).collect();
    let (input, patches, pointwise) = wgrad.of_patches(&types).expect("few channels");
    assert_eq!(input, of, "the input that is patched");
    for target in &BOTH {
        let mut given = half.clone();
        given[input] = emulate(target, 1, &patches, &[&half[input]], &[]).remove(0);
        compare_on(target, &pointwise, &given.iter().collect::<Vec<_>>(), &[], &want, 2e-3);
    }
}

/// Of a convolution whose source is patched.
fn check_source([b, h, w]: [usize; 3], [c_in, c_out]: [usize; 2], wgrad: &Conv2dWgrad) {
    let Conv2dWgrad { stride, padding, kernel, .. } = wgrad;
    let out = |axis: usize, size: usize| {
        (size + padding[2 * axis] + padding[2 * axis + 1] - kernel[axis]) / stride[axis] + 1
    };
    let dy = Host::random(&[b, out(0, h), out(1, w), c_out], 2);
    check_gradient(wgrad, &[&Host::random(&[b, h, w, c_in], 1), &dy], 0);
}

/// Of one whose result's gradient is, with a source that goes through a normalisation or doesn't.
fn check_result(normalised: bool, [c_in, c_out]: [usize; 2], wgrad: &Conv2dWgrad) {
    let operands = Operands { affine: normalised, silu: normalised, ..Operands::default() };
    let wgrad = Conv2dWgrad { operands, ..wgrad.clone() };
    let ([top, bottom, left, right], [kh, kw]) = (wgrad.padding, wgrad.kernel);
    let dy = [2, 8 + top + bottom + 1 - kh, 11 + left + right + 1 - kw, c_out];
    let mut inputs = vec![Host::random(&[2, 8, 11, c_in], 1)];
    inputs.extend(normalised.then(|| Host::random(&[2, 2, c_in], 2)));
    inputs.push(Host::random(&dy, 3));
    check_gradient(&wgrad, &inputs.iter().collect::<Vec<_>>(), inputs.len() - 1);
}

#[test]
fn weight_gradients_of_patches() {
    let wgrad = |bias| Conv2dWgrad::new([1, 1], [1; 4], [3, 3], bias);
    check_source([1, 9, 7], [3, 24], &wgrad(true));
    check_result(true, [24, 3], &wgrad(true));
    check_result(false, [8, 2], &wgrad(false));
}

/// Strides, asymmetric padding, other kernels, several blocks.
#[test]
fn larger_weight_gradients_of_patches() {
    for bias in [false, true] {
        let wgrad = |stride, padding, kernel| Conv2dWgrad::new(stride, padding, kernel, bias);
        check_source([2, 9, 7], [3, 24], &wgrad([1, 1], [1; 4], [3, 3]));
        check_source([1, 10, 21], [4, 136], &wgrad([2, 1], [0, 1, 1, 1], [3, 3]));
        check_source([3, 6, 5], [1, 16], &wgrad([1, 2], [2, 2, 0, 1], [5, 2]));
        check_result(false, [24, 3], &wgrad([1, 1], [1; 4], [3, 3]));
        check_result(true, [136, 3], &wgrad([1, 1], [1; 4], [3, 3]));
        check_result(true, [16, 2], &wgrad([1, 1], [0, 1, 2, 0], [3, 4]));
    }
}

/// Where taps are more than what they would fill, x goes through something, or no tap reads all of dy.
#[test]
fn what_is_not_patched() {
    let half = |shape: &[usize]| TensorType { shape: shape.to_vec(), dtype: DType::F16 };
    let patched = |wgrad: &Conv2dWgrad, x: &[usize], dy: &[usize]| {
        wgrad.of_patches(&[&half(x), &half(dy)]).is_some()
    };
    let plain = Conv2dWgrad::new([1, 1], [1; 4], [3, 3], true);
    assert!(patched(&plain, &[1, 8, 8, 7], &[1, 8, 8, 16]));
    assert!(!patched(&plain, &[1, 8, 8, 8], &[1, 8, 8, 16]), "whole pieces");
    assert!(!patched(&plain, &[1, 8, 8, 7], &[1, 8, 8, 9]), "dy isn't read by pieces");
    let pointwise = Conv2dWgrad::new([1, 1], [0; 4], [1, 1], true);
    assert!(!patched(&pointwise, &[1, 8, 8, 3], &[1, 8, 8, 16]), "no taps");
    let wide = Conv2dWgrad::new([1, 1], [2; 4], [3, 3], true);
    assert!(!patched(&wide, &[1, 8, 8, 16], &[1, 10, 10, 3]), "no tap reads all of dy");
    let without_bias = Conv2dWgrad { bias: false, ..wide };
    assert!(patched(&without_bias, &[1, 8, 8, 16], &[1, 10, 10, 3]));
    // More elements than a tensor may have, though neither x nor y has.
    let (x, dy) = (half(&[64, 1024, 1024, 4]), half(&[64, 1024, 1024, 8]));
    assert!(plain.of_patches(&[&x, &dy]).is_none());
    let single = |op: &Conv2dWgrad| {
        op.of_patches(&[&TensorType::f32([1, 8, 8, 3]), &TensorType::f32([1, 8, 8, 16])])
    };
    assert!(single(&plain).is_none(), "float32");
}
