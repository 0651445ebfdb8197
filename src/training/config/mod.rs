//! Everything that a run is made from, in five sections of a TOML file. Each key has a default and
//! a one-line explanation; nothing that is written there is ignored.

mod defaults;
mod keys;
mod load;
mod presets;
mod validate;

pub use keys::explanation;
pub use presets::PRESETS;

use super::lr_schedule::{Decay, LrSchedule};
use crate::data::transforms::Crop;
use crate::diffusion::edm::{self, Churn, Levels};
use crate::diffusion::samplers::{self, Sampler, SamplerTable};
use crate::diffusion::scheduler_config::{BetaSchedule, Prediction, Spacing, VarianceType};
use crate::diffusion::{EdmProcess, Process, SchedulerConfig};
use crate::error::{Error, Result};
use crate::models::unet_config::{DownBlock, TimeScaleShift, UpBlock};
use crate::models::{Edm2Config, Network, NetworkConfig, UnetConfig};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::path::PathBuf;

/// The settings of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub data: Data,
    pub model: Model,
    pub diffusion: Diffusion,
    pub training: Training,
    pub sampling: Sampling,
}

/// Which images, and how they become training samples.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    pub path: PathBuf,
    pub size: Size,
    pub channels: usize,
    pub crop: Crop,
    pub flip: bool,
    pub held_out: usize,
}

/// Height and width, written as one number where they agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub height: usize,
    pub width: usize,
}

/// Which U-Net.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// That of DDPM (Ho et al. 2020).
    #[default]
    Ddpm,
    /// That of EDM2 (Karras et al. 2024).
    Edm2,
}

/// The U-Net.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Model {
    pub kind: Kind,
    pub channels: Vec<usize>,
    pub layers_per_block: usize,
    pub attention: Vec<bool>,
    pub mid_attention: bool,
    pub attention_head_dim: usize,
    pub norm_groups: usize,
    pub norm_eps: f64,
    pub time_scale_shift: TimeScaleShift,
    pub downsample_padding: usize,
    pub flip_sin_to_cos: bool,
    pub freq_shift: f64,
    pub dropout: f64,
    pub classes: usize,
}

/// Which process turns images into noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProcessKind {
    /// Timesteps (Ho et al. 2020).
    #[default]
    Ddpm,
    /// Noise levels (Karras et al. 2022).
    Edm,
}

/// The process from image to noise, and what the network predicts about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Diffusion {
    pub process: ProcessKind,
    pub timesteps: usize,
    pub beta_schedule: BetaSchedule,
    pub beta_start: f64,
    pub beta_end: f64,
    pub prediction: Prediction,
    pub p_mean: f64,
    pub p_std: f64,
}

/// The optimizer, and what is written down while it runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Training {
    pub steps: u64,
    pub minutes: f64,
    pub batch_size: usize,
    pub accumulate: usize,
    pub learning_rate: f64,
    pub lr_schedule: Decay,
    pub decay_after: u64,
    pub warmup_steps: u64,
    pub final_learning_rate: f64,
    pub betas: [f64; 2],
    pub eps: f64,
    pub weight_decay: f64,
    pub max_grad_norm: f64,
    pub non_finite: NonFinite,
    pub ema_decay: f64,
    pub ema_widths: Vec<f64>,
    pub label_dropout: f64,
    pub seed: u64,
    pub log_every: u64,
    pub sample_every: u64,
    pub checkpoint_every: u64,
    pub keep_checkpoints: usize,
    pub average_every: u64,
}

/// What becomes of gradients that are NaN or infinite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NonFinite {
    /// Training stops with an error; in float16 the step is skipped and the loss scale halved.
    #[default]
    Stop,
    /// They become 0, and the step is taken, as in EDM2.
    Zero,
}

/// How images are sampled, during training and after it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Sampling {
    pub sampler: Sampler,
    pub steps: usize,
    pub spacing: SpacingChoice,
    pub eta: f64,
    pub variance: VarianceType,
    pub clip: bool,
    pub seeds: String,
    pub labels: String,
    pub batch: usize,
    pub sigma_min: f64,
    pub sigma_max: f64,
    pub rho: f64,
    pub churn: f64,
    pub churn_min: f64,
    pub churn_max: f64,
    pub churn_noise: f64,
}

/// A spacing of timesteps, or the sampler's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpacingChoice {
    #[default]
    Auto,
    Leading,
    Linspace,
    Trailing,
}

