//! Functions of single elements, and normalisations.

use super::{BOTH, check, check_state, compare, emulate, rounded};
use crate::ops::activation::{Activation, ActivationGrad};
use crate::ops::group_norm::{GroupNorm, GroupNormAffine, GroupNormGrad, GroupNormOfMoments};
use crate::ops::pixel_norm::{PixelNorm, PixelNormGrad, PooledPixelNorm};
use crate::ops::testing::{Host, run};
use crate::ops::weight_norm::{ForceUnitNorm, WeightNorm, WeightNormGrad};
use half::f16;

#[test]
pub(super) fn activations() {
    let wide = Host::new(&[1, 1, 6], vec![-200.0, -30.0, -1.0, 0.0, 0.5, 100.0]);
    let (dy, x) = (Host::random(&[3, 5, 7, 11], 1), Host::random(&[3, 5, 7, 11], 2));
    let clip = Activation::Clip { limit: 0.5 };
    for (op, tolerance) in [(Activation::SILU, 1e-6), (Activation::MP_SILU, 1e-6), (clip, 0.0)] {
        check(&op, &[&wide], tolerance);
        check(&op, &[&x], tolerance);
        check(&ActivationGrad(op), &[&dy, &x], tolerance);
    }
}

/// x and, where there is one, x2; gamma and beta, which may differ by sample.
fn case(x: &[usize], x2: Option<&[usize]>, affine: &[usize]) -> Vec<Host> {
    let mut inputs = vec![Host::random(x, 1)];
    inputs.extend(x2.map(|shape| Host::random(shape, 2)));
    inputs.extend([Host::random(affine, 3), Host::random(affine, 4)]);
    inputs
}

/// Inputs and groups. In the second case a group straddles both sources; the third has more than 256 elements a group.
fn cases() -> Vec<(Vec<Host>, usize)> {
    vec![
        (case(&[2, 3, 5, 6], None, &[6]), 3),
        (case(&[3, 3, 2, 5], Some(&[3, 3, 2, 7]), &[12]), 3),
        (case(&[1, 17, 13, 40], None, &[1, 40]), 8),
        (case(&[2, 7, 34], Some(&[2, 7, 2]), &[2, 36]), 4),
        // Whole pieces, more pixels than a block reads at once, three slabs.
        (case(&[3, 20, 19, 16], Some(&[3, 20, 19, 32]), &[48]), 12),
        (case(&[2, 3, 3, 96], None, &[96]), 8),
        // More pixels than the threads of a large block keep.
        (case(&[1, 65, 65, 16], None, &[16]), 4),
        // Groups of more channels than a block reads at once.
        (case(&[2, 1, 3, 2200], None, &[2200]), 1),
        (case(&[2, 3, 1030], Some(&[2, 3, 1111]), &[2, 2141]), 1),
    ]
}

fn forward(inputs: &[Host], groups: usize) {
    let inputs: Vec<&Host> = inputs.iter().collect();
    for silu in [false, true] {
        check(&GroupNorm { groups, eps: 1e-5, silu }, &inputs, 1e-5);
    }
    check(&GroupNormAffine { groups, eps: 1e-5 }, &inputs, 1e-5);
}

#[test]
pub(super) fn group_norm() {
    for (inputs, groups) in cases() {
        forward(&inputs, groups);
    }
}

/// What goes element by element, and wide groups, in several blocks; three pieces of a pixel, of which a block of the
/// gradient can't keep all.
#[test]
fn larger_group_norm() {
    let in_elements = case(&[2, 61, 30, 5], Some(&[2, 61, 30, 7]), &[12]);
    forward(&in_elements, 3);
    gradient(&in_elements, 3);
    forward(&case(&[2, 2, 9, 2200], None, &[2200]), 1);
    gradient(&case(&[1, 50, 50, 24], None, &[24]), 2);
}

