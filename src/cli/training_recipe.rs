//! What a configuration asks of a compiled training step, for `plan` and `bench`.

use crate::ops::adamw::AdamW;
use crate::training::config::Config;
use crate::training::trainer::{NoiseSource, Recipe};

/// The recipe of a configuration, with another batch.
pub fn of(config: &Config, batch: usize) -> Recipe {
    let training = &config.training;
    Recipe {
        batch,
        accumulate: training.accumulate,
        size: [config.data.size.height, config.data.size.width],
        prediction: config.diffusion.prediction,
        noise: NoiseSource::Philox,
        optimizer: AdamW {
            beta1: training.betas[0],
            beta2: training.betas[1],
            eps: training.eps,
            weight_decay: training.weight_decay,
            decoupled: true,
            max_norm: (training.max_grad_norm > 0.0).then_some(training.max_grad_norm),
            ema: training.ema_decay > 0.0,
        },
    }
}
