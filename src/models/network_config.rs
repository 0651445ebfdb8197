//! The settings of a network, whichever it is: what configurations describe and model folders hold.

use super::{
    DdpmUnet, Edm2Config, Edm2Unet, Network, UnetConfig, edm2_ddpm::Edm2Ddpm, json_config,
};
use crate::error::{Error, Result};
use serde_json::{Map, Value};

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub enum NetworkConfig {
    /// The U-Net of DDPM, as in diffusers.
    Ddpm(UnetConfig),
    /// The EDM2 U-Net.
    Edm2(Edm2Config),
}

/// What a timestep is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timestep {
    /// ᾱ, the share of the image in the variance.
    pub alpha_bar: f32,
    /// Shares of the clean image and of the noise in what the network predicts.
    pub target: (f32, f32),
}

/// What a network is told of the noise in its image.
#[derive(Clone, Copy, Debug)]
pub enum NoiseInput<'a> {
    /// Its timestep; what each of them is, is known when the network is built.
    Timesteps(&'a [Timestep]),
    /// Its standard deviation σ.
    Levels,
}

/// Names of the classes in a model folder; the first is diffusers' own.
const CLASSES: [&str; 2] = ["UNet2DModel", "Edm2Unet"];

impl NetworkConfig {
    /// Reads and validates the object of a `config.json`.
    ///
    /// # Errors
    /// Another class than those that [`NetworkConfig::class`] gives, and whatever the network's
    /// own settings refuse.
    pub fn from_json(object: &Map<String, Value>) -> Result<Self> {
        match object.get("_class_name") {
            None => UnetConfig::from_json(object).map(NetworkConfig::Ddpm),
            Some(class) if class == CLASSES[0] => {
                UnetConfig::from_json(object).map(NetworkConfig::Ddpm)
            }
            Some(class) if class == CLASSES[1] => {
                Edm2Config::from_json(object).map(NetworkConfig::Edm2)
            }
            Some(class) => Err(Error::invalid(format!(
                "describes a {}; supported is {}",
                json_config::shorten(class.as_str().unwrap_or("network without a name")),
                CLASSES.join(" or ")
            ))),
        }
    }

    /// The object of a `config.json`, without notes on who wrote it.
    pub fn to_json(&self) -> Map<String, Value> {
        match self {
            NetworkConfig::Ddpm(config) => config.to_json(),
            NetworkConfig::Edm2(config) => config.to_json(),
        }
    }

    /// Library and class, as `model_index.json` has them.
    pub fn class(&self) -> [&'static str; 2] {
        match self {
            NetworkConfig::Ddpm(_) => ["diffusers", CLASSES[0]],
            NetworkConfig::Edm2(_) => ["cyanea", CLASSES[1]],
        }
    }

    /// Whether `model_index.json` may name this class.
    pub fn knows(class: &str) -> bool {
        CLASSES.contains(&class)
    }

    /// # Errors
    /// As [`UnetConfig::validate`] or [`Edm2Config::validate`].
    pub fn validate(&self) -> Result<()> {
        match self {
            NetworkConfig::Ddpm(config) => config.validate(),
            NetworkConfig::Edm2(config) => config.validate(),
        }
    }

    /// Whether the network takes inputs of this size.
    ///
    /// # Errors
    /// Says which sizes it takes.
    pub fn check_size(&self, height: usize, width: usize) -> Result<()> {
        match self {
            NetworkConfig::Ddpm(config) => config.check_size(height, width),
            NetworkConfig::Edm2(config) => config.check_size(height, width),
        }
    }

    /// Height and width must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        match self {
            NetworkConfig::Ddpm(config) => config.size_multiple(),
            NetworkConfig::Edm2(config) => config.size_multiple(),
        }
    }

    /// Height and width that the network was trained for, where that is known.
    pub fn sample_size(&self) -> Option<[usize; 2]> {
        match self {
            NetworkConfig::Ddpm(config) => config.sample_size,
            NetworkConfig::Edm2(config) => {
                Some(config.sample_size.unwrap_or([config.img_resolution; 2]))
            }
        }
    }

    /// Channels of each level, from the finest to the coarsest.
    pub fn level_channels(&self) -> Vec<usize> {
        match self {
            NetworkConfig::Ddpm(config) => config.block_out_channels.clone(),
            NetworkConfig::Edm2(config) => {
                (0..config.levels()).map(|level| config.channels(level)).collect()
            }
        }
    }

    /// The settings of a network that can be told noise levels.
    ///
    /// # Errors
    /// One that can't.
    pub fn of_levels(&self) -> Result<&Edm2Config> {
        match self {
            NetworkConfig::Edm2(config) => Ok(config),
            NetworkConfig::Ddpm(_) => Err(Error::invalid(
                "the U-Net of DDPM is told timesteps, not noise levels; under the process \"edm\" \
                 take the network \"edm2\"",
            )),
        }
    }

    /// The network, as it is told of the noise.
    ///
    /// # Errors
    /// Settings or noise that it can't be built for.
    pub fn network(&self, noise: NoiseInput) -> Result<Box<dyn Network>> {
        Ok(match (self, noise) {
            (_, NoiseInput::Levels) => Box::new(Edm2Unet::new(self.of_levels()?.clone())?),
            (NetworkConfig::Ddpm(config), NoiseInput::Timesteps(_)) => {
                Box::new(DdpmUnet::new(config.clone())?)
            }
            (NetworkConfig::Edm2(config), NoiseInput::Timesteps(steps)) => {
                Box::new(Edm2Ddpm::new(config.clone(), steps)?)
            }
        })
    }
}
