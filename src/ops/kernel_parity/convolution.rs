//! Convolutions, with all that they may read and add, and their gradients.

use super::{check, check_on_chips_of};
use crate::device::Target;
use crate::ops::Op;
use crate::ops::conv_transpose2d::ConvTranspose2d;
use crate::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad, Operand, Operands};
use crate::ops::testing::{Host, run};

/// Image, channels in and out, kernel, stride, padding (top, bottom, left, right).
type Case = ([usize; 3], [usize; 2], [usize; 2], [usize; 2], [usize; 4]);

/// Odd sizes; more pixels, channels and terms than a tile has; asymmetric padding; a kernel wider
/// than high; strides that leave pixels unread.
const CASES: [Case; 7] = [
    ([2, 7, 5], [3, 5], [3, 3], [1, 1], [1, 1, 1, 1]),
    ([1, 9, 11], [35, 33], [3, 3], [1, 1], [1, 1, 1, 1]),
    ([3, 8, 7], [5, 6], [3, 3], [2, 2], [0, 1, 0, 1]),
    ([2, 9, 8], [4, 7], [3, 3], [2, 2], [1, 1, 1, 1]),
    ([2, 6, 5], [40, 3], [1, 1], [1, 1], [0, 0, 0, 0]),
    ([1, 6, 9], [3, 4], [2, 5], [1, 3], [0, 1, 2, 1]),
    ([5, 1, 1], [17, 65], [1, 1], [1, 1], [0, 0, 0, 0]),
];

#[test]
pub(super) fn plain_convolutions_and_gradients() {
    for ([b, h, w], [c_in, c_out], [kh, kw], stride, padding) in CASES {
        let x = Host::random(&[b, h, w, c_in], 1);
        let weight = Host::random(&[c_out, c_in, kh, kw], 2);
        let bias = Host::random(&[c_out], 3);
        let operands = Operands { bias: true, ..Operands::default() };
        let conv = Conv2d { stride, padding, operands };
        check(&conv, &[&x, &weight, &bias], 1e-5);
        let y = run(&conv, &[&x, &weight, &bias]).remove(0);
        let dy = Host::random(&y.ty.shape, 4);
        check(&Conv2dDgrad { stride, padding, input: [h, w] }, &[&dy, &weight], 1e-5);
        for bias in [false, true] {
            let wgrad = Conv2dWgrad::new(stride, padding, [kh, kw], bias);
            check(&wgrad, &[&x, &dy], 1e-5);
        }
    }
}

/// Rows of more taps than have their weights in registers at a time, and a number that is no multiple.
#[test]
fn rows_of_taps() {
    let x = Host::random(&[1, 6, 9, 5], 1);
    let weight = Host::random(&[4, 5, 2, 7], 2);
    let operands = Operands::default();
    let conv = Conv2d { stride: [1, 1], padding: [1, 0, 3, 3], operands };
    check(&conv, &[&x, &weight], 1e-5);
}

/// Enough pixels for the large tiles of tensor cores.
#[test]
pub(super) fn many_tiles() {
    let x = Host::random(&[1, 101, 101, 5], 1);
    let weight = Host::random(&[72, 5, 3, 3], 2);
    check(&Conv2d::same([3, 3], false), &[&x, &weight], 1e-5);
    let weight = Host::random(&[5, 72, 3, 3], 2);
    let dgrad = Conv2dDgrad { stride: [1, 1], padding: [1, 1, 1, 1], input: [101, 101] };
    check(&dgrad, &[&x, &weight], 1e-5);
}

/// Weight gradients that need several blocks, tiles of pixels and slices: 3×3 kernels by their taps, others
/// by columns; one sample a tile and several; strides whose columns of pixels are sorted.
#[test]
pub(super) fn weight_gradients() {
    for ([b, h, w], [c_in, c_out], [kh, kw], stride, padding) in [
        ([1, 19, 13], [24, 16], [3, 3], [1, 1], [1, 1, 1, 1]),
        ([3, 5, 4], [70, 65], [3, 3], [1, 1], [1, 1, 1, 1]),
        ([1, 9, 6], [17, 7], [3, 3], [1, 1], [1, 0, 2, 1]),
        ([1, 12, 33], [17, 9], [3, 3], [2, 2], [0, 1, 0, 1]),
        ([2, 7, 10], [15, 8], [3, 3], [1, 3], [2, 1, 0, 1]),
        ([1, 20, 21], [130, 136], [1, 1], [1, 1], [0, 0, 0, 0]),
        ([2, 21, 19], [24, 16], [3, 3], [2, 2], [1, 1, 1, 1]),
        ([2, 9, 20], [24, 16], [3, 3], [1, 2], [0, 1, 0, 1]),
        ([2, 13, 11], [136, 144], [1, 1], [1, 1], [0, 0, 0, 0]),
        ([1, 3, 5], [16, 8], [1, 1], [1, 1], [0, 0, 0, 0]),
        ([2, 7, 9], [9, 6], [1, 1], [2, 2], [0, 1, 0, 0]),
    ] {
        let x = Host::random(&[b, h, w, c_in], 1);
        let wgrad = Conv2dWgrad::new(stride, padding, [kh, kw], true);
        let size = |axis: usize, size: usize, kernel: usize| {
            (size + padding[2 * axis] + padding[2 * axis + 1] - kernel) / stride[axis] + 1
        };
        let dy = Host::random(&[b, size(0, h, kh), size(1, w, kw), c_out], 2);
        check(&wgrad, &[&x, &dy], 1e-5);
    }
}