impl Config {
    /// The network that `[model]` and `[data]` describe.
    pub fn network(&self) -> NetworkConfig {
        match self.model.kind {
            Kind::Ddpm => NetworkConfig::Ddpm(self.unet()),
            Kind::Edm2 => NetworkConfig::Edm2(self.edm2()),
        }
    }

    /// The network, for the process that `[diffusion]` describes.
    ///
    /// # Errors
    /// Settings out of range; validated configurations have none.
    pub fn build_network(&self) -> Result<Box<dyn Network>> {
        self.process().network(&self.network())
    }

    /// The process that `[diffusion]` describes.
    pub fn process(&self) -> Process {
        let Diffusion { process, p_mean, p_std, .. } = self.diffusion;
        match process {
            ProcessKind::Ddpm => Process::Ddpm(self.scheduler()),
            ProcessKind::Edm => Process::Edm(EdmProcess { p_mean, p_std }),
        }
    }

    /// Levels are named by the longer side of the images.
    fn edm2(&self) -> Edm2Config {
        let (model, Size { height, width }) = (&self.model, self.data.size);
        let resolution = height.max(width);
        // A common unit keeps the multiples whole.
        let unit =
            model.channels.iter().fold(0, |unit, &channels| greatest_divisor(unit, channels));
        let attends = model.attention.iter().enumerate().filter(|(_, on)| **on);
        Edm2Config {
            img_resolution: resolution,
            img_channels: self.data.channels,
            sample_size: Some([height, width]),
            model_channels: unit,
            channel_mult: model
                .channels
                .iter()
                .map(|&channels| (channels / unit.max(1)) as f64)
                .collect(),
            num_blocks: model.layers_per_block,
            attn_resolutions: attends.map(|(level, _)| resolution >> level).collect(),
            channels_per_head: model.attention_head_dim,
            dropout: model.dropout,
            label_dim: model.classes,
            ..Edm2Config::default()
        }
    }

    fn unet(&self) -> UnetConfig {
        let model = &self.model;
        UnetConfig {
            sample_size: Some([self.data.size.height, self.data.size.width]),
            in_channels: self.data.channels,
            out_channels: self.data.channels,
            down_block_types: model
                .attention
                .iter()
                .map(|&on| if on { DownBlock::Attention } else { DownBlock::Plain })
                .collect(),
            up_block_types: model
                .attention
                .iter()
                .rev()
                .map(|&on| if on { UpBlock::Attention } else { UpBlock::Plain })
                .collect(),
            block_out_channels: model.channels.clone(),
            layers_per_block: model.layers_per_block,
            add_attention: model.mid_attention,
            attention_head_dim: Some(model.attention_head_dim).filter(|&dim| dim > 0),
            norm_num_groups: model.norm_groups,
            norm_eps: model.norm_eps,
            resnet_time_scale_shift: model.time_scale_shift,
            downsample_padding: model.downsample_padding,
            flip_sin_to_cos: model.flip_sin_to_cos,
            freq_shift: model.freq_shift,
            dropout: model.dropout,
            ..UnetConfig::default()
        }
    }

    /// Whether training can have the data from image files.
    ///
    /// # Errors
    /// Channels that images don't have.
    pub fn require_images(&self) -> Result<()> {
        match self.data.channels {
            3 => Ok(()),
            channels => Err(Error::invalid(format!(
                "data.channels is {channels}; training reads images, which have 3: set it to 3, or \
                 plan such a run with `cyanea plan`"
            ))),
        }
    }

    /// The process of timesteps that `[diffusion]` describes, sampled as `[sampling]` says.
    pub fn scheduler(&self) -> SchedulerConfig {
        SchedulerConfig {
            num_train_timesteps: self.diffusion.timesteps,
            beta_start: self.diffusion.beta_start,
            beta_end: self.diffusion.beta_end,
            beta_schedule: self.diffusion.beta_schedule,
            prediction_type: self.diffusion.prediction,
            variance_type: Some(self.sampling.variance),
            clip_sample: self.sampling.clip,
            timestep_spacing: match self.sampling.spacing {
                SpacingChoice::Auto => None,
                SpacingChoice::Leading => Some(Spacing::Leading),
                SpacingChoice::Linspace => Some(Spacing::Linspace),
                SpacingChoice::Trailing => Some(Spacing::Trailing),
            },
            ..SchedulerConfig::default()
        }
    }

