//! Operations that move or combine elements, and sums over pixels.

use super::{BOTH, check, check_state, compare, rounded};
use crate::device::cpu::Cpu;
use crate::device::{DType, Precision, TensorType};
use crate::ops::cast::Cast;
use crate::ops::combine::Combine;
use crate::ops::concat::{Concat, PadChannels, SliceChannels};
use crate::ops::copy::Copy;
use crate::ops::dropout::Dropout;
use crate::ops::place_columns::PlaceColumns;
use crate::ops::preconditioned::Preconditioned;
use crate::ops::resample::{Pool2d, UpsampleNearest2d};
use crate::ops::row_linear::RowLinear;
use crate::ops::scale_add::ScaleAdd;
use crate::ops::state::{SAMPLE, STEP, StepState};
use crate::ops::sum_pixels::{Rows, SumPixels};
use crate::ops::testing::{Host, run, run_on};

#[test]
pub(super) fn add_and_mul() {
    let a = Host::random(&[3, 5, 4, 7], 1);
    for shape in [&[3, 5, 4, 7][..], &[7], &[1, 7], &[3, 7]] {
        let b = Host::random(shape, 2);
        check(&Combine::ADD, &[&a, &b], 0.0);
        check(&Combine::Sum([0.6, 0.8]), &[&a, &b], 0.0);
        check(&Combine::Product, &[&a, &b], 0.0);
    }
    let (a, b) = (Host::random(&[3, 301], 1), Host::random(&[1, 301], 2));
    check(&Combine::ADD, &[&a, &b], 0.0);
}

#[test]
pub(super) fn preconditioned() {
    let (x, output) = (Host::random(&[3, 5, 9, 7], 1), Host::random(&[3, 5, 9, 7], 2));
    for rows in [1, 3] {
        let (c_skip, c_out) = (Host::random(&[rows, 7], 3), Host::random(&[rows, 7], 4));
        check(&Preconditioned, &[&x, &output, &c_skip, &c_out], 0.0);
    }
}

/// Rounding to even, subnormal numbers, and what is too large.
#[test]
pub(super) fn casts() {
    let values = vec![0.1, -1.0, 2049.0, 2051.0, 6e-8, 1e-9, -65504.0, 65519.0, 7e4, -1e30];
    let x = Host::new(&[1, 10], values);
    check(&Cast { to: DType::F16 }, &[&x], 0.0);
    let x = Host {
        ty: TensorType::f16([1, 10]),
        data: run(&Cast { to: DType::F16 }, &[&x])[0].data.clone(),
    };
    assert_eq!(x.data[8], f32::INFINITY);
    assert_eq!(x.data[2..4], [2048.0, 2052.0]);
    check(&Cast { to: DType::F32 }, &[&x], 0.0);
}

#[test]
pub(super) fn scale_add() {
    let x = Host::random(&[3, 5, 7], 1);
    check(&ScaleAdd { scale: 0.7, offset: -0.3 }, &[&x], 1e-6);
}

#[test]
pub(super) fn dropout() {
    let x = Host::random(&[3, 5, 7, 6], 1);
    let mut state = StepState::new(9 << 32 | 4);
    (state.words[STEP], state.words[SAMPLE]) = (3, 12);
    let state = Host::bits(&[16], &state.words);
    check(&Dropout { share: 0.4, purpose: 5 }, &[&x, &state], 0.0);
}

#[test]
pub(super) fn channels() {
    let (a, b) = (Host::random(&[2, 3, 7, 5], 1), Host::random(&[2, 3, 7, 3], 2));
    for scale in [1.0, 0.7] {
        check(&Concat { scales: [scale, 1.0] }, &[&a, &b], 0.0);
        check(&SliceChannels { start: 1, channels: 3, scale }, &[&a], 0.0);
        check(&PadChannels { before: 2, after: 1, scale, value: 1.0 }, &[&a], 0.0);
    }
}

