//! A small case for each kernel of convolutions: what checked mode has time for, where a launch of one large
//! tile takes seconds.

use super::{
    BOTH, LAUNCHED, assert_launched, check_half, check_on_chips_of, compare_on, emulate_lowered,
    rounded,
};
use crate::device::Target;
use crate::ops::Op;
use crate::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad, Operands};
use crate::ops::testing::{Host, assert_same_bits, run};

/// Enough channels for two slices on a chip of two multiprocessors.
#[test]
fn split_small_tiles() {
    let x = Host::random(&[1, 2, 3, 72], 1);
    let weight = Host::random(&[5, 72, 1, 1], 2);
    check_on_chips_of(2, &Conv2d::pointwise(false), &[&x, &weight], 1e-5);
}

/// Tiles of 16, 32 and 64 channels.
#[test]
pub(super) fn small_tiles() {
    for channels in [6, 20, 40] {
        let [x, weight] = [Host::random(&[1, 3, 4, 5], 1), Host::random(&[channels, 5, 3, 3], 2)];
        check_on_chips_of(1, &Conv2d::same([3, 3], false), &[&x, &weight], 1e-5);
        let dgrad = Conv2dDgrad { stride: [2, 2], padding: [1; 4], input: [3, 4] };
        let [dy, weight] = [Host::random(&[1, 2, 2, 6], 3), Host::random(&[6, channels, 3, 3], 4)];
        check_on_chips_of(1, &dgrad, &[&dy, &weight], 1e-5);
    }
    assert_launched("f32", &["conv2d_small_fwd", "conv2d_small_dgrad", "conv2d_pack_fwd"]);
    assert_launched("f16", &["conv2d_small16_fwd", "conv2d_small16_dgrad", "conv2d_pack_fwd"]);
    assert_launched("f16", &["conv2d_small32_fwd", "conv2d_small32_dgrad"]);
    assert_launched("f16", &["conv2d_small64_fwd", "conv2d_small64_dgrad"]);
}

/// Small tiles of float16 go through chunks of channels, in one part and in several, where there is shared memory for
/// two at a time, for one, and for one of half as many channels. Sources are read a piece at a time, and not.
#[test]
fn small_tiles_of_several_chunks() {
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let conv = Conv2d { operands, ..Conv2d::same([3, 3], false) };
    for channels in [72, 67] {
        let x = Host::random(&[1, 3, 4, channels], 1);
        let affine = Host::random(&[1, 2, channels], 2);
        let weight = Host::random(&[6, channels, 3, 3], 3);
        for (multiprocessors, kib) in [(1, 40), (16, 40), (1, 12), (1, 7)] {
            let targets =
                BOTH.map(|full| Target { multiprocessors, shared_bytes: kib << 10, ..full });
            check_half(&targets, &conv, &[&x, &affine, &weight], 1e-5);
        }
    }
}

/// Tiles of blocks that have a multiprocessor alone: of one chunk of four pairs of pieces, and of one and another of fewer
/// pairs, one after another or in two parts.
#[test]
pub(super) fn tiles_of_blocks_alone() {
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let conv = Conv2d { operands, ..Conv2d::same([3, 3], false) };
    for (multiprocessors, channels, c_out) in [(2, 61, 72), (1, 85, 40), (2, 85, 40)] {
        let targets = BOTH.map(|full| Target { multiprocessors, ..full });
        let x = Host::random(&[1, 3, 4, channels], 1);
        let affine = Host::random(&[1, 2, channels], 2);
        let weight = Host::random(&[c_out, channels, 3, 3], 3);
        check_half(&targets, &conv, &[&x, &affine, &weight], 1e-5);
        let dgrad = Conv2dDgrad { stride: [1, 1], padding: [1; 4], input: [3, 4] };
        let weight = Host::random(&[channels, c_out, 3, 3], 4);
        check_half(&targets, &dgrad, &[&x, &weight], 1e-5);
    }
    // Phases, of which some have no tap.
    let dgrad = Conv2dDgrad { stride: [3, 2], padding: [0; 4], input: [8, 8] };
    let [dy, weight] = [Host::random(&[1, 3, 4, 72], 1), Host::random(&[72, 61, 2, 2], 2)];
    let targets = BOTH.map(|full| Target { multiprocessors: 12, ..full });
    check_half(&targets, &dgrad, &[&dy, &weight], 1e-5);
    assert_launched("f16", &["conv2d_alone_fwd", "conv2d_alone_dgrad"]);
}

/// Whether these launches have tiles of 80 pixels. The test forgets those before.
pub(super) fn larger_tiles_launched(launch: impl FnOnce()) -> bool {
    LAUNCHED.take();
    launch();
    LAUNCHED.take().contains("conv2d_alone80_fwd_nhwc_f16")
}

