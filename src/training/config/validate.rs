//! Values that types alone don't rule out.

use super::{Config, Diffusion, Kind, Model, NonFinite, ProcessKind, Sampling, Training};
use crate::diffusion::samplers::Sampler;
use crate::diffusion::seeds::labels;
use crate::error::{Error, Result};
use crate::ops::state;
use crate::training::lr_schedule::Decay;
use crate::training::power_ema::exponent;
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
/// Of Heun's method, far beyond what helps.
const MOST_SAMPLING_STEPS: usize = 10_000;
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
        fraction("model.dropout", model.dropout)?;
        within("model.classes", model.classes, 0, 65_536)?;
        let ddpm = model.kind == Kind::Ddpm;
        self.check_unused()?;
        if !ddpm {
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
        let process = self.process();
        process
            .validate()
            .or_else(|error| problem(["diffusion"], format!("[diffusion]: {error}")))?;
        if let Err(error) = process.network(&network) {
            let what = format!("diffusion.process: {error}");
            return problem(["diffusion.process", "model.kind"], what);
        }
        Ok(())
    }

    /// Whether keys that have no effect here are as they are by default: nothing that is written is
    /// ignored.
    fn check_unused(&self) -> Check {
        let Config { model, diffusion, training, sampling, .. } = self;
        let (m, d, t, s) =
            (Model::default(), Diffusion::default(), Training::default(), Sampling::default());
        let edm2 = (model.kind == Kind::Edm2, "model.kind = \"ddpm\"");
        let ddpm = (model.kind == Kind::Ddpm, "model.kind = \"edm2\"");
        let levels = (diffusion.process == ProcessKind::Edm, "diffusion.process = \"ddpm\"");
        let steps = (diffusion.process == ProcessKind::Ddpm, "diffusion.process = \"edm\"");
        let not_heun = (sampling.sampler != Sampler::Heun, "sampling.sampler = \"heun\"");
        let falls = training.lr_schedule == Decay::InverseSqrt;
        let falls = (!falls, "training.lr_schedule = \"inverse_sqrt\"");
        let widths = (training.ema_widths.is_empty(), "training.ema_widths");
        let no_widths = (!training.ema_widths.is_empty(), "training without ema_widths");
        for ((unused, meant), key, changed) in [
            (edm2, "model.mid_attention", model.mid_attention != m.mid_attention),
            (edm2, "model.norm_groups", model.norm_groups != m.norm_groups),
            (edm2, "model.norm_eps", model.norm_eps != m.norm_eps),
            (edm2, "model.time_scale_shift", model.time_scale_shift != m.time_scale_shift),
            (edm2, "model.downsample_padding", model.downsample_padding != m.downsample_padding),
            (edm2, "model.flip_sin_to_cos", model.flip_sin_to_cos != m.flip_sin_to_cos),
            (edm2, "model.freq_shift", model.freq_shift != m.freq_shift),
            (ddpm, "model.classes", model.classes != m.classes),
            (levels, "diffusion.timesteps", diffusion.timesteps != d.timesteps),
            (levels, "diffusion.beta_schedule", diffusion.beta_schedule != d.beta_schedule),
            (levels, "diffusion.beta_start", diffusion.beta_start != d.beta_start),
            (levels, "diffusion.beta_end", diffusion.beta_end != d.beta_end),
            (levels, "diffusion.prediction", diffusion.prediction != d.prediction),
            (steps, "diffusion.p_mean", diffusion.p_mean != d.p_mean),
            (steps, "diffusion.p_std", diffusion.p_std != d.p_std),
            (falls, "training.decay_after", training.decay_after != t.decay_after),
            (no_widths, "training.ema_decay", training.ema_decay != t.ema_decay),
            (widths, "training.average_every", training.average_every != t.average_every),
            (not_heun, "sampling.sigma_min", sampling.sigma_min != s.sigma_min),
            (not_heun, "sampling.sigma_max", sampling.sigma_max != s.sigma_max),
            (not_heun, "sampling.rho", sampling.rho != s.rho),
            (not_heun, "sampling.churn", sampling.churn != s.churn),
            (not_heun, "sampling.churn_min", sampling.churn_min != s.churn_min),
            (not_heun, "sampling.churn_max", sampling.churn_max != s.churn_max),
            (not_heun, "sampling.churn_noise", sampling.churn_noise != s.churn_noise),
        ] {
            if unused && changed {
                return problem([key], format!("{key} is for {meant} alone; leave it out"));
            }
        }
        Ok(())
    }

    fn check_training(&self) -> Check {
        let training = &self.training;
        for (key, value, least) in [
            ("training.steps", training.steps, 1),
            ("training.warmup_steps", training.warmup_steps, 0),
            ("training.decay_after", training.decay_after, 0),
            ("training.average_every", training.average_every, 0),
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
        if training.non_finite == NonFinite::Zero && training.max_grad_norm > 0.0 {
            let what = format!(
                "training.max_grad_norm is {}, but where gradients are zeroed (training.non_finite) \
                 their norm may not be finite; set it to 0",
                training.max_grad_norm
            );
            return problem(["training.max_grad_norm", "training.non_finite"], what);
        }
        fraction("training.ema_decay", training.ema_decay)?;
        fraction("training.label_dropout", training.label_dropout)?;
        if training.label_dropout > 0.0 && self.model.classes == 0 {
            let what = format!(
                "training.label_dropout is {}, but there are no labels (model.classes); leave it out",
                training.label_dropout
            );
            return problem(["training.label_dropout", "model.classes"], what);
        }
        let widths = &training.ema_widths;
        let most = state::EMA_DECAYS.len();
        if widths.len() > most {
            let needed = format!("a list of at most {most}");
            return refuse("training.ema_widths", format!("a list of {}", widths.len()), &needed);
        }
        for (index, &width) in widths.iter().enumerate() {
            exponent(width).map(drop).or_else(|e| {
                problem(["training.ema_widths"], format!("training.ema_widths: {e}"))
            })?;
            if widths[..index].contains(&width) {
                let what = format!("training.ema_widths has {width} twice; leave one out");
                return problem(["training.ema_widths"], what);
            }
        }
        Ok(())
    }

    fn check_sampling(&self) -> Check {
        let sampling = &self.sampling;
        let most = match self.diffusion.process {
            ProcessKind::Ddpm => self.diffusion.timesteps,
            ProcessKind::Edm => MOST_SAMPLING_STEPS,
        };
        within("sampling.steps", sampling.steps, 1, most)?;
        if !(0.0..=1.0).contains(&sampling.eta) {
            return refuse("sampling.eta", sampling.eta, "a number from 0 to 1");
        }
        within("sampling.batch", sampling.batch, 1, MOST_BATCH)?;
        let seeds = self.seeds();
        let count = seeds.as_ref().map_or(0, Vec::len);
        seeds
            .map(drop)
            .or_else(|error| problem(["sampling.seeds"], format!("sampling.seeds: {error}")))?;
        labels(&sampling.labels, self.model.classes, count).map(drop).or_else(|error| {
            problem(["sampling.labels", "model.classes"], format!("sampling.labels: {error}"))
        })?;
        self.sampler_table()
            .map(drop)
            .or_else(|error| problem(["sampling", "diffusion"], format!("[sampling]: {error}")))
    }
}
