//! What convolutions leave of their results for normalisations that read them, and how they read it.

use super::normalisation::moments;
use super::patches::tiled;
use super::small_convolutions::larger_tiles_launched;
use super::{BOTH, assert_near, compare_on, emulate, in_all_orders, rounded};
use crate::device::{DType, Target};
use crate::ops::conv2d::{Conv2d, Norm, TiledConv2d};
use crate::ops::group_norm::GroupNorm;
use crate::ops::testing::{Host, assert_same_bits, run};

/// The tiled form of a convolution that leaves moments of slices of so many channels, and its weight.
fn leaving_moments(
    conv: &Conv2d,
    [x, weight]: [&Host; 2],
    slice: usize,
    target: &Target,
) -> (TiledConv2d, Host) {
    let (plain, _) = tiled(target, conv, &[&x.ty, &weight.ty]);
    let packed = emulate(target, 1, &plain.pack(), &[weight], &[]).remove(0);
    (plain.with_moments(slice), packed)
}

/// The values of a host, in float32.
fn in_f32(host: &Host) -> Host {
    Host { ty: host.ty.with_dtype(DType::F32), data: host.data.clone() }
}

/// A sample is one tile, two, four, eight or sixteen that readers merge, or others, which the last block merges. Slices
/// of one channel and of several, up to a whole tile.
#[test]
fn small_tiles_that_leave_moments() {
    let few = [
        ([2, 3, 4], 3, 8, 4),
        ([2, 9, 13], 3, 8, 4),
        ([1, 3, 17], 3, 8, 2),
        // A warp has all of a slice.
        ([1, 3, 9], 3, 64, 1),
        ([1, 3, 9], 3, 64, 4),
        ([2, 3, 5], 3, 64, 8),
        ([1, 3, 9], 3, 64, 16),
        ([1, 2, 5], 3, 12, 2),
        ([2, 9, 13], 1, 32, 16),
        ([1, 9, 27], 3, 8, 4),
        ([1, 28, 25], 3, 8, 2),
    ];
    // Tiles of blocks alone, of which two warps have halves, the second one maybe without a pixel.
    let alone = [1, 8, 64]
        .map(|slice| [[1, 3, 5], [1, 6, 5], [1, 6, 13]].map(|y| (y, 3, 64, slice)))
        .concat();
    for case in few {
        check_moments(case, 5, 1, false);
    }
    for case in alone {
        check_moments(case, 64, 1, false);
    }
}

/// More tiles, of which the last block most often merges one a lane, or more than a lane takes at once; slices of a whole
/// tile.
#[test]
fn larger_images_that_leave_moments() {
    let cases = [
        ([1, 17, 17], 3, 8, 1),
        ([2, 9, 17], 3, 8, 4),
        ([1, 9, 13], 3, 64, 64),
        ([1, 9, 17], 3, 64, 64),
        ([2, 9, 37], 1, 32, 16),
    ];
    // Large tiles, of which some have a second half outside of the image; readers merge those of two and of four.
    let large = [[1, 17, 9], [1, 8, 16], [1, 16, 16]].map(|y| (y, 3, 72, 8));
    for case in cases.into_iter().chain(large) {
        check_moments(case, 5, 1, false);
    }
}

/// Of 80 pixels, which fit into as many multiprocessors; not where readers merge what four of 64 leave.
#[test]
fn larger_tiles_that_leave_moments() {
    check_moments(([1, 9, 13], 3, 64, 8), 61, 2, false);
    let larger = [([1, 10, 24], 3, 64, 1), ([2, 9, 17], 3, 64, 8), ([1, 11, 33], 3, 64, 64)];
    for (case, multiprocessors) in larger.into_iter().zip([4, 8, 9]) {
        check_moments(case, 61, multiprocessors, true);
    }
}

/// Results whose mean is many times what they deviate from it, and the first of which lies apart from all others.
#[test]
fn moments_of_distant_results() {
    let mut x = Host::random(&[1, 6, 13, 8], 1);
    for (index, x) in x.data.iter_mut().enumerate() {
        *x = if index < 8 { 2.0 } else { 3.0 + 0.05 * *x };
    }
    let mut weight = Host::random(&[64, 8, 1, 1], 2);
    weight.data.iter_mut().for_each(|w| *w = 0.25 + 0.1 * *w);
    let conv = Conv2d::pointwise(false);
    let y = run(&conv, &[&x, &weight]).remove(0);
    for slice in [1, 8] {
        let want = moments(&y, slice, 2, |pixel| pixel / 64);
        for target in BOTH.map(|full| Target { multiprocessors: 1, ..full }) {
            let (leaving, packed) = leaving_moments(&conv, [&x, &weight], slice, &target);
            let got = in_all_orders(&target, &leaving, &[&x, &packed], &[]);
            let got = [&got[0], &merged(&got[1], 2)];
            assert_moments_near(&format!("conv2d on {}", target.name), got, [&y, &want], false);
        }
    }
}