/// Where tiles of 64 pixels are more than multiprocessors, those of 80 leave blocks alone.
#[test]
pub(super) fn tiles_of_80_pixels() {
    let [x, weight] = [Host::random(&[1, 9, 13, 61], 1), Host::random(&[38, 61, 3, 3], 2)];
    check_on_chips_of(2, &Conv2d::same([3, 3], false), &[&x, &weight], 1e-5);
    assert_launched("f16", &["conv2d_alone80_fwd"]);
}

/// Some inside of the image, some with a row or four, several of channels; of one chunk and of two, of stride 2, of two
/// samples and of 5 x 4 taps; all that is added, and sources and results that are no multiple of pieces.
#[test]
fn larger_tiles_of_blocks_alone() {
    let operands = Operands {
        affine: true,
        silu: true,
        bias: true,
        shift: true,
        residual: true,
        ..Operands::default()
    };
    // The last ones need more shared memory than a V100 has; there four warps take 64 pixels.
    type Case = ([usize; 3], usize, [usize; 2], [usize; 2], bool);
    let cases: [Case; 6] = [
        ([1, 11, 16], 1, [3, 3], [64, 64], true),
        ([1, 9, 17], 1, [3, 3], [61, 61], true),
        ([2, 10, 16], 1, [3, 3], [64, 72], true),
        ([1, 9, 13], 1, [5, 4], [64, 40], true),
        ([1, 9, 13], 1, [3, 3], [72, 40], false),
        ([1, 9, 19], 2, [3, 3], [64, 40], false),
    ];
    for (index, (size, stride, kernel, [channels, c_out], fits_both)) in
        cases.into_iter().enumerate()
    {
        let [batch, height, width] = size;
        let [down, across]: [usize; 2] = kernel.map(|taps| taps - 1);
        let padding = [down / 2, down - down / 2, across / 2, across - across / 2];
        let conv = Conv2d { operands, padding, stride: [stride; 2] };
        let [rows, columns] = [height, width].map(|size| size.div_ceil(stride));
        let tiles = batch * rows.div_ceil(5) * columns.div_ceil(16) * c_out.div_ceil(64);
        let x = Host::random(&[batch, height, width, channels], 1);
        let affine = Host::random(&[batch, 2, channels], 2);
        let weight = Host::random(&[c_out, channels, kernel[0], kernel[1]], 3);
        let [bias, shift] = [Host::random(&[c_out], 4), Host::random(&[batch, c_out], 5)];
        let residual = Host::random(&[batch, rows, columns, c_out], 6);
        let inputs = [&x, &affine, &weight, &bias, &shift, &residual];
        for full in BOTH {
            let target = Target { multiprocessors: tiles as u32, ..full };
            let check = || check_half(std::slice::from_ref(&target), &conv, &inputs, 1e-5);
            let fits = fits_both || target.name == Target::H100.name;
            assert_eq!(larger_tiles_launched(check), fits, "case {index} on {}", target.name);
        }
    }
}

/// They are not for upsampled sources, input gradients, rows of pixels, and where the batch may not matter.
#[test]
fn where_tiles_are_no_larger() {
    let target = Target { multiprocessors: 2, ..Target::H100 };
    let invariant = Target { batch_invariant: true, ..target.clone() };
    let weight = Host::random(&[64, 61, 3, 3], 1);
    let conv = Conv2d::same([3, 3], false);
    let x = Host::random(&[1, 9, 13, 61], 2);
    let upsampling =
        Conv2d { operands: Operands { upsample: true, ..Operands::default() }, ..conv.clone() };
    let small = Host::random(&[1, 5, 7, 61], 3);
    let dgrad = Conv2dDgrad { stride: [1, 1], padding: [1; 4], input: [9, 13] };
    let dy = Host::random(&[1, 9, 13, 64], 4);
    let (row, pointwise) = (Host::random(&[1, 10, 16, 61], 6), Host::random(&[64, 61, 1, 1], 7));
    let cases: [(&Target, &dyn Op, [&Host; 2], bool); 5] = [
        (&target, &conv, [&x, &weight], true),
        (&invariant, &conv, [&x, &weight], false),
        (&target, &upsampling, [&small, &weight], false),
        (&target, &dgrad, [&dy, &weight], false),
        (&target, &Conv2d::pointwise(false), [&row, &pointwise], false),
    ];
    for (index, (target, op, inputs, larger)) in cases.into_iter().enumerate() {
        let check = || check_half(std::slice::from_ref(target), op, &inputs, 1e-5);
        assert_eq!(larger_tiles_launched(check), larger, "case {index}");
    }
}

