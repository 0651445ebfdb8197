//! The diffusion process itself: noise, q(x_t | x₀), timestep embedding, and a sampler's update.

use crate::harness::{Bench, activation, constant, seeds, step_state};
use cyanea::ops::add_noise::{AddNoise, Shares};
use cyanea::ops::sampler_update::{COLUMNS, Noise, SamplerUpdate};
use cyanea::ops::timestep_embedding::TimestepEmbedding;

const STEPS: usize = 50;

pub fn benches(bench: &mut Bench) {
    for (batch, size) in [(1, 8), (1, 64), (64, 64)] {
        let image = || activation([batch, size, size, 3]);
        let name = |what: &str| format!("{what} {batch}x{size}x{size} 3");
        let timesteps = || constant([batch], 500.0);
        let inputs = [image(), image(), activation([1000, 2]), timesteps()];
        let given = AddNoise { shares: Shares::Timesteps { velocity: false }, draws: None };
        bench.time("diffusion", &name("add_noise"), given, &inputs, &[]);
        let inputs = [image(), step_state(), activation([1000, 2]), timesteps()];
        let drawing = AddNoise { draws: Some(1), ..given };
        bench.time("diffusion", &name("add_noise drawn"), drawing, &inputs, &[]);
        let inputs = [image(), step_state(), constant([batch], 1.5)];
        let levels = AddNoise { shares: Shares::Sigma, ..drawing };
        bench.time("diffusion", &name("add_noise drawn levels"), levels, &inputs, &[]);
        let table = || activation([STEPS, COLUMNS]);
        let update = SamplerUpdate {
            history: true,
            noise: Noise::Philox { purpose: 1 },
            pairs: false,
            preconditioned: false,
        };
        let inputs = [image(), table(), seeds(batch)];
        let updated = [image(), image(), step_state()];
        bench.time("diffusion", &name("sampler_update"), update, &inputs, &updated);
        let embedding = TimestepEmbedding {
            dim: 128,
            flip_sin_to_cos: false,
            freq_shift: 1.0,
            max_period: 10_000.0,
        };
        bench.time("diffusion", &name("timestep_embedding"), embedding, &[timesteps()], &[]);
    }
}