/// Moments of so many tiles, of which convolutions may leave the halves: the second one may be empty, the first is not.
fn merged(moments: &Host, tiles: usize) -> Host {
    let &[batch, parts, 3, slices] = &moments.ty.shape[..] else {
        unreachable!("they are moments")
    };
    if parts == tiles {
        return moments.clone();
    }
    assert_eq!(parts, 2 * tiles);
    let merge = |halves: &[f32]| {
        let [first, second] = [0, 3 * slices].map(|at| &halves[at..]);
        let merged = (0..slices).map(|slice| {
            let of = |half: &[f32], which: usize| f64::from(half[which * slices + slice]);
            let [a, b] = [of(first, 0), of(second, 0)];
            assert!(a > 0.0);
            let (mean_a, distance) = (of(first, 1), of(second, 1) - of(first, 1));
            let squares = of(first, 2) + of(second, 2) + distance * distance * a * b / (a + b);
            [(a + b) as f32, (mean_a + distance * b / (a + b)) as f32, squares as f32]
        });
        let merged: Vec<[f32; 3]> = merged.collect();
        (0..3)
            .flat_map(|which| merged.iter().map(move |of| of[which]).collect::<Vec<_>>())
            .collect::<Vec<_>>()
    };
    Host::new(&[batch, tiles, 3, slices], moments.data.chunks(6 * slices).flat_map(merge).collect())
}

/// Elements, means and variances, which differ too much in size to be compared with one bound.
fn apart(moments: &Host) -> [Host; 3] {
    let &[batch, parts, 3, slices] = &moments.ty.shape[..] else {
        unreachable!("they are moments")
    };
    let of = |which: usize| {
        let own =
            moments.data.chunks(3 * slices).flat_map(|part| &part[which * slices..][..slices]);
        own.copied().collect::<Vec<f32>>()
    };
    let (elements, squares) = (of(0), of(2));
    let variances = squares.iter().zip(&elements).map(|(squares, elements)| squares / elements);
    [elements.clone(), of(1), variances.collect()]
        .map(|values| Host::new(&[batch, parts, slices], values))
}

/// Compares a result, and moments: means by what values deviate from them, where that is more than they are.
fn assert_moments_near(of: &str, got: [&Host; 2], want: [&Host; 2], half: bool) {
    let (result, mean) = if half { (1e-3, 1e-3) } else { (1e-5, 1e-6) };
    let [elements, means, variances] = apart(got[1]);
    let [want_elements, want_means, want_variances] = apart(want[1]);
    let got = [got[0].clone(), elements, variances];
    assert_near(of, &got, &[want[0].clone(), want_elements, want_variances.clone()], result);
    for (index, (got, want)) in means.data.iter().zip(&want_means.data).enumerate() {
        let bound = mean * want_variances.data[index].sqrt().max(want.abs());
        assert!((got - want).abs() <= bound, "mean {index} of {of}: {got}, cpu {want}");
    }
}

/// Batch, height and width of the result, taps of a row, channels of the result and of a slice; and channels of the
/// source. Whether tiles of float16 have 80 pixels.
fn check_moments(
    case: ([usize; 3], usize, usize, usize),
    c_in: usize,
    multiprocessors: u32,
    larger: bool,
) {
    let ([batch, height, width], kernel, channels, slice) = case;
    let conv = Conv2d::same([kernel; 2], false);
    let x = in_f32(&rounded(&Host::random(&[batch, height, width, c_in], 1)));
    let weight = in_f32(&rounded(&Host::random(&[channels, c_in, kernel, kernel], 2)));
    let y = run(&conv, &[&x, &weight]).remove(0);
    // Of what float16 stores.
    let half = rounded(&y);
    // Tiles of 8 x 8, or of 64 pixels in a row.
    let part = |pixel: usize| match kernel {
        1 => pixel / 64,
        _ => pixel / width / 8 * width.div_ceil(8) + pixel % width / 8,
    };
    let parts = match part(height * width - 1) + 1 {
        few @ (1 | 2 | 4 | 8 | 16) => few,
        _ => 1,
    };
    let part = |pixel| if parts == 1 { 0 } else { part(pixel) };
    let moments = |y: &Host| moments(y, slice, parts, part);
    let of_half = moments(&in_f32(&half));
    let want = [[&y, &moments(&y)], [&half, &of_half]];
    for target in BOTH.map(|full| Target { multiprocessors, ..full }) {
        for (x, want) in [x.clone(), rounded(&x)].iter().zip(&want) {
            let (leaving, packed) = leaving_moments(&conv, [x, &weight], slice, &target);
            let half = x.ty.dtype == DType::F16;
            let compare = || {
                let got = in_all_orders(&target, &leaving, &[x, &packed], &[]);
                let got = [&got[0], &merged(&got[1], parts)];
                assert_moments_near(&format!("conv2d on {}", target.name), got, *want, half);
            };
            assert_eq!(larger_tiles_launched(compare), half && larger);
        }
    }
}