#[test]
pub(super) fn copies() {
    check(&Copy, &[&Host::random(&[3, 5, 7], 1)], 0.0);
    let op = PlaceColumns { columns: 9, column: 3 };
    let (x, table) = (Host::random(&[5, 4], 1), Host::random(&[5, 9], 2));
    check_state(&op, &[&x], &[table], 0.0);
}

#[test]
pub(super) fn resampling() {
    let x = Host::random(&[2, 6, 9, 5], 1);
    for factor in [1, 2, 3] {
        check(&UpsampleNearest2d { factor, scale: 0.5 }, &[&x], 0.0);
    }
    check(&Pool2d::average(3), &[&x], 1e-6);
    check(&Pool2d { factor: 3, scale: 1.0 }, &[&x], 1e-6);
    // Whole pieces.
    check(&Pool2d::average(2), &[&Host::random(&[2, 4, 6, 24], 2)], 1e-6);
}

#[test]
pub(super) fn sums_over_pixels() {
    let x = Host::random(&[3, 13, 11, 37], 1);
    for rows in [Rows::Samples, Rows::One, Rows::Flat] {
        check(&SumPixels { rows }, &[&x], 1e-5);
    }
    check(&SumPixels { rows: Rows::Flat }, &[&Host::random(&[5, 3], 2)], 1e-6);
}

/// Layers of more than a tile and of less, and widths that are no multiple of the terms that a block reads at once.
#[test]
pub(super) fn linear_layers_of_rows() {
    linear_layers(&[(3, 16, &[130]), (1, 7, &[1, 2])]);
}

/// Rows of more than a tile, and many layers.
#[test]
fn larger_linear_layers_of_rows() {
    linear_layers(&[
        (67, 100, &[70, 5, 64]),
        (5, 9, &[8, 4]),
        (2, 8, &[2, 1, 3, 2, 1, 1, 2, 3, 1, 2, 65]),
    ]);
}

/// Rows, width and channels of layers. Products of what float16 holds are exact on tensor cores, too.
fn linear_layers(cases: &[(usize, usize, &[usize])]) {
    let in_half = BOTH.map(|target| target.with_precision(Precision::Fp16).unwrap());
    for &(rows, width, channels) in cases {
        let random = |shape: &[usize], seed| {
            let data = rounded(&Host::random(shape, seed)).data;
            Host { ty: TensorType::f32(shape), data }
        };
        let x = random(&[rows, width], 1);
        let each = |shape: &dyn Fn(usize) -> Vec<usize>, seed: u64| -> Vec<Host> {
            channels.iter().zip(seed..).map(|(&c, seed)| random(&shape(c), seed)).collect()
        };
        let weights = each(&|c| vec![c, width], 10);
        let (biases, gradients) = (each(&|c| vec![c], 20), each(&|c| vec![rows, c], 30));
        let all = |first: &[Host], rest: &[Host]| [first, rest].concat();
        let x = std::slice::from_ref(&x);
        for (op, inputs) in [
            (RowLinear::Forward, all(&all(x, &weights), &biases)),
            (RowLinear::Dgrad, all(&gradients, &weights)),
            (RowLinear::Wgrad, all(x, &gradients)),
        ] {
            let inputs: Vec<&Host> = inputs.iter().collect();
            check(&op, &inputs, 1e-5);
            let want = run_on(&Cpu::new(2), &op, &inputs, &[]).unwrap();
            compare(&in_half, &op, &inputs, &[], &want, 1e-5);
        }
        // Scaled gradients beyond what float16 holds.
        let large = |host: &Host| Host {
            data: host.data.iter().map(|value| value * 131_072.0).collect(),
            ..host.clone()
        };
        let gradients: Vec<Host> = gradients.iter().map(large).collect();
        for (op, inputs) in
            [(RowLinear::Dgrad, all(&gradients, &weights)), (RowLinear::Wgrad, all(x, &gradients))]
        {
            let inputs: Vec<&Host> = inputs.iter().collect();
            let want = run_on(&Cpu::new(2), &op, &inputs, &[]).unwrap();
            compare(&in_half, &op, &inputs, &[], &want, 1e-5);
        }
    }
}
