//! Checkpoints: one safetensors file with everything that a run needs to go on to the bit.

use super::loss_scale::LossScale;
use super::trainer::Trainer;
use crate::error::{Error, Result};
use crate::formats::tensors::{Tensor, Tensors};
use crate::graph::Region;
use crate::models::Weights;
use std::path::Path;

const FORMAT: &str = "cyanea-checkpoint/1";

/// What goes with the tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Optimizer steps done, skipped ones included.
    pub step: u64,
    /// Of these, skipped.
    pub skipped: u32,
    /// Seconds spent training.
    pub seconds: f64,
    /// Of the training images ([`crate::data::dataset::Dataset::fingerprint`]): a run that goes on
    /// with other images would not be the same run.
    pub data: u64,
}

fn prefix(region: Region) -> String {
    match region {
        Region::Moment1 => "moment1.".into(),
        Region::Moment2 => "moment2.".into(),
        Region::Ema(0) => "ema.".into(),
        Region::Ema(number) => format!("ema{}.", number + 1),
        _ => "weights.".into(),
    }
}

/// Writes a checkpoint; the file appears whole or not at all.
///
/// # Errors
/// When the file can't be written, or the device fails.
pub fn write(path: &Path, trainer: &mut Trainer, progress: &Progress) -> Result<()> {
    let mut tensors = Tensors::new();
    for region in trainer.regions() {
        for (name, shape, values) in trainer.get(region)?.tensors {
            tensors.insert(format!("{}{name}", prefix(region)), Tensor::f32(shape, values));
        }
    }
    let Progress { step, skipped, seconds, data } = progress;
    for (key, value) in [
        ("format", FORMAT.to_string()),
        ("step", step.to_string()),
        ("skipped", skipped.to_string()),
        ("seconds", seconds.to_string()),
        ("data", data.to_string()),
    ] {
        tensors.metadata.insert(key.to_string(), value);
    }
    if let Some(scale) = trainer.loss_scale() {
        tensors.metadata.insert("loss_scale".into(), scale.factor.to_string());
        tensors.metadata.insert("loss_scale_steps".into(), scale.good_steps.to_string());
    }
    tensors.write(path)
}

/// A checkpoint that was read: its progress and the regions that it holds.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub progress: Progress,
    /// Of a run in float16.
    pub loss_scale: Option<LossScale>,
    tensors: Tensors,
}

impl Checkpoint {
    /// Reads a file; whether it fits a network is seen when it is used.
    ///
    /// # Errors
    /// A file that is no checkpoint, is damaged, or holds NaN or infinity.
    pub fn read(path: &Path) -> Result<Checkpoint> {
        let tensors = Tensors::read(path)?;
        let note = |key: &str| {
            tensors.metadata.get(key).map(String::as_str).ok_or_else(|| {
                Error::file(path, format!("is no checkpoint: its metadata lacks `{key}`"))
            })
        };
        if note("format")? != FORMAT {
            return Err(Error::file(path, format!("is no checkpoint of the format {FORMAT}")));
        }
        fn number<T: std::str::FromStr>(path: &Path, key: &str, text: &str) -> Result<T> {
            text.parse().map_err(|_| {
                let text: String = text.chars().take(40).collect();
                Error::file(path, format!("its metadata has `{key}` = \"{text}\", no number"))
            })
        }
        let progress = Progress {
            step: number(path, "step", note("step")?)?,
            skipped: number(path, "skipped", note("skipped")?)?,
            seconds: number(path, "seconds", note("seconds")?)?,
            data: number(path, "data", note("data")?)?,
        };
        let loss_scale = match tensors.metadata.get("loss_scale") {
            None => None,
            Some(factor) => Some(LossScale {
                factor: number(path, "loss_scale", factor)?,
                good_steps: number(path, "loss_scale_steps", note("loss_scale_steps")?)?,
                ..LossScale::default()
            }),
        };
        tensors.require_finite(path)?;
        Ok(Checkpoint { progress, loss_scale, tensors })
    }

    /// Takes one region's tensors, in the order of `parameters`.
    ///
    /// # Errors
    /// Tensors that are missing or have another shape; `path` is named.
    pub fn take(
        &mut self,
        region: Region,
        parameters: &[(String, Vec<usize>)],
        path: &Path,
    ) -> Result<Weights> {
        let tensors = parameters
            .iter()
            .map(|(name, shape)| {
                let full = format!("{}{name}", prefix(region));
                let values = self.tensors.take_f32(&full, shape, path)?;
                Ok((name.clone(), shape.clone(), values))
            })
            .collect::<Result<_>>()?;
        Ok(Weights { tensors })
    }

    /// Whether the checkpoint has a moving average.
    pub fn has_average(&self) -> bool {
        self.tensors.names().any(|name| name.starts_with(&prefix(Region::Ema(0))))
    }
}