/// Weight gradients whose source is concatenated, normalised and upsampled while it is read.
#[test]
pub(super) fn rich_weight_gradients() {
    let operands =
        Operands { second: true, affine: true, silu: true, upsample: true, ..Operands::default() };
    for (kernel, [first, second], rows) in [(3, [8, 16], 2), (3, [11, 6], 1), (5, [4, 3], 2)] {
        let x = Host::random(&[2, 5, 3, first], 1);
        let x2 = Host::random(&[2, 5, 3, second], 2);
        let affine = Host::random(&[rows, 2, first + second], 3);
        let dy = Host::random(&[2, 10, 6, 8], 4);
        let padding = [kernel / 2; 4];
        let plain = Conv2dWgrad::new([1, 1], padding, [kernel; 2], false);
        let wgrad = Conv2dWgrad { operands, ..plain };
        check(&wgrad, &[&x, &x2, &affine, &dy], 1e-5);
    }
    let operands = Operands { second: true, upsample: true, ..Operands::default() };
    let taps = Conv2dWgrad::new([1, 1], [1; 4], [3, 3], true);
    let wgrad = Conv2dWgrad { operands, ..taps.clone() };
    let (x, x2) = (Host::random(&[2, 5, 3, 16], 1), Host::random(&[2, 5, 3, 8], 2));
    check(&wgrad, &[&x, &x2, &Host::random(&[2, 10, 6, 8], 3)], 1e-5);
    let strided = Conv2dWgrad { operands, ..Conv2dWgrad::new([3, 2], [1; 4], [3, 3], true) };
    check(&strided, &[&x, &x2, &Host::random(&[2, 4, 3, 8], 3)], 1e-5);
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let wgrad = Conv2dWgrad { operands, ..Conv2dWgrad::new([1, 1], [0; 4], [1, 1], true) };
    let (x, affine) = (Host::random(&[3, 4, 2, 16], 1), Host::random(&[3, 2, 16], 2));
    check(&wgrad, &[&x, &affine, &Host::random(&[3, 4, 2, 5], 3)], 1e-5);
    let shared = Host::random(&[1, 2, 16], 2);
    for affine in [&affine, &shared] {
        check(&wgrad, &[&x, affine, &Host::random(&[3, 4, 2, 8], 3)], 1e-5);
    }
    // Several samples a tile, one that is no multiple of it, several blocks, a normalisation without SiLU.
    for (size, [first, second], silu) in
        [([5, 4, 4], [24, 16], true), ([2, 19, 13], [24, 8], true), ([1, 9, 6], [40, 8], false)]
    {
        let [b, h, w] = size;
        let operands = Operands { second: true, affine: true, silu, ..Operands::default() };
        let source = |channels, seed| Host::random(&[b, h, w, channels], seed);
        let affine = Host::random(&[b, 2, first + second], 3);
        let inputs = [&source(first, 1), &source(second, 2), &affine, &source(72, 4)];
        let pointwise = Conv2dWgrad::new([1, 1], [0; 4], [1, 1], true);
        for plain in [&taps, &pointwise] {
            check(&Conv2dWgrad { operands, ..plain.clone() }, &inputs, 1e-5);
        }
    }
}

/// Gradients of up to three weights that multiplied the same sources, with and without biases.
#[test]
pub(super) fn sibling_weight_gradients() {
    for (siblings, normalised, bias, channels) in
        [(1, false, false, [10, 7]), (2, true, true, [24, 136]), (2, false, true, [40, 8])]
    {
        let [c_in, c_out] = channels;
        let operands = Operands { affine: normalised, ..Operands::default() };
        let plain = Conv2dWgrad::new([1, 1], [0; 4], [1, 1], bias);
        let wgrad = Conv2dWgrad { operands, siblings, ..plain };
        let mut inputs = vec![Host::random(&[3, 5, 9, c_in], 1)];
        inputs.extend(normalised.then(|| Host::random(&[3, 2, c_in], 2)));
        inputs.extend((0..=siblings).map(|at| Host::random(&[3, 5, 9, c_out], 3 + at as u64)));
        check(&wgrad, &inputs.iter().collect::<Vec<_>>(), 1e-5);
    }
}

