//! Linear layers of the same rows, all at once: the projections of a time embedding, and their gradients.

use crate::harness::{Bench, Input, activation, weight};
use cyanea::ops::row_linear::RowLinear;

/// Rows, their width, layers, channels of each.
const CASES: [(usize, usize, usize, usize); 4] =
    [(2, 32, 3, 16), (1, 512, 22, 256), (64, 512, 22, 256), (1000, 512, 22, 256)];

pub fn benches(bench: &mut Bench) {
    for (rows, width, layers, channels) in CASES {
        let x = || std::iter::once(activation([rows, width]));
        let results = || (0..layers).map(|_| activation([rows, channels]));
        let weights = || (0..layers).map(|_| weight([channels, width]));
        let biases = (0..layers).map(|_| weight([channels]));
        let name = format!("{rows}x{width} {layers} of {channels}");
        let forward: Vec<Input> = x().chain(weights()).chain(biases).collect();
        for (what, op, inputs) in [
            ("fwd", RowLinear::Forward, forward),
            ("dgrad", RowLinear::Dgrad, results().chain(weights()).collect()),
            ("wgrad", RowLinear::Wgrad, x().chain(results()).collect()),
        ] {
            bench.time("row_linear", &format!("{what} {name}"), op, &inputs, &[]);
        }
    }
}
