//! Values that types alone don't rule out.

use super::{Config, Kind, Model};
use crate::error::{Error, Result};
use std::fmt::Display;

/// What is wrong, and the keys that it comes from; a section stands for all of its keys.
pub(super) struct Problem {
    pub keys: Vec<&'static str>,
    pub what: String,
}

type Check = std::result::Result<(), Problem>;

fn problem<const N: usize>(keys: [&'static str; N], what: impl Into<String>) -> Check {
    Err(Problem { keys: keys.to_vec(), what: what.into() })
}

/// A value, and what is needed instead.
fn refuse(key: &'static str, value: impl Display, needed: &str) -> Check {
    problem([key], format!("{key} is {value}; {needed} is needed"))
}

fn within(key: &'static str, value: usize, least: usize, most: usize) -> Check {
    if (least..=most).contains(&value) {
        return Ok(());
    }
    refuse(key, value, &format!("a number from {least} to {most}"))
}

fn positive(key: &'static str, value: f64) -> Check {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    refuse(key, value, "a positive number")
}

fn not_negative(key: &'static str, value: f64) -> Check {
    if value >= 0.0 && value.is_finite() {
        return Ok(());
    }
    refuse(key, value, "a number of at least 0")
}

/// From 0 to below 1.
fn fraction(key: &'static str, value: f64) -> Check {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    refuse(key, value, "a number from 0 to below 1")
}

const MOST_PIXELS: usize = 8192;
const MOST_BATCH: usize = 65_536;
/// Of one batch of images: 8 GiB of float32, more than a slip of the finger should ask for.
const MOST_ELEMENTS: usize = 1 << 31;
/// Steps are counted exactly in double precision and in TOML.
const MOST_STEPS: u64 = 1 << 52;

impl Config {
    /// Whether every value can be used; nothing is read from disk.
    ///
    /// # Errors
    /// The first value that can't, with key and remedy.
    pub fn validate(&self) -> Result<()> {
        self.check().map_err(|problem| Error::Invalid(problem.what))
    }

    pub(super) fn check(&self) -> Check {
        self.check_model()?;
        self.check_training()?;
        self.check_sampling()
    }

    fn check_model(&self) -> Check {
        let (size, model) = (self.data.size, &self.model);
        for side in [size.height, size.width] {
            within("data.size", side, 1, MOST_PIXELS)?;
        }
        let levels = model.channels.len();
        within("data.channels", self.data.channels, 1, 65_536)?;
        within("model.layers_per_block", model.layers_per_block, 1, 64)?;
        within("model.norm_groups", model.norm_groups, 1, 65_536)?;
        let ddpm = model.kind == Kind::Ddpm;
        if !ddpm {
            self.check_unused()?;
            within("model.attention_head_dim", model.attention_head_dim, 1, 65_536)?;
        }
        if model.attention.len() != levels {
            let needed = format!("one true or false for each of the {levels} levels");
            let what = format!("model.attention is {:?}; {needed} is needed", model.attention);
            return problem(["model.attention", "model.channels"], what);
        }
        for (level, &channels) in model.channels.iter().enumerate() {
            within("model.channels", channels, 1, 65_536)?;
            let attends = model.attention[level] || (level + 1 == levels && model.mid_attention);
            for (key, divisor, matters) in [
                ("model.norm_groups", model.norm_groups, ddpm),
                ("model.attention_head_dim", model.attention_head_dim.max(1), attends),
            ] {
                if matters && !channels.is_multiple_of(divisor) {
                    let what = format!(
                        "model.channels[{level}] = {channels} does not divide by {key} = {divisor}; \
                         take {} channels or another {key}",
                        channels.div_ceil(divisor) * divisor
                    );
                    return problem(["model.channels", key], what);
                }
            }
        }
        let network = self.network();
        if levels > 0 && levels <= 16 {
            network.check_size(size.height, size.width).or_else(|error| {
                problem(["data.size", "model.channels"], format!("data.size: {error}"))
            })?;
        }
        // Under diffusers' names for what is left; its keys are those of [model] or nearly so.
        network.validate().or_else(|error| problem(["model"], format!("[model]: {error}")))?;
        let scheduler = self.scheduler();
        scheduler
            .validate()
            .or_else(|error| problem(["diffusion"], format!("[diffusion]: {error}")))
    }

    /// Whether keys that EDM2 does not have are as they are by default: nothing that is written is
    /// ignored.
    fn check_unused(&self) -> Check {
        let (model, default) = (&self.model, Model::default());
        for (key, changed) in [
            ("model.mid_attention", model.mid_attention != default.mid_attention),
            ("model.norm_groups", model.norm_groups != default.norm_groups),
            ("model.norm_eps", model.norm_eps != default.norm_eps),
            ("model.time_scale_shift", model.time_scale_shift != default.time_scale_shift),
            ("model.downsample_padding", model.downsample_padding != default.downsample_padding),
            ("model.flip_sin_to_cos", model.flip_sin_to_cos != default.flip_sin_to_cos),
            ("model.freq_shift", model.freq_shift != default.freq_shift),
        ] {
            if changed {
                let what = format!("{key} is for model.kind = \"ddpm\" alone; leave it out");
                return problem([key], what);
            }
        }
        Ok(())
    }

    fn check_training(&self) -> Check {
        let training = &self.training;
        for (key, value, least) in [
            ("training.steps", training.steps, 1),
            ("training.warmup_steps", training.warmup_steps, 0),
            ("training.log_every", training.log_every, 1),
            ("training.sample_every", training.sample_every, 0),
            ("training.checkpoint_every", training.checkpoint_every, 0),
        ] {
            if value < least || value > MOST_STEPS {
                return refuse(key, value, &format!("a number from {least} to {MOST_STEPS}"));
            }
        }
        if training.seed > i64::MAX as u64 {
            return refuse("training.seed", training.seed, "a number that TOML can hold");
        }
        if training.warmup_steps > training.steps {
            let needed = format!("at most training.steps = {}", training.steps);
            return refuse("training.warmup_steps", training.warmup_steps, &needed);
        }
        within("training.batch_size", training.batch_size, 1, MOST_BATCH)?;
        within("training.accumulate", training.accumulate, 1, MOST_BATCH)?;
        within("training.keep_checkpoints", training.keep_checkpoints, 1, 1_000_000)?;
        let size = self.data.size;
        let elements = training.batch_size.saturating_mul(3 * size.height * size.width);
        if elements > MOST_ELEMENTS {
            let batch = training.batch_size;
            let what = format!(
                "training.batch_size is {batch}, of {}×{} pixels each; a batch of at most 2³¹ \
                 values is needed",
                size.height, size.width
            );
            return problem(["training.batch_size", "data.size"], what);
        }
        not_negative("training.minutes", training.minutes)?;
        positive("training.learning_rate", training.learning_rate)?;
        not_negative("training.final_learning_rate", training.final_learning_rate)?;
        if training.final_learning_rate > training.learning_rate {
            let needed = format!("at most training.learning_rate = {}", training.learning_rate);
            return refuse("training.final_learning_rate", training.final_learning_rate, &needed);
        }
        for beta in training.betas {
            fraction("training.betas", beta)?;
        }
        positive("training.eps", training.eps)?;
        not_negative("training.weight_decay", training.weight_decay)?;
        not_negative("training.max_grad_norm", training.max_grad_norm)?;
        fraction("training.ema_decay", training.ema_decay)
    }

    fn check_sampling(&self) -> Check {
        let sampling = &self.sampling;
        within("sampling.steps", sampling.steps, 1, self.diffusion.timesteps)?;
        if !(0.0..=1.0).contains(&sampling.eta) {
            return refuse("sampling.eta", sampling.eta, "a number from 0 to 1");
        }
        within("sampling.batch", sampling.batch, 1, MOST_BATCH)?;
        self.seeds()
            .map(drop)
            .or_else(|error| problem(["sampling.seeds"], format!("sampling.seeds: {error}")))?;
        self.sampler_table()
            .map(drop)
            .or_else(|error| problem(["sampling", "diffusion"], format!("[sampling]: {error}")))
    }
}