/// Sources that are normalised by what is left of them, of which lanes that are as many as a group's channels, or a
/// factor of these, merge a part each, or several; on both sides of the seam, of the second source half as many parts; and
/// with halves of tiles that are empty.
#[test]
fn sources_normalised_by_moments() {
    // Channels of both sources, groups, channels of a slice, and parts.
    let cases = [
        ([24, 0], 8, 1, 4),
        ([12, 0], 12, 1, 16),
        ([32, 16], 4, 4, 4),
        ([64, 0], 8, 4, 16),
        ([64, 64], 4, 8, 2),
        ([40, 0], 8, 1, 32),
        ([16, 0], 2, 1, 16),
        // More than threads.
        ([160, 0], 8, 4, 4),
    ];
    for (channels, groups, slice, parts) in cases {
        for empty in [false, true] {
            check_normalised(channels, groups, slice, parts, empty);
        }
    }
}

fn check_normalised(channels: [usize; 2], groups: usize, slice: usize, parts: usize, empty: bool) {
    let c_in = channels[0] + channels[1];
    let sources = channels.into_iter().filter(|&c| c > 0);
    let sources: Vec<Host> =
        sources.zip(1..).map(|(c, seed)| Host::random(&[2, 6, 7, c], seed)).collect();
    let weight = in_f32(&rounded(&Host::random(&[64, c_in, 3, 3], 3)));
    let [gamma, beta] = [4, 5].map(|seed| Host::random(&[c_in], seed));
    let of_source = |(x, parts): (&Host, usize)| {
        let part = |pixel: usize| if empty { pixel % parts / 2 * 2 } else { pixel % parts };
        let mut moments = moments(x, slice, parts, part);
        moments.data.iter_mut().filter(|x| x.is_nan()).for_each(|x| *x = 0.0);
        moments
    };
    let (conv, norm) = (Conv2d::same([3, 3], false), Norm { groups, eps: 1e-5 });
    for half in [false, true] {
        let given: Vec<Host> =
            sources.iter().map(|x| if half { rounded(x) } else { x.clone() }).collect();
        let values: Vec<Host> = given.iter().map(in_f32).collect();
        let whole: Vec<&Host> = values.iter().chain([&gamma, &beta]).collect();
        let normal = run(&GroupNorm { groups, eps: norm.eps, silu: true }, &whole).remove(0);
        let seen = if half { rounded(&normal) } else { normal };
        let want = run(&conv, &[&in_f32(&seen), &weight]);
        let moments: Vec<Host> = values.iter().zip([parts, parts / 2]).map(of_source).collect();
        let chips =
            BOTH.map(|full| [1, 5].map(|multiprocessors| Target { multiprocessors, ..full }));
        for target in chips.concat() {
            let (plain, _) = tiled(&target, &conv, &[&seen.ty, &weight.ty]);
            let packed = emulate(&target, 1, &plain.pack(), &[&weight], &[]).remove(0);
            let reader = plain.normalised(norm, channels[1] > 0, true);
            let mut inputs: Vec<&Host> = given.iter().chain([&packed]).collect();
            inputs.extend(moments.iter().chain([&gamma, &beta]));
            let tolerance = if half { 3e-3 } else { 1e-5 };
            compare_on(&target, &reader, &inputs, &[], &want, tolerance);
        }
    }
}

/// A sample leaves the same moments in any batch, where that is asked for: three samples have large tiles enough
/// for this chip, one hasn't.
#[test]
fn the_batch_does_not_matter_to_moments() {
    let conv = Conv2d::same([3, 3], false);
    let x = Host::random(&[3, 11, 17, 3], 1);
    let weight = Host::random(&[72, 3, 3, 3], 2);
    let target = Target { batch_invariant: true, multiprocessors: 4, ..Target::H100 };
    for x in [x.clone(), rounded(&x)] {
        let (leaving, packed) = leaving_moments(&conv, [&x, &weight], 4, &target);
        let together = emulate(&target, 1, &leaving, &[&x, &packed], &[]);
        for sample in 0..3 {
            let own = x.samples(sample..sample + 1);
            let (leaving, packed) = leaving_moments(&conv, [&own, &weight], 4, &target);
            let alone = emulate(&target, 1, &leaving, &[&own, &packed], &[]);
            for (together, alone) in together.iter().zip(&alone) {
                assert_same_bits(&together.samples(sample..sample + 1), alone, "conv2d");
            }
        }
    }
}
