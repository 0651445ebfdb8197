//! The EDM2 network under a DDPM's process: what the timestep and the noisy image become for it.
//!
//! A noisy image √ᾱ·x₀ + √(1−ᾱ)·ε is √ᾱ times x₀ + σ·ε with σ = √((1−ᾱ)/ᾱ), so the scales of
//! Karras et al. 2022 (arXiv:2206.00364, table 1) hold with that σ:
//! - the input is multiplied by 1/√(1 − ᾱ + ᾱ·σ_data²), so that it has unit variance whatever the
//!   timestep, as a network without normalisation of its own needs;
//! - the noise input is ln(σ)/4, from about −1.2 to 1.3 for the linear β of Ho et al. 2020: steps of
//!   equal size change the ratio of image to noise by equal factors, which timesteps don't.
//!
//! The output is the prediction itself (noise, image or v): all three have about unit variance, and
//! the output's gain starts at zero.

use super::{Edm2Config, Edm2Unet, Given, Network};
use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Build, Graph, Rate, Region, TensorId};
use crate::ops::combine::Combine;
use crate::ops::select_row::SelectRow;

/// Slot of the noise input of each timestep, [T, 1].
const NOISE_INPUTS: &str = "noise_inputs";
/// Slot of the scale of each timestep's image, [T, C].
const IMAGE_SCALES: &str = "image_scales";

/// See the module.
#[derive(Clone, Debug)]
pub struct Edm2Ddpm {
    unet: Edm2Unet,
    alpha_bar: Vec<f32>,
}

impl Edm2Ddpm {
    /// `alpha_bar` is ᾱ of each timestep.
    ///
    /// # Errors
    /// Whatever [`Edm2Config::validate`] refuses, and an ᾱ that is not between 0 and 1.
    pub fn new(config: Edm2Config, alpha_bar: &[f32]) -> Result<Edm2Ddpm> {
        if let Some(t) = alpha_bar.iter().position(|a| !(f32::MIN_POSITIVE..1.0).contains(a)) {
            return Err(Error::invalid(format!(
                "ᾱ is {:e} at timestep {t}, too close to 0 or 1 for float32; take other betas or \
                 fewer timesteps",
                alpha_bar[t]
            )));
        }
        Ok(Edm2Ddpm { unet: Edm2Unet::new(config)?, alpha_bar: alpha_bar.to_vec() })
    }
}

impl Network for Edm2Ddpm {
    fn channels(&self) -> [usize; 2] {
        [self.unet.config().img_channels; 2]
    }

    fn check_size(&self, height: usize, width: usize) -> Result<()> {
        self.unet.config().check_size(height, width)
    }

    fn classes(&self) -> usize {
        self.unet.config().label_dim
    }

    fn build(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<TensorId> {
        let (steps, channels) = (self.alpha_bar.len(), self.channels()[0]);
        let mut row = |name: &str, width: usize| {
            let ty = TensorType::f32([steps, width]);
            let table = g.slot(Region::State, name, ty, Rate::Weights)?;
            g.one(SelectRow::Each, &[table, given.times])
        };
        let (noise, scale) = (row(NOISE_INPUTS, 1)?, row(IMAGE_SCALES, channels)?);
        let shape = g.ty(given.times).shape.clone();
        let noise = g.reshape(noise, &shape)?;
        let scaled = g.one(Combine::Product, &[x, scale])?;
        self.unet.predict(g, scaled, Given { times: noise, ..given })
    }

    fn tables(&self) -> Vec<(&'static str, Vec<f32>)> {
        let data = self.unet.config().sigma_data.powi(2);
        let noise = |a: f64| ((1.0 - a) / a).ln() / 8.0;
        let scale = |a: f64| 1.0 / (1.0 - a + a * data).sqrt();
        let each = |value: &dyn Fn(f64) -> f64, times| {
            let values = self.alpha_bar.iter().map(|&a| value(f64::from(a)) as f32);
            values.flat_map(|value| std::iter::repeat_n(value, times)).collect()
        };
        vec![(NOISE_INPUTS, each(&noise, 1)), (IMAGE_SCALES, each(&scale, self.channels()[0]))]
    }

    fn unit_weights(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Edm2Config {
        Edm2Config { img_channels: 2, ..Edm2Config::default() }
    }

    #[test]
    fn tables_follow_the_noise() {
        let network = Edm2Ddpm::new(config(), &[0.99, 0.5, 1e-4]).unwrap();
        let tables = network.tables();
        let noise = &tables[0].1;
        assert!((noise[0] - (0.01f32 / 0.99).ln() / 8.0).abs() <= 1e-6, "{noise:?}");
        assert!(noise[1].abs() <= 1e-7 && noise[2] > 1.1, "{noise:?}");
        // Images of the standard deviation 0.5 under as much noise as ᾱ says.
        for (a, scale) in [0.99f32, 0.5, 1e-4].iter().zip(tables[1].1.chunks(2)) {
            let variance = 1.0 - a + a * 0.25;
            assert_eq!(scale[0], scale[1]);
            assert!((scale[0] * scale[0] * variance - 1.0).abs() <= 1e-6);
        }
    }

    #[test]
    fn impossible_schedules_are_refused() {
        let said = Edm2Ddpm::new(config(), &[0.5, 0.0]).unwrap_err().to_string();
        assert!(said.contains("timestep 1"), "{said}");
    }
}
