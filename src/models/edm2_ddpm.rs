//! The EDM2 network under a DDPM's process: what the timestep, the noisy image and the prediction become
//! for it.
//!
//! A noisy image x = √ᾱ·x₀ + √(1−ᾱ)·ε is √ᾱ times x₀ + σ·ε with σ = √((1−ᾱ)/ᾱ), and what is predicted is
//! a sum a·x₀ + b·ε (of noise, (0, 1); of v, (−√(1−ᾱ), √ᾱ)). The preconditioning of Karras et al. 2022
//! (arXiv:2206.00364, appendix B.6) holds for that as for their own target, with data of the standard
//! deviation s:
//! - the input is multiplied by 1/√V, V = ᾱ·s² + 1 − ᾱ, so that it has unit variance whatever the
//!   timestep, as a network without normalisation of its own needs;
//! - the noise input is ln(σ)/4, from about −1.2 to 1.3 for the linear β of Ho et al. 2020: steps of
//!   equal size change the ratio of image to noise by equal factors, which timesteps don't;
//! - the prediction is c_skip·x + c_out·F. The share of x that predicts the target best is
//!   c_skip = K/V with K = a·√ᾱ·s² + b·√(1−ᾱ), and what is left for the network has the variance
//!   c_out² = a²·s² + b² − K²/V. So F has unit variance too, and where the noisy image is nearly the answer
//!   already (noise, at late timesteps) the network's error counts for as little as it should.

use super::{Edm2Config, Edm2Unet, Given, Network, Timestep};
use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Build, Graph, Rate, Region, TensorId};
use crate::ops::combine::Combine;
use crate::ops::preconditioned::Preconditioned;
use crate::ops::select_row::SelectRow;

/// Slot of the noise input of each timestep, [T, 1].
const NOISE_INPUTS: &str = "noise_inputs";
/// Slots of each timestep's scales, [T, C]: of the input, and of what the prediction is made from.
const C_IN: &str = "c_in";
const C_SKIP: &str = "c_skip";
const C_OUT: &str = "c_out";

/// See the module.
#[derive(Clone, Debug)]
pub struct Edm2Ddpm {
    unet: Edm2Unet,
    steps: Vec<Timestep>,
}

/// What a timestep is to the network.
#[derive(Clone, Copy, Debug)]
struct Scales {
    c_noise: f64,
    c_in: f64,
    c_skip: f64,
    c_out: f64,
}

impl Scales {
    fn new(step: &Timestep, sigma_data: f64) -> Scales {
        let (a, data) = (f64::from(step.alpha_bar), sigma_data.powi(2));
        let (image, noise) = (f64::from(step.target.0), f64::from(step.target.1));
        let variance = a * data + 1.0 - a;
        let shared = image * a.sqrt() * data + noise * (1.0 - a).sqrt();
        // The same as image²·data + noise² − shared²/variance, without its cancellation.
        let rest = image * (1.0 - a).sqrt() - noise * a.sqrt();
        Scales {
            c_noise: ((1.0 - a) / a).ln() / 8.0,
            c_in: 1.0 / variance.sqrt(),
            c_skip: shared / variance,
            c_out: rest.abs() * sigma_data / variance.sqrt(),
        }
    }
}

