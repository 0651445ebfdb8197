//! Convolutions to few channels, whose taps are columns of one product, beside the CPU's convolutions.

use super::patches::{in_half, tiled};
use super::{BOTH, compare_on, emulate};
use crate::device::{DType, Target, TensorType};
use crate::ops::Op;
use crate::ops::conv2d::{Conv2d, Operand, Operands, TiledConv2d};
use crate::ops::testing::Host;

/// What kernels make on `target` of a convolution with inputs of these types, with taps as columns, if that is possible.
fn narrow(target: &Target, op: &dyn Op, types: &[&TensorType]) -> Option<TiledConv2d> {
    let (conv, taken) = tiled(target, op, types);
    conv.narrow(&taken.iter().collect::<Vec<_>>())
}

/// Images that are no multiple of tiles, channels no multiple of pieces, chunks of which the last is not full, all that
/// may be added, kernels that reach as many pixels as warps have, and such whose padding is not even.
#[test]
pub(super) fn narrow_convolutions() {
    let added = Operands { bias: true, shift: true, residual: true, ..Operands::default() };
    let rich = Operands { second: true, affine: true, silu: true, ..added };
    for (size, [c1, c2, c_out], kernel, padding, operands) in [
        ([2, 9, 13], [24, 0, 3], [3, 3], [1, 1, 1, 1], added),
        ([1, 8, 17], [13, 20, 5], [3, 3], [0, 2, 1, 1], rich),
        ([2, 5, 6], [72, 208, 4], [3, 3], [1, 1, 1, 1], rich),
        ([1, 12, 7], [11, 0, 1], [2, 6], [1, 0, 3, 2], Operands { silu: true, ..added }),
        ([1, 11, 5], [16, 0, 3], [5, 3], [2, 2, 1, 1], Operands::default()),
    ] {
        let [b, h, w] = size;
        let [top, bottom, left, right] = padding;
        let [kh, kw] = kernel;
        let conv = Conv2d { stride: [1, 1], padding, operands };
        let y = [b, h + top + bottom + 1 - kh, w + left + right + 1 - kw, c_out];
        let inputs = operands.list().map(|operand| match operand {
            Operand::X => Host::random(&[b, h, w, c1], 1),
            Operand::X2 => Host::random(&[b, h, w, c2], 2),
            Operand::Affine => Host::random(&[b, 2, c1 + c2], 3),
            Operand::Weight => Host::random(&[c_out, c1 + c2, kh, kw], 4),
            Operand::Bias => Host::random(&[c_out], 5),
            Operand::Shift => Host::random(&[b, c_out], 6),
            Operand::Residual => Host::random(&y, 7),
        });
        let inputs: Vec<Host> = inputs.collect();
        let (mut half, want) = in_half(&conv, &inputs.iter().collect::<Vec<_>>());
        for target in BOTH {
            // As little shared memory as a chunk of one pair of pieces and the product need.
            let little = Target { shared_bytes: 32 << 10, ..target };
            for target in [target, little] {
                let types: Vec<&TensorType> = half.iter().map(|host| &host.ty).collect();
                let narrow = narrow(&target, &conv, &types).expect("few outputs");
                let weight = narrow.operands().weight_index();
                let packed = emulate(&target, 1, &narrow.pack(), &[&half[weight]], &[]).remove(0);
                let plain = std::mem::replace(&mut half[weight], packed);
                let given: Vec<&Host> = half.iter().collect();
                compare_on(&target, &narrow, &given, &[], &want, 2e-3);
                half[weight] = plain;
            }
        }
    }
}

#[test]
fn what_is_not_narrow() {
    let is = |conv: &Conv2d, x: [usize; 4], weight: [usize; 4]| {
        let x = TensorType { shape: x.to_vec(), dtype: DType::F16 };
        let types = [&x, &TensorType::f32(weight)];
        narrow(&Target::V100, conv, &types).is_some()
    };
    let same = |k| Conv2d::same([k, k], false);
    assert!(is(&same(3), [1, 9, 9, 32], [5, 32, 3, 3]));
    assert!(!is(&same(3), [1, 9, 9, 32], [6, 32, 3, 3]), "too many columns");
    assert!(!is(&same(1), [1, 9, 9, 32], [3, 32, 1, 1]), "no taps");
    assert!(!is(&same(5), [1, 9, 9, 32], [1, 32, 5, 5]), "a region of 144 pixels");
    let strided = Conv2d::new([2, 1], [1, 1], false);
    assert!(!is(&strided, [1, 9, 9, 32], [3, 32, 3, 3]), "a stride");
    assert!(!is(&same(3), [1, 9, 9, 4104], [3, 4104, 3, 3]), "more channels than fit");
    let two = Conv2d::new([1, 1], [0, 0], false);
    assert!(!is(&two, [1, 9, 9, 32], [3, 32, 2, 2]), "most of 32 columns empty");
}
