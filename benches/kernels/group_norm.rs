//! Group normalisation with SiLU, forward and backward, and as the affine that convolutions apply.

use crate::harness::{Bench, activation, weight};
use cyanea::ops::group_norm::{GroupNorm, GroupNormAffine, GroupNormGrad};

/// Batch, height and width, channels, groups.
const CASES: [(usize, usize, usize, usize); 7] = [
    (1, 8, 16, 4),
    (1, 64, 128, 32),
    (1, 64, 384, 32),
    (1, 16, 256, 32),
    (16, 32, 32, 32),
    (64, 64, 128, 32),
    (64, 32, 256, 32),
];

pub fn benches(bench: &mut Bench) {
    for (batch, size, channels, groups) in CASES {
        let image = || activation([batch, size, size, channels]);
        let per_channel = || weight([channels]);
        let name = format!("{batch}x{size}x{size} {channels} g{groups}");
        let eps = 1e-5;
        bench.time(
            "group_norm",
            &format!("silu fwd {name}"),
            GroupNorm { groups, eps, silu: true },
            &[image(), per_channel(), per_channel()],
            &[],
        );
        bench.time(
            "group_norm",
            &format!("affine fwd {name}"),
            GroupNormAffine { groups, eps },
            &[image(), per_channel(), per_channel()],
            &[],
        );
        let stats = activation([batch, groups, 2]);
        bench.time(
            "group_norm",
            &format!("silu dgrad {name}"),
            GroupNormGrad::new(groups, true),
            &[image(), image(), per_channel(), per_channel(), stats],
            &[],
        );
    }
}
