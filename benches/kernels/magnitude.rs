//! What keeps magnitudes: norms of pixels and of rows of weights, forward and backward.

use crate::harness::{Bench, activation};
use cyanea::ops::pixel_norm::{PixelNorm, PixelNormGrad};
use cyanea::ops::weight_norm::{WeightNorm, WeightNormGrad};

/// Batch, height and width, channels, groups of channels that are normalised each.
const PIXELS: [(usize, usize, usize, usize); 4] =
    [(1, 8, 16, 1), (1, 64, 192, 1), (16, 64, 192, 1), (16, 16, 1152, 18)];
/// Output channels, input channels, height and width of the kernel.
const WEIGHTS: [(usize, usize, usize); 3] = [(8, 16, 3), (192, 192, 3), (768, 1536, 3)];

pub fn benches(bench: &mut Bench) {
    for (batch, size, channels, groups) in PIXELS {
        let image = || activation([batch, size, size, channels]);
        let name = format!("{batch}x{size}x{size} {channels} g{groups}");
        let forward = PixelNorm { groups };
        bench.time("magnitude", &format!("pixel_norm fwd {name}"), forward, &[image()], &[]);
        bench.time(
            "magnitude",
            &format!("pixel_norm dgrad {name}"),
            PixelNormGrad { groups },
            &[image(), image()],
            &[],
        );
    }
    for (c_out, c_in, kernel) in WEIGHTS {
        let weight = || activation([c_out, c_in, kernel, kernel]);
        let name = format!("{c_out}x{c_in} {kernel}x{kernel}");
        let plain = WeightNorm::PLAIN;
        bench.time("magnitude", &format!("weight_norm fwd {name}"), plain, &[weight()], &[]);
        bench.time(
            "magnitude",
            &format!("weight_norm wgrad {name}"),
            WeightNormGrad(plain),
            &[weight(), weight()],
            &[],
        );
    }
}
