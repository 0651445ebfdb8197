//! What reads and writes each element once: SiLU, sums, concatenation, resampling, casts, and sums
//! over pixels.

use crate::harness::{Bench, activation};
use cyanea::device::DType;
use cyanea::ops::activation::{Activation, ActivationGrad};
use cyanea::ops::cast::Cast;
use cyanea::ops::combine::Combine;
use cyanea::ops::concat::Concat;
use cyanea::ops::resample::{Pool2d, UpsampleNearest2d};
use cyanea::ops::sum_pixels::{Rows, SumPixels};

/// Batch, height and width, channels.
const CASES: [(usize, usize, usize); 4] = [(1, 8, 16), (1, 64, 128), (16, 32, 32), (64, 64, 128)];

pub fn benches(bench: &mut Bench) {
    for (batch, size, channels) in CASES {
        let image = || activation([batch, size, size, channels]);
        let row = activation([batch, channels]);
        let name = |what: &str| format!("{what} {batch}x{size}x{size} {channels}");
        bench.time("pointwise", &name("silu fwd"), Activation::SILU, &[image()], &[]);
        bench.time(
            "pointwise",
            &name("silu dgrad"),
            ActivationGrad(Activation::SILU),
            &[image(), image()],
            &[],
        );
        bench.time("pointwise", &name("add"), Combine::ADD, &[image(), image()], &[]);
        bench.time("pointwise", &name("add row"), Combine::ADD, &[image(), row], &[]);
        bench.time("pointwise", &name("concat"), Concat::PLAIN, &[image(), image()], &[]);
        let upsample = UpsampleNearest2d::copies(2);
        bench.time("pointwise", &name("upsample"), upsample, &[image()], &[]);
        bench.time("pointwise", &name("pool"), Pool2d::average(2), &[image()], &[]);
        let sum = SumPixels { rows: Rows::Flat };
        bench.time("pointwise", &name("sum_pixels"), sum, &[image()], &[]);
        if !bench.on_cpu() {
            bench.time("pointwise", &name("cast to f16"), Cast { to: DType::F16 }, &[image()], &[]);
        }
    }
}