fn gradient(inputs: &[Host], groups: usize) {
    for silu in [false, true] {
        let references: Vec<&Host> = inputs.iter().collect();
        let forward = run(&GroupNorm { groups, eps: 1e-5, silu }, &references);
        let dy = Host::random(&forward[0].ty.shape, 5);
        let mut all = vec![&dy];
        all.extend(&references);
        all.push(&forward[1]);
        let op = GroupNormGrad::new(groups, silu);
        check(&op, &all, 1e-5);
        if inputs.len() == 3 {
            check(&GroupNormGrad { rows: true, ..op }, &all, 1e-5);
        }
        let residuals = [Host::random(&dy.ty.shape, 6), Host::random(&dy.ty.shape, 7)];
        for residual in &residuals {
            all.push(residual);
            check(&GroupNormGrad { residuals: all.len() - inputs.len() - 2, ..op }, &all, 1e-5);
        }
    }
}

#[test]
pub(super) fn group_norm_gradient() {
    for (inputs, groups) in cases() {
        gradient(&inputs, groups);
    }
}

/// Moments as a convolution leaves them: of parts of a sample's pixels, which `part` numbers below `parts`, and
/// slices of channels the number of elements, their mean and the sum of their squared deviations.
pub(super) fn moments(x: &Host, slice: usize, parts: usize, part: impl Fn(usize) -> usize) -> Host {
    let &[batch, .., channels] = &x.ty.shape[..] else { unreachable!("it is an image") };
    let mut data = Vec::new();
    for sample in x.data.chunks(x.data.len() / batch) {
        for own in 0..parts {
            let rows = sample.chunks(channels).enumerate().filter(|&(pixel, _)| part(pixel) == own);
            let rows: Vec<&[f32]> = rows.map(|(_, row)| row).collect();
            let slices = (0..channels / slice).map(|at| {
                let of_slice = rows.iter().flat_map(|row| &row[at * slice..][..slice]);
                let values: Vec<f64> = of_slice.map(|&x| f64::from(x)).collect();
                let mean = values.iter().sum::<f64>() / values.len() as f64;
                let squares = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>();
                [values.len() as f32, mean as f32, squares as f32]
            });
            let slices: Vec<[f32; 3]> = slices.collect();
            data.extend((0..3).flat_map(|which| slices.iter().map(move |slice| slice[which])));
        }
    }
    Host::new(&[batch, parts, 3, channels / slice], data)
}

/// The same normalisation from moments of its sources, in slices of a power of two, as wide as
/// a group or narrower, and of one part of the pixels or of as many as are read one batch after another, of the
/// second source half as many.
#[test]
pub(super) fn group_norm_of_moments() {
    for (inputs, groups) in cases() {
        let plain: Vec<&Host> = inputs.iter().collect();
        let sources = &plain[..plain.len() - 2];
        let channels = |host: &Host| *host.ty.shape.last().expect("channels");
        let width = sources.iter().map(|&x| channels(x)).sum::<usize>() / groups;
        let divides = |&slice: &usize| {
            width.is_multiple_of(slice)
                && sources.iter().all(|&x| channels(x).is_multiple_of(slice))
        };
        let slices = (0..usize::BITS).map(|log| 1 << log).take_while(|&slice| slice <= width);
        let slice = slices.filter(divides).last().expect("one divides all");
        let factors = &plain[plain.len() - 2..];
        let pixels = sources[0].ty.elements() / sources[0].ty.shape[0] / channels(sources[0]);
        for (half, parts) in [(false, 1), (true, 4), (false, 8), (true, 1), (false, 128)] {
            let parts = 1usize << parts.min(pixels).ilog2();
            // What kernels read, and the same values as the CPU takes them.
            let given: Vec<Host> =
                sources.iter().map(|&x| if half { rounded(x) } else { x.clone() }).collect();
            let as_f32 = |x: &Host| Host::new(&x.ty.shape, x.data.clone());
            let seen: Vec<Host> = given.iter().map(as_f32).collect();
            let of_each = seen.iter().zip([parts, parts.div_ceil(2)]);
            let moments: Vec<Host> =
                of_each.map(|(x, parts)| moments(x, slice, parts, |pixel| pixel % parts)).collect();
            let all: Vec<&Host> =
                given.iter().chain(factors.iter().copied()).chain(&moments).collect();
            let whole: Vec<&Host> = seen.iter().chain(factors.iter().copied()).collect();
            for silu in [false, true] {
                let norm = GroupNorm { groups, eps: 1e-5, silu };
                let mut want = run(&norm, &whole);
                if half {
                    want[0] = rounded(&want[0]);
                }
                let tolerance = if half { 1e-3 } else { 1e-5 };
                compare(&BOTH, &GroupNormOfMoments(norm), &all, &[], &want, tolerance);
            }
        }
    }
}

