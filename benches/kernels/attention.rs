//! Attention, forward and backward.

use crate::harness::{Bench, activation};
use cyanea::ops::attention::{Attention, AttentionGrad};

/// Batch, tokens, heads, channels a head: one for the emulator, `ddpm-64`, EDM2 at 640×1024 pixels,
/// and the autoencoder's one head.
const CASES: [(usize, usize, usize, usize); 8] = [
    (1, 16, 2, 8),
    (1, 256, 32, 8),
    (64, 256, 32, 8),
    (1, 640, 6, 64),
    (1, 1024, 4, 64),
    (16, 1024, 4, 64),
    (1, 2560, 4, 64),
    (1, 1024, 1, 512),
];

pub fn benches(bench: &mut Bench) {
    for (batch, tokens, heads, depth) in CASES {
        let scale = 1.0 / (depth as f32).sqrt();
        let tensor = || activation([batch, tokens, heads * depth]);
        let name = format!("{batch}x{tokens} {heads} heads of {depth}");
        let three = [tensor(), tensor(), tensor()];
        bench.time("attention", &format!("fwd {name}"), Attention { heads, scale }, &three, &[]);
        let lse = activation([batch, tokens, heads]);
        let six = [tensor(), tensor(), tensor(), tensor(), tensor(), lse];
        let gradient = AttentionGrad { heads, scale };
        bench.time("attention", &format!("dgrad {name}"), gradient, &six, &[]);
    }
}