impl Edm2Ddpm {
    /// # Errors
    /// Whatever [`Edm2Config::validate`] refuses, and an ᾱ that is not between 0 and 1.
    pub fn new(config: Edm2Config, steps: &[Timestep]) -> Result<Edm2Ddpm> {
        let between = |step: &Timestep| (f32::MIN_POSITIVE..1.0).contains(&step.alpha_bar);
        if let Some(t) = steps.iter().position(|step| !between(step)) {
            return Err(Error::invalid(format!(
                "ᾱ is {:e} at timestep {t}, too close to 0 or 1 for float32; take other betas or \
                 fewer timesteps",
                steps[t].alpha_bar
            )));
        }
        Ok(Edm2Ddpm { unet: Edm2Unet::new(config)?, steps: steps.to_vec() })
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
        let (steps, channels) = (self.steps.len(), self.channels()[0]);
        let mut row = |name: &str, width: usize| {
            let ty = TensorType::f32([steps, width]);
            let table = g.slot(Region::State, name, ty, Rate::Weights)?;
            g.one(SelectRow::Each, &[table, given.times])
        };
        let noise = row(NOISE_INPUTS, 1)?;
        let (c_in, c_skip) = (row(C_IN, channels)?, row(C_SKIP, channels)?);
        let c_out = row(C_OUT, channels)?;
        let shape = g.ty(given.times).shape.clone();
        let noise = g.reshape(noise, &shape)?;
        let scaled = g.one(Combine::Product, &[x, c_in])?;
        let output = self.unet.predict(g, scaled, Given { times: noise, ..given })?;
        g.one(Preconditioned, &[x, output, c_skip, c_out])
    }

    fn tables(&self) -> Vec<(&'static str, Vec<f32>)> {
        let (sigma_data, channels) = (self.unet.config().sigma_data, self.channels()[0]);
        let each = |value: &dyn Fn(Scales) -> f64, times| {
            let values = self.steps.iter().map(|step| value(Scales::new(step, sigma_data)) as f32);
            values.flat_map(|value| std::iter::repeat_n(value, times)).collect()
        };
        vec![
            (NOISE_INPUTS, each(&|scales| scales.c_noise, 1)),
            (C_IN, each(&|scales| scales.c_in, channels)),
            (C_SKIP, each(&|scales| scales.c_skip, channels)),
            (C_OUT, each(&|scales| scales.c_out, channels)),
        ]
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

    fn step(alpha_bar: f32, target: (f32, f32)) -> Timestep {
        Timestep { alpha_bar, target }
    }

    #[test]
    fn tables_follow_the_noise() {
        let steps = [0.99, 0.5, 1e-4].map(|a| step(a, (0.0, 1.0)));
        let network = Edm2Ddpm::new(config(), &steps).unwrap();
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

    /// With x₀ = s·u and ε independent of unit variance, target − c_skip·x = p·u + q·ε must have the
    /// variance c_out² and nothing in common with x.
    #[test]
    fn what_is_left_for_the_network_has_unit_variance_and_no_share_of_the_input() {
        let s = 0.5f64;
        for a in [0.9999, 0.7, 0.3, 4e-5] {
            let (image, noise) = (f64::from(a).sqrt(), (1.0 - f64::from(a)).sqrt());
            for target in [(0.0, 1.0), (1.0, 0.0), (-noise, image)] {
                let scales = Scales::new(&step(a, (target.0 as f32, target.1 as f32)), s);
                let p = (target.0 - scales.c_skip * image) * s;
                let q = target.1 - scales.c_skip * noise;
                assert!((p * p + q * q - scales.c_out.powi(2)).abs() <= 1e-6, "{a} {target:?}");
                assert!((p * image * s + q * noise).abs() <= 1e-6, "{a} {target:?}");
            }
        }
        // Predicting the image is what EDM does, but for the scale √ᾱ of its input.
        let scales = Scales::new(&step(0.2, (1.0, 0.0)), s);
        let (sigma, alpha) = (2.0f64, 0.2f64.sqrt());
        assert!((scales.c_skip - s * s / (s * s + sigma * sigma) / alpha).abs() <= 1e-6);
        assert!((scales.c_out - sigma * s / (s * s + sigma * sigma).sqrt()).abs() <= 1e-6);
    }

    #[test]
    fn impossible_schedules_are_refused() {
        let steps = [0.5, 0.0].map(|a| step(a, (0.0, 1.0)));
        let said = Edm2Ddpm::new(config(), &steps).unwrap_err().to_string();
        assert!(said.contains("timestep 1"), "{said}");
    }
}