/// In float16, two channels share a reciprocal. Whatever one of them is, the other has its own SiLU.
#[test]
fn extremes_beside_each_other() {
    let tiny = 2f32.powi(-24);
    let extremes =
        [0.0, -tiny, 1.5, -20.0, -65504.0, 65504.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN];
    let pairs = extremes.iter().flat_map(|&x| extremes.iter().flat_map(move |&y| [x, y]));
    let channels = 16;
    let whole = pairs.chain([0.0; 14]).collect::<Vec<f32>>();
    let x = rounded(&Host::new(&[1, whole.len() / channels, channels], whole));
    let [gamma, beta] = [1.0, 0.0].map(|value| Host::new(&[channels], vec![value; channels]));
    // Mean 0 and variance 1, whatever x is: values pass as they are.
    let moments = Host::new(&[1, 1, 3, 1], vec![1.0, 0.0, 1.0]);
    let norm = GroupNormOfMoments(GroupNorm { groups: 1, eps: 0.0, silu: true });
    for target in &BOTH {
        let got = emulate(target, 1, &norm, &[&x, &gamma, &beta, &moments], &[]).remove(0);
        for (x, got) in x.data.iter().zip(&got.data) {
            let want = f16::from_f32(x / (1.0 + (-x).exp())).to_f32();
            let as_it_should = match *x {
                x if x.is_nan() => got.is_nan(),
                f32::INFINITY => *got == f32::INFINITY,
                f32::NEG_INFINITY => !got.is_finite(),
                _ => (got - want).abs() <= 1e-3 * want.abs() + tiny,
            };
            assert!(as_it_should, "silu({x}) = {got}, not {want}, on {}", target.name);
        }
    }
}

/// A large mean must not cost the variance its digits.
#[test]
pub(super) fn a_large_mean_keeps_the_variance() {
    let mut x = Host::random(&[1, 8, 8, 4], 1);
    x.data.iter_mut().for_each(|x| *x += 1000.0);
    let (gamma, beta) = (Host::random(&[4], 2), Host::random(&[4], 3));
    check(&GroupNorm { groups: 2, eps: 1e-5, silu: false }, &[&x, &gamma, &beta], 1e-3);
}

/// Runs of less than a warp, of several, and odd ones.
#[test]
pub(super) fn pixel_norm() {
    for (channels, groups) in [(5, 1), (67, 1), (24, 3), (130, 2)] {
        let shape = [2, 3, 5, channels];
        let (x, dy) = (Host::random(&shape, 1), Host::random(&shape, 2));
        check(&PixelNorm { groups }, &[&x], 1e-6);
        check(&PixelNormGrad { groups }, &[&dy, &x], 1e-6);
    }
    let zero = Host::new(&[1, 4], vec![0.0; 4]);
    check(&PixelNormGrad { groups: 1 }, &[&Host::random(&[1, 4], 1), &zero], 1e-6);
    for (channels, groups) in [(5, 1), (70, 1), (12, 3)] {
        let x = Host::random(&[2, 6, 10, channels], 1);
        check(&PooledPixelNorm { groups }, &[&x], 1e-6);
    }
}

#[test]
pub(super) fn weight_norm() {
    for (shape, parts) in [(&[5, 3, 3, 3][..], 1), (&[6, 301], 3), (&[4, 1], 2)] {
        let (w, dy) = (Host::random(shape, 1), Host::random(shape, 2));
        let (gain, plain) =
            (Host::new(&[1], vec![-0.7]), WeightNorm { parts, ..WeightNorm::PLAIN });
        let learned = WeightNorm { gain: 1.3, learned: true, parts };
        check(&plain, &[&w], 1e-6);
        check(&learned, &[&w, &gain], 1e-6);
        check(&WeightNormGrad(plain), &[&dy, &w], 1e-5);
        check(&WeightNormGrad(learned), &[&dy, &w, &gain], 1e-5);
        let force = ForceUnitNorm { shape: shape.to_vec() };
        check_state(&force, &[], std::slice::from_ref(&w), 1e-6);
    }
}
