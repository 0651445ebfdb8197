//! The forward process: how much of the image and how much noise a timestep holds,
//! `x_t = √ᾱ_t·x₀ + √(1−ᾱ_t)·ε` (Ho et al. 2020, equation 4).
//!
//! Tables are float32, rounded where diffusers rounds them, so that both sample from the same
//! process: near `t = 0` the small differences `1 − ᾱ` keep few digits, and exact arithmetic would
//! differ from diffusers in the third one.

use super::scheduler_config::{BetaSchedule, Prediction, SchedulerConfig};
use crate::error::{Error, Result};
use crate::models::Timestep;

/// The tables of a forward process, one entry a timestep.
#[derive(Clone, Debug, PartialEq)]
pub struct NoiseSchedule {
    betas: Vec<f32>,
    alpha_bar: Vec<f32>,
    prediction: Prediction,
}

impl NoiseSchedule {
    /// # Errors
    /// Whatever [`SchedulerConfig::validate`] refuses.
    pub fn new(config: &SchedulerConfig) -> Result<Self> {
        config.validate()?;
        let betas = betas(config);
        let mut product = 1.0_f64;
        let alpha_bar = betas
            .iter()
            .map(|beta| {
                // PyTorch's cumprod accumulates in double precision and rounds what it stores.
                product *= f64::from(1.0 - beta);
                product as f32
            })
            .collect();
        Ok(Self { betas, alpha_bar, prediction: config.prediction_type })
    }

    /// Number of timesteps, T.
    pub fn timesteps(&self) -> usize {
        self.alpha_bar.len()
    }

    /// β_t: variance of the noise that timestep `t` adds.
    pub fn betas(&self) -> &[f32] {
        &self.betas
    }

    /// ᾱ_t: share of the image in the variance at timestep `t`.
    pub fn alpha_bar(&self) -> &[f32] {
        &self.alpha_bar
    }

    pub fn prediction(&self) -> Prediction {
        self.prediction
    }

    /// (√ᾱ_t, √(1−ᾱ_t)): the shares of image and noise in `x_t`.
    ///
    /// # Errors
    /// A timestep beyond the table.
    pub fn shares(&self, timestep: usize) -> Result<(f32, f32)> {
        self.alpha_bar.get(timestep).copied().map(roots).ok_or_else(|| {
            Error::invalid(format!(
                "timestep {timestep} is beyond the schedule, whose last one is {}",
                self.timesteps() - 1
            ))
        })
    }

    /// What a network has to know of each timestep.
    pub fn steps(&self) -> Vec<Timestep> {
        let of = |&alpha_bar: &f32| Timestep { alpha_bar, target: self.target(roots(alpha_bar)) };
        self.alpha_bar.iter().map(of).collect()
    }

    fn target(&self, (image, noise): (f32, f32)) -> (f32, f32) {
        match self.prediction {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::Sample => (1.0, 0.0),
            Prediction::Velocity => (-noise, image),
        }
    }

    /// What the network is trained to predict, as (share of x₀, share of ε) at timestep `t`:
    /// (0, 1) for ε, (1, 0) for x₀, (−√(1−ᾱ), √ᾱ) for v.
    ///
    /// # Errors
    /// A timestep beyond the table.
    pub fn target_shares(&self, timestep: usize) -> Result<(f32, f32)> {
        Ok(self.target(self.shares(timestep)?))
    }

    /// x₀ from what the network is given and what it predicts, as (share of x_t, share of the
    /// prediction): (1/√ᾱ, −√(1−ᾱ)/√ᾱ) for ε, (0, 1) for x₀, (√ᾱ, −√(1−ᾱ)) for v.
    ///
    /// # Errors
    /// A timestep beyond the table.
    pub fn image_shares(&self, timestep: usize) -> Result<(f32, f32)> {
        let (image, noise) = self.shares(timestep)?;
        Ok(match self.prediction {
            Prediction::Epsilon => (1.0 / image, -noise / image),
            Prediction::Sample => (0.0, 1.0),
            Prediction::Velocity => (image, -noise),
        })
    }

    /// ε from what the network is given and what it predicts, as (share of x_t, share of the
    /// prediction): (0, 1) for ε, (1/√(1−ᾱ), −√ᾱ/√(1−ᾱ)) for x₀, (√(1−ᾱ), √ᾱ) for v.
    ///
    /// # Errors
    /// A timestep beyond the table.
    pub fn noise_shares(&self, timestep: usize) -> Result<(f32, f32)> {
        let (image, noise) = self.shares(timestep)?;
        Ok(match self.prediction {
            Prediction::Epsilon => (0.0, 1.0),
            Prediction::Sample => (1.0 / noise, -image / noise),
            Prediction::Velocity => (noise, image),
        })
    }
}

/// (√ᾱ, √(1−ᾱ)).
fn roots(alpha_bar: f32) -> (f32, f32) {
    (alpha_bar.sqrt(), (1.0 - alpha_bar).sqrt())
}