/// Where the regions of a block alone don't fit, a tile has four warps.
#[test]
fn tiles_that_do_not_fit_a_block_alone() {
    let [x, weight] = [Host::random(&[1, 3, 4, 64], 1), Host::random(&[40, 64, 3, 3], 2)];
    for kib in [72, 40] {
        let targets =
            BOTH.map(|full| Target { multiprocessors: 1, shared_bytes: kib << 10, ..full });
        check_half(&targets, &Conv2d::same([3, 3], false), &[&x, &weight], 1e-5);
    }
}

/// What pixels get added, where results are stored four channels at a time and where they can't be: small tiles, and
/// those of blocks alone, in one part and in two.
#[test]
fn small_tiles_that_add() {
    let operands = Operands { bias: true, shift: true, residual: true, ..Operands::default() };
    let conv = Conv2d { operands, ..Conv2d::same([3, 3], false) };
    for (multiprocessors, [c_in, c_out]) in
        [(1, [5, 9]), (1, [5, 8]), (1, [64, 61]), (1, [64, 64]), (2, [85, 61]), (2, [85, 64])]
    {
        let [x, weight] =
            [&[1, 3, 4, c_in], &[c_out, c_in, 3, 3]].map(|dims| Host::random(dims, 1));
        let [bias, shift] = [Host::random(&[c_out], 2), Host::random(&[1, c_out], 3)];
        let residual = Host::random(&[1, 3, 4, c_out], 4);
        check_on_chips_of(multiprocessors, &conv, &[&x, &weight, &bias, &shift, &residual], 1e-5);
    }
}

/// Of strides of two, whose regions have even columns first: of one tile and several, with an even and an odd number of
/// columns, of kernels of two taps and one; sources that are normalised, read a piece at a time and not.
#[test]
fn small_tiles_of_stride_two() {
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    for (stride, kernel, channels) in [
        ([2, 2], [3, 3], 24),
        ([1, 2], [2, 2], 24),
        ([2, 2], [1, 1], 72),
        ([3, 2], [3, 4], 21),
        ([2, 1], [3, 3], 72),
        ([2, 2], [3, 3], 72),
    ] {
        let padding = kernel.map(|taps: usize| taps / 2);
        let padding = [padding[0], 0, padding[1], 0];
        let x = Host::random(&[1, 7, 19, channels], 1);
        let affine = Host::random(&[1, 2, channels], 2);
        let weight = Host::random(&[40, channels, kernel[0], kernel[1]], 3);
        for multiprocessors in [1, 4] {
            let targets = BOTH.map(|full| Target { multiprocessors, ..full });
            let conv = Conv2d { stride, padding, operands };
            check_half(&targets, &conv, &[&x, &affine, &weight], 1e-5);
            let plain = Conv2d { operands: Operands::default(), ..conv };
            check_half(&targets, &plain, &[&x, &weight], 1e-5);
        }
    }
    let halving = Conv2d { stride: [2, 2], ..Conv2d::same([3, 3], false) };
    for c_out in [6, 20] {
        let x = Host::random(&[1, 7, 19, 24], 1);
        check_on_chips_of(1, &halving, &[&x, &Host::random(&[c_out, 24, 3, 3], 2)], 1e-5);
    }
    // Doubled sources are not sorted by columns.
    let operands = Operands { upsample: true, ..Operands::default() };
    let [x, weight] = [Host::random(&[1, 5, 9, 24], 1), Host::random(&[40, 24, 3, 3], 2)];
    check_on_chips_of(1, &Conv2d { operands, ..halving }, &[&x, &weight], 1e-5);
    let tiles =
        ["conv2d_small16_fwd", "conv2d_small32_fwd", "conv2d_small64_fwd", "conv2d_alone_fwd"];
    assert_launched("f16", &tiles);
}

/// More taps than there are registers for at a time, of two chunks.
#[test]
fn small_tiles_of_many_taps() {
    let [x, weight] = [Host::random(&[1, 3, 4, 40], 1), Host::random(&[20, 40, 7, 7], 2)];
    check_on_chips_of(1, &Conv2d::same([7, 7], false), &[&x, &weight], 1e-5);
}

