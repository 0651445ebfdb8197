//! A small case for each kernel of convolutions: what checked mode has time for, where a launch of one large
//! tile takes seconds.

use super::{assert_launched, check_on_chips_of};
use crate::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad, Operands};
use crate::ops::testing::Host;

/// Enough channels for two slices on a chip of two multiprocessors.
#[test]
fn split_small_tiles() {
    let x = Host::random(&[1, 2, 3, 72], 1);
    let weight = Host::random(&[5, 72, 1, 1], 2);
    check_on_chips_of(2, &Conv2d::pointwise(false), &[&x, &weight], 1e-5);
}

#[test]
fn small_tiles() {
    let [x, weight] = [Host::random(&[1, 3, 4, 5], 1), Host::random(&[6, 5, 3, 3], 2)];
    check_on_chips_of(1, &Conv2d::same([3, 3], false), &[&x, &weight], 1e-5);
    let dgrad = Conv2dDgrad { stride: [2, 2], padding: [1; 4], input: [3, 4] };
    check_on_chips_of(1, &dgrad, &[&Host::random(&[1, 2, 2, 6], 3), &weight], 1e-5);
    assert_launched(&["conv2d_small_fwd", "conv2d_small_dgrad", "conv2d_pack_fwd"]);
}

/// 130 pixels and 65 channels are more than small tiles are for.
#[test]
fn large_tiles() {
    let [x, weight] = [Host::random(&[1, 10, 13, 3], 1), Host::random(&[65, 3, 1, 1], 2)];
    check_on_chips_of(1, &Conv2d::pointwise(false), &[&x, &weight], 1e-5);
    let weight = Host::random(&[3, 65, 2, 2], 2);
    let dgrad = Conv2dDgrad { stride: [1, 1], padding: [1, 0, 1, 0], input: [10, 13] };
    check_on_chips_of(1, &dgrad, &[&x, &weight], 1e-5);
    assert_launched(&["conv2d_large_fwd", "conv2d_large_dgrad"]);
}

/// By taps, of whole pieces without stride and in general, and by columns.
#[test]
fn weight_gradients() {
    let x = Host::random(&[1, 4, 5, 16], 1);
    for (kernel, stride, dy) in [(3, 1, [4, 5]), (3, 2, [2, 3]), (1, 1, [4, 5])] {
        let wgrad = Conv2dWgrad::new([stride; 2], [kernel / 2; 4], [kernel; 2], true);
        let dy = Host::random(&[1, dy[0], dy[1], 8], 2);
        check_on_chips_of(1, &wgrad, &[&x, &dy], 1e-5);
        if stride == 1 {
            let operands = Operands { affine: true, silu: true, ..Operands::default() };
            let affine = Host::random(&[1, 2, 16], 3);
            let wgrad = Conv2dWgrad { operands, ..wgrad };
            check_on_chips_of(1, &wgrad, &[&x, &affine, &dy], 1e-5);
        }
    }
    assert_launched(&["conv2d_taps_wgrad", "conv2d_taps_norm_wgrad", "conv2d_taps_general_wgrad"]);
    assert_launched(&["conv2d_columns_wgrad"]);
}