fn betas(config: &SchedulerConfig) -> Vec<f32> {
    let (start, end, count) = (config.beta_start, config.beta_end, config.num_train_timesteps);
    match config.beta_schedule {
        BetaSchedule::Linear => linspace(start as f32, end as f32, count),
        BetaSchedule::ScaledLinear => linspace(start.sqrt() as f32, end.sqrt() as f32, count)
            .into_iter()
            .map(|root| root * root)
            .collect(),
        BetaSchedule::Cosine => {
            let curve = |t: f64| ((t + 0.008) / 1.008 * std::f64::consts::FRAC_PI_2).cos().powi(2);
            let time = |step: usize| step as f64 / count as f64;
            (0..count)
                .map(|step| (1.0 - curve(time(step + 1)) / curve(time(step))).min(0.999) as f32)
                .collect()
        }
    }
}

/// As `torch.linspace` in float32: counted from the nearer end, product and sum rounded once.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    if count == 1 {
        return vec![start];
    }
    let step = (end - start) / (count - 1) as f32;
    (0..count)
        .map(|index| {
            if index < count / 2 {
                step.mul_add(index as f32, start)
            } else {
                (-step).mul_add((count - 1 - index) as f32, end)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn schedule(kind: BetaSchedule, start: f64, end: f64, steps: usize) -> NoiseSchedule {
        NoiseSchedule::new(&SchedulerConfig {
            beta_schedule: kind,
            beta_start: start,
            beta_end: end,
            num_train_timesteps: steps,
            ..SchedulerConfig::default()
        })
        .unwrap()
    }

    // DDPMScheduler(beta_schedule=…, beta_start=…, beta_end=…).alphas_cumprod, diffusers 0.42.
    #[test]
    fn tables_are_those_of_diffusers() {
        let steps = [0, 1, 7, 499, 500, 777, 998, 999];
        for (kind, start, end, want) in [
            (
                BetaSchedule::Linear,
                1e-4,
                0.02,
                [
                    0.9998999834060669,
                    0.9997800588607788,
                    0.9986429810523987,
                    0.07858723402023315,
                    0.07779665291309357,
                    0.002175288274884224,
                    4.118194192415103e-05,
                    4.035830352222547e-05,
                ],
            ),
            (
                BetaSchedule::ScaledLinear,
                0.0015,
                0.0195,
                [
                    0.9984999895095825,
                    0.9969944357872009,
                    0.9878446459770203,
                    0.1158444732427597,
                    0.11492197960615158,
                    0.00578443706035614,
                    0.00014513397763948888,
                    0.00014230386295821518,
                ],
            ),
            (
                BetaSchedule::Cosine,
                1e-4,
                0.02,
                [
                    0.9999586939811707,
                    0.9999125599861145,
                    0.9995337724685669,
                    0.4938434660434723,
                    0.4922850430011749,
                    0.11499975621700287,
                    2.428766265438753e-06,
                    2.4287349909002387e-09,
                ],
            ),
        ] {
            let tables = schedule(kind, start, end, 1000);
            for (step, want) in steps.into_iter().zip(want) {
                let got = f64::from(tables.alpha_bar()[step]);
                assert_relative_eq!(got, want, max_relative = 1e-6);
                // What 1 − ᾱ keeps near t = 0 is the difference that matters there.
                assert_relative_eq!(1.0 - got, 1.0 - want, max_relative = 1e-5);
            }
        }
    }

    #[test]
    fn a_short_table_has_the_very_bits_of_pytorch() {
        let tables = schedule(BetaSchedule::Linear, 1e-4, 0.02, 7);
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(
            bits(tables.betas()),
            [0x38d1b717, 0x3b5fea28, 0x3bdca34b, 0x3c24a8c1, 0x3c5affdc, 0x3c88ab7c, 0x3ca3d70a]
        );
        assert_eq!(
            bits(tables.alpha_bar()),
            [0x3f7ff972, 0x3f7f198e, 0x3f7d61d4, 0x3f7ad5ed, 0x3f777b9a, 0x3f735a9e, 0x3f6e7ca6]
        );
        assert_eq!(schedule(BetaSchedule::Linear, 0.1, 0.2, 1).betas(), [0.1]);
    }

    #[test]
    fn image_and_noise_come_back_from_every_prediction() {
        let (x0, noise) = (0.7, -1.3);
        for prediction in [Prediction::Epsilon, Prediction::Sample, Prediction::Velocity] {
            let tables = NoiseSchedule::new(&SchedulerConfig {
                prediction_type: prediction,
                ..SchedulerConfig::default()
            })
            .unwrap();
            for step in [0, 10, 300, 700] {
                let dot = |(a, b): (f32, f32), (x, y): (f32, f32)| a * x + b * y;
                let x = dot(tables.shares(step).unwrap(), (x0, noise));
                let predicted = dot(tables.target_shares(step).unwrap(), (x0, noise));
                let image = dot(tables.image_shares(step).unwrap(), (x, predicted));
                let back = dot(tables.noise_shares(step).unwrap(), (x, predicted));
                assert_relative_eq!(image, x0, max_relative = 1e-4);
                assert_relative_eq!(back, noise, max_relative = 1e-4);
            }
            assert!(tables.shares(1000).unwrap_err().to_string().contains("timestep 1000"));
        }
    }
}