    /// The table of a sampling run with the settings of `[sampling]`.
    ///
    /// # Errors
    /// Settings out of range; validated configurations have none.
    pub fn sampler_table(&self) -> Result<SamplerTable> {
        self.sampling.table(&self.process())
    }

    /// Whether a run that began with the settings `was` can go on with these, as far as its checkpoint
    /// can't tell.
    ///
    /// # Errors
    /// Other power-function averages, or other images a step, which their profiles follow.
    pub fn check_continues(&self, was: &Config) -> Result<()> {
        let (now, then) = (&self.training, &was.training);
        let refuse = |key: &str, then: String, now: String| {
            Err(Error::invalid(format!(
                "training.{key} was {then} in this run and can't become {now}: its averages are of that; \
                 leave it, or begin another run"
            )))
        };
        if now.ema_widths != then.ema_widths {
            let [then, now] = [then, now].map(|training| format!("{:?}", training.ema_widths));
            return refuse("ema_widths", then, now);
        }
        for (key, then, now) in [
            ("batch_size", then.batch_size, now.batch_size),
            ("accumulate", then.accumulate, now.accumulate),
        ] {
            if then != now && !self.training.ema_widths.is_empty() {
                return refuse(key, then.to_string(), now.to_string());
            }
        }
        Ok(())
    }

    /// The learning rate of each optimizer step.
    pub fn lr_schedule(&self) -> LrSchedule {
        LrSchedule {
            decay: self.training.lr_schedule,
            peak: self.training.learning_rate,
            end: self.training.final_learning_rate,
            warmup: self.training.warmup_steps,
            steps: self.training.steps,
            flat: self.training.decay_after,
        }
    }

    /// The seeds of `sampling.seeds`.
    ///
    /// # Errors
    /// A list that can't be read; validated configurations have none.
    pub fn seeds(&self) -> Result<Vec<u64>> {
        crate::diffusion::seeds::parse_seeds(&self.sampling.seeds)
    }
}

impl Sampling {
    /// The table of a sampling run of a process.
    ///
    /// # Errors
    /// Settings out of range, and a sampler that the process does not have.
    pub fn table(&self, process: &Process) -> Result<SamplerTable> {
        match (process, self.sampler) {
            (Process::Edm(_), Sampler::Heun) => {
                let &Sampling { steps, sigma_min, sigma_max, rho, churn, .. } = self;
                let levels = Levels { steps, sigma_min, sigma_max, rho };
                let churn = Churn {
                    amount: churn,
                    sigma_min: self.churn_min,
                    sigma_max: self.churn_max,
                    noise: self.churn_noise,
                };
                edm::heun(&levels, &churn)
            }
            (Process::Ddpm(scheduler), Sampler::Ddpm | Sampler::Ddim | Sampler::DpmSolverPp2m) => {
                let clip = self.sampler.clip(scheduler);
                samplers::table(scheduler, self.sampler, self.steps, self.eta, clip)
            }
            (Process::Edm(_), other) => Err(Error::invalid(format!(
                "the sampler {} goes by timesteps, but the model was trained for noise levels; take \
                 heun",
                other.name()
            ))),
            (Process::Ddpm(_), Sampler::Heun) => Err(Error::invalid(
                "the sampler heun goes by noise levels, but the model was trained for timesteps; take \
                 ddpm, ddim or dpmpp-2m",
            )),
        }
    }
}

fn greatest_divisor(a: usize, b: usize) -> usize {
    if b == 0 { a } else { greatest_divisor(b, a % b) }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        if self.height == self.width {
            return out.serialize_u64(self.height as u64);
        }
        [self.height, self.width].serialize(out)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(input: D) -> std::result::Result<Self, D::Error> {
        let value = toml::Value::deserialize(input)?;
        let number = |value: &toml::Value| {
            value.as_integer().and_then(|number| usize::try_from(number).ok())
        };
        let sides = match &value {
            toml::Value::Array(pair) if pair.len() == 2 => number(&pair[0]).zip(number(&pair[1])),
            single => number(single).map(|side| (side, side)),
        };
        sides.map(|(height, width)| Size { height, width }).ok_or_else(|| {
            serde::de::Error::custom(format!(
                "{value} is no size; a positive number, or [height, width], is needed"
            ))
        })
    }
}

#[cfg(test)]
mod tests;
