//! What holds where nothing is written.

use super::{
    Data, Diffusion, Kind, Model, NonFinite, ProcessKind, Sampling, Size, SpacingChoice, Training,
};
use crate::data::transforms::Crop;
use crate::diffusion::EdmProcess;
use crate::diffusion::edm::{Churn, Levels};
use crate::diffusion::samplers::Sampler;
use crate::diffusion::scheduler_config::{BetaSchedule, Prediction, VarianceType};
use crate::models::unet_config::TimeScaleShift;
use crate::training::lr_schedule::Decay;
use std::path::PathBuf;

impl Default for Data {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            size: Size { height: 32, width: 32 },
            channels: 3,
            crop: Crop::Centre,
            flip: true,
            held_out: 64,
        }
    }
}

impl Default for Model {
    fn default() -> Self {
        Self {
            kind: Kind::Ddpm,
            channels: vec![32, 64, 64],
            layers_per_block: 2,
            attention: vec![false, false, true],
            mid_attention: true,
            attention_head_dim: 8,
            norm_groups: 32,
            norm_eps: 1e-5,
            time_scale_shift: TimeScaleShift::Default,
            downsample_padding: 1,
            flip_sin_to_cos: true,
            freq_shift: 0.0,
            dropout: 0.0,
            classes: 0,
        }
    }
}

impl Default for Diffusion {
    fn default() -> Self {
        let EdmProcess { p_mean, p_std } = EdmProcess::default();
        Self {
            process: ProcessKind::Ddpm,
            timesteps: 1000,
            beta_schedule: BetaSchedule::Linear,
            beta_start: 1e-4,
            beta_end: 0.02,
            prediction: Prediction::Epsilon,
            p_mean,
            p_std,
        }
    }
}

impl Default for Training {
    fn default() -> Self {
        Self {
            steps: 20_000,
            minutes: 0.0,
            batch_size: 16,
            accumulate: 1,
            learning_rate: 1e-4,
            lr_schedule: Decay::Cosine,
            decay_after: 0,
            warmup_steps: 0,
            final_learning_rate: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            weight_decay: 0.01,
            max_grad_norm: 1.0,
            non_finite: NonFinite::Stop,
            ema_decay: 0.9999,
            ema_widths: Vec::new(),
            label_dropout: 0.0,
            seed: 0,
            log_every: 10,
            sample_every: 1000,
            checkpoint_every: 1000,
            keep_checkpoints: 2,
            average_every: 0,
        }
    }
}

impl Default for Sampling {
    fn default() -> Self {
        let (levels, churn) = (Levels::default(), Churn::default());
        Self {
            sampler: Sampler::Ddim,
            steps: 50,
            spacing: SpacingChoice::Auto,
            eta: 0.0,
            variance: VarianceType::FixedSmall,
            clip: true,
            seeds: "0-15".into(),
            labels: String::new(),
            batch: 16,
            sigma_min: levels.sigma_min,
            sigma_max: levels.sigma_max,
            rho: levels.rho,
            churn: churn.amount,
            churn_min: churn.sigma_min,
            churn_max: churn.sigma_max,
            churn_noise: churn.noise,
        }
    }
}
