//! SiLU and group normalisation.

use super::check;
use crate::ops::group_norm::{GroupNorm, GroupNormAffine, GroupNormGrad};
use crate::ops::silu::{Silu, SiluGrad};
use crate::ops::testing::{Host, run};

#[test]
pub(super) fn silu() {
    let x = Host::new(&[1, 6], vec![-200.0, -30.0, -1.0, 0.0, 0.5, 100.0]);
    check(&Silu, &[&x], 1e-6);
    let (dy, x) = (Host::random(&[3, 5, 7, 11], 1), Host::random(&[3, 5, 7, 11], 2));
    check(&Silu, &[&x], 1e-6);
    check(&SiluGrad, &[&dy, &x], 1e-6);
}

/// Shapes of x and, where there is one, of x2; groups; whether gamma and beta differ by sample.
/// In the second case a group straddles both sources; the third has more than 256 elements a group.
fn cases() -> Vec<(Vec<Host>, usize)> {
    let case = |x: &[usize], x2: Option<&[usize]>, affine: &[usize]| {
        let mut inputs = vec![Host::random(x, 1)];
        inputs.extend(x2.map(|shape| Host::random(shape, 2)));
        inputs.extend([Host::random(affine, 3), Host::random(affine, 4)]);
        inputs
    };
    vec![
        (case(&[2, 3, 5, 6], None, &[6]), 3),
        (case(&[3, 3, 2, 5], Some(&[3, 3, 2, 7]), &[12]), 3),
        (case(&[1, 17, 13, 40], None, &[1, 40]), 8),
        (case(&[2, 7, 34], Some(&[2, 7, 2]), &[2, 36]), 4),
    ]
}

#[test]
pub(super) fn group_norm() {
    for (inputs, groups) in cases() {
        let inputs: Vec<&Host> = inputs.iter().collect();
        for silu in [false, true] {
            check(&GroupNorm { groups, eps: 1e-5, silu }, &inputs, 1e-5);
        }
        check(&GroupNormAffine { groups, eps: 1e-5 }, &inputs, 1e-5);
    }
}

#[test]
pub(super) fn group_norm_gradient() {
    for (inputs, groups) in cases() {
        for silu in [false, true] {
            let references: Vec<&Host> = inputs.iter().collect();
            let forward = run(&GroupNorm { groups, eps: 1e-5, silu }, &references);
            let dy = Host::random(&forward[0].ty.shape, 5);
            let mut all = vec![&dy];
            all.extend(&references);
            all.push(&forward[1]);
            check(&GroupNormGrad { groups, silu }, &all, 1e-5);
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