/// More input channels than a block holds at a time, on images of one tile: their sums are split.
#[test]
pub(super) fn split_sums() {
    let x = Host::random(&[2, 5, 6, 200], 1);
    let weight = Host::random(&[70, 200, 3, 3], 2);
    check(&Conv2d::same([3, 3], false), &[&x, &weight], 1e-5);
    let weight = Host::random(&[70, 200, 1, 1], 2);
    check(&Conv2d::pointwise(false), &[&x, &weight], 1e-5);
}

#[test]
pub(super) fn transposed_convolutions() {
    let x = Host::random(&[2, 3, 5, 7], 1);
    let (weight, bias) = (Host::random(&[7, 34, 4, 3], 2), Host::random(&[34], 3));
    check(&ConvTranspose2d::new([2, 2], [1, 1], true), &[&x, &weight, &bias], 1e-5);
    check(&ConvTranspose2d::new([2, 3], [0, 0], false), &[&x, &weight], 1e-5);
}

/// Two sources, normalised while they are read, upsampled in the index, with everything added.
#[test]
pub(super) fn rich_convolutions() {
    let random = |operand: Operand, rows: usize| match operand {
        Operand::X => Host::random(&[2, 5, 3, 4], 1),
        Operand::X2 => Host::random(&[2, 5, 3, 3], 2),
        Operand::Affine => Host::random(&[rows, 2, 7], 3),
        Operand::Weight => Host::random(&[9, 7, 3, 3], 4),
        Operand::Bias => Host::random(&[9], 5),
        Operand::Shift => Host::random(&[rows, 9], 6),
        Operand::Residual => Host::random(&[2, 10, 6, 9], 7),
    };
    let operands = Operands {
        second: true,
        affine: true,
        silu: true,
        upsample: true,
        bias: true,
        shift: true,
        residual: true,
    };
    let conv = Conv2d { stride: [1, 1], padding: [1, 1, 1, 1], operands };
    for rows in [1, 2] {
        let inputs: Vec<Host> = operands.list().map(|operand| random(operand, rows)).collect();
        let inputs: Vec<&Host> = inputs.iter().collect();
        check(&conv, &inputs, 1e-5);
    }
}

/// A sample has the same bits in any batch, where that is asked for: a batch of 3 would not split the
/// sums that one sample needs split on a chip so small.
#[test]
pub(super) fn the_batch_does_not_matter() {
    let conv = Conv2d::same([3, 3], false);
    let x = Host::random(&[3, 5, 7, 72], 1);
    let weight = Host::random(&[6, 72, 3, 3], 2);
    let target = Target { batch_invariant: true, multiprocessors: 4, ..Target::H100 };
    let emulate =
        |x: &Host| super::emulate_lowered(&target, 1, &conv as &dyn Op, &[x, &weight], &[]);
    let together = emulate(&x).remove(0);
    for sample in 0..3 {
        let alone = emulate(&x.samples(sample..sample + 1)).remove(0);
        let part = together.samples(sample..sample + 1);
        crate::ops::testing::assert_same_bits(&part, &alone, "conv2d");
    }
}

/// By taps, of a source that is used as it is and of a normalised one.
pub(super) fn weight_gradients_on_chips_of(
    multiprocessors: u32,
    [batch, height, width]: [usize; 3],
) {
    let plain = Conv2dWgrad::new([1; 2], [1; 4], [3; 2], true);
    let x = Host::random(&[batch, height, width, 16], 1);
    let dy = Host::random(&[batch, height, width, 8], 2);
    check_on_chips_of(multiprocessors, &plain, &[&x, &dy], 1e-5);
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let affine = Host::random(&[batch, 2, 16], 3);
    let normalised = Conv2dWgrad { operands, ..plain };
    check_on_chips_of(multiprocessors, &normalised, &[&x, &affine, &dy], 1e-5);
}

/// Parts of one image and several images each, and parts that are joined in groups.
#[test]
fn weight_gradients_of_many_tiles() {
    weight_gradients_on_chips_of(1, [1, 9, 77]);
    weight_gradients_on_chips_of(1, [21, 4, 5]);
    weight_gradients_on_chips_of(8, [52, 4, 5]);
}