/// The same of results where the pixels of all samples are one row, of which three samples have large tiles enough
/// for this chip.
#[test]
fn the_batch_does_not_matter_to_rows() {
    let conv = Conv2d::pointwise(false);
    let x = Host::random(&[3, 8, 16, 128], 1);
    let weight = Host::random(&[72, 128, 1, 1], 2);
    let target = Target { batch_invariant: true, multiprocessors: 2, ..Target::H100 };
    for x in [x.clone(), rounded(&x)] {
        let together = emulate_lowered(&target, 1, &conv, &[&x, &weight], &[]).remove(0);
        for sample in 0..3 {
            let own = x.samples(sample..sample + 1);
            let alone = emulate_lowered(&target, 1, &conv, &[&own, &weight], &[]).remove(0);
            assert_same_bits(&together.samples(sample..sample + 1), &alone, "conv2d");
        }
    }
}

/// 130 pixels and 65 channels are more than small tiles are for.
#[test]
pub(super) fn large_tiles() {
    let [x, weight] = [Host::random(&[1, 10, 13, 3], 1), Host::random(&[65, 3, 1, 1], 2)];
    check_on_chips_of(1, &Conv2d::pointwise(false), &[&x, &weight], 1e-5);
    let weight = Host::random(&[3, 65, 2, 2], 2);
    let dgrad = Conv2dDgrad { stride: [1, 1], padding: [1, 0, 1, 0], input: [10, 13] };
    check_on_chips_of(1, &dgrad, &[&x, &weight], 1e-5);
    for precision in ["f32", "f16"] {
        assert_launched(precision, &["conv2d_large_fwd", "conv2d_large_dgrad"]);
    }
}

/// A block goes through three tiles and more, so that it fills its buffers again.
#[test]
fn weight_gradients_of_many_tiles() {
    super::convolution::weight_gradients_on_chips_of(1, [1, 8, 48]);
}

/// By taps, of whole pieces without stride and in general, by columns, and in float16 of 1×1 kernels and with a
/// stride of two.
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
    let (x, dy) = (Host::random(&[1, 4, 5, 9], 1), Host::random(&[1, 4, 5, 8], 2));
    check_on_chips_of(1, &Conv2dWgrad::new([1; 2], [0; 4], [1; 2], true), &[&x, &dy], 1e-5);
    let strided = Conv2dWgrad::new([2; 2], [1; 4], [3; 2], true);
    let (x, dy) = (Host::random(&[1, 4, 5, 24], 1), Host::random(&[1, 2, 3, 7], 2));
    check_on_chips_of(1, &strided, &[&x, &dy], 1e-5);
    let pointwise = ["conv2d_pointwise_wgrad", "conv2d_pointwise_norm_wgrad"];
    assert_launched("f16", &pointwise);
    assert_launched("f16", &["conv2d_taps_strided_wgrad"]);
    for precision in ["f32", "f16"] {
        let taps = ["conv2d_taps_wgrad", "conv2d_taps_norm_wgrad", "conv2d_taps_general_wgrad"];
        assert_launched(precision, &taps);
        assert_launched(precision, &["conv2d_columns_wgrad"]);
    }
}

/// Gradients of 1×1 weights where groups of warps have no room to exchange their sums.
#[test]
fn weight_gradients_of_little_memory() {
    let (x, dy) = (Host::random(&[2, 5, 7, 24], 1), Host::random(&[2, 5, 7, 16], 2));
    let wgrad = Conv2dWgrad::new([1; 2], [0; 4], [1; 2], true);
    let (affine, [half_x, half_dy]) = (Host::random(&[2, 2, 24], 3), [&x, &dy].map(rounded));
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let normalising = Conv2dWgrad { operands, ..wgrad.clone() };
    let (plain, normalised) = (run(&wgrad, &[&x, &dy]), run(&normalising, &[&x, &affine, &dy]));
    for kib in [48, 64] {
        for target in BOTH.map(|full| Target { shared_bytes: kib << 10, ..full }) {
            compare_on(&target, &wgrad, &[&half_x, &half_dy], &[], &plain, 2e-3);
            let inputs = [&half_x, &affine, &half_dy];
            compare_on(&target, &normalising, &inputs, &[], &normalised, 2e-3);
        }
    }
    assert_launched("f16", &["conv2d_columns_wgrad"]);
}

/// Rows of x so far apart that a thread brings more pieces of a tile than it remembers at once.
#[test]
fn weight_gradients_of_distant_rows() {
    let [x, affine] = [Host::random(&[4, 8, 8, 16], 1), Host::random(&[4, 2, 16], 2)];
    let dy = Host::random(&[4, 2, 8, 8], 3);
    let operands = Operands { affine: true, silu: true, ..Operands::default() };
    let wgrad = Conv2dWgrad::new([4, 1], [1; 4], [3; 2], true);
    check_on_chips_of(1, &wgrad, &[&x, &dy], 1e-5);
    check_on_chips_of(1, &Conv2dWgrad { operands, ..wgrad }, &[&x, &affine, &dy], 1e-5);
}
