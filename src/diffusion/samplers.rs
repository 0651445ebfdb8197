//! Samplers as tables: one row of coefficients per network evaluation, so that a single update
//! kernel serves every sampler and nothing has to be decided while sampling.

use super::schedule::NoiseSchedule;
use super::scheduler_config::{FinalSigma, SchedulerConfig, Spacing, VarianceType};
use crate::error::{Error, Result};
use crate::ops::sampler_update::Row;
use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// A sampling run: for each network evaluation what it is told of the noise, and the update after it.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerTable {
    /// Timesteps, or noise levels σ.
    pub times: Vec<f32>,
    /// Standard deviation of the noise that the run starts from.
    pub start: f64,
    pub rows: Vec<Row>,
    /// What float32 left of the rows, where the state is kept in pairs
    /// ([`SamplerUpdate`](crate::ops::sampler_update::SamplerUpdate)); empty where float32 does.
    pub rests: Vec<Row>,
}

impl SamplerTable {
    /// Network evaluations.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// A table of a DDPM's process, which starts from unit variance.
    pub fn of_timesteps(timesteps: &[usize], rows: Vec<Row>) -> SamplerTable {
        let times = timesteps.iter().map(|&t| t as f32).collect();
        SamplerTable { times, start: 1.0, rows, rests: Vec::new() }
    }

    /// Whether the state is kept in pairs of float32.
    pub fn in_pairs(&self) -> bool {
        !self.rests.is_empty()
    }

    /// The rows as the update reads them.
    pub fn coefficients(&self) -> Vec<Row> {
        if !self.in_pairs() {
            return self.rows.clone();
        }
        self.rows.iter().zip(&self.rests).flat_map(|(row, rest)| [*row, *rest]).collect()
    }

    /// Whether any row takes fresh noise.
    pub fn takes_noise(&self) -> bool {
        self.rows.iter().any(|row| row.sigma != 0.0)
    }

    /// Whether any row reads what an earlier one kept.
    pub fn takes_history(&self) -> bool {
        self.rows.iter().any(|row| row.history != 0.0)
    }
}

/// Which way back from noise to image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sampler {
    /// Ancestral sampling (Ho et al. 2020, algorithm 2).
    #[serde(rename = "ddpm")]
    Ddpm,
    /// Song et al. 2021.
    #[serde(rename = "ddim")]
    Ddim,
    /// Second-order multistep DPM-Solver++ (Lu et al. 2022).
    #[serde(rename = "dpmpp-2m")]
    DpmSolverPp2m,
    /// Second-order Heun (Karras et al. 2022), by noise levels instead of timesteps.
    #[serde(rename = "heun")]
    Heun,
}

impl Sampler {
    pub const NAMES: [&'static str; 4] = ["ddpm", "ddim", "dpmpp-2m", "heun"];

    /// As on the command line and in configurations.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }

    /// The range that the predicted image is clipped to: the configuration's for DDPM and DDIM, none
    /// for DPM-Solver++, as in diffusers.
    pub fn clip(self, config: &SchedulerConfig) -> Option<f32> {
        match self {
            Sampler::Ddpm | Sampler::Ddim => config.clip(),
            Sampler::DpmSolverPp2m | Sampler::Heun => None,
        }
    }

    /// How diffusers spreads this sampler's timesteps where a configuration doesn't say.
    pub fn default_spacing(self) -> Spacing {
        match self {
            Sampler::Ddpm | Sampler::Ddim => Spacing::Leading,
            Sampler::DpmSolverPp2m | Sampler::Heun => Spacing::Linspace,
        }
    }
}

impl FromStr for Sampler {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "ddpm" => Ok(Sampler::Ddpm),
            "ddim" => Ok(Sampler::Ddim),
            "dpmpp-2m" => Ok(Sampler::DpmSolverPp2m),
            "heun" => Ok(Sampler::Heun),
            _ => Err(Error::invalid(format!(
                "\"{name}\" is no sampler; there are {}",
                Self::NAMES.join(", ")
            ))),
        }
    }
}

/// The table of a sampling run of `steps` network evaluations. `eta` is DDIM's share of fresh
/// noise, 0 to 1. `clip` is the range of the predicted image, or `None`; diffusers has
/// [`SchedulerConfig::clip`] for DDPM and DDIM and no clipping for DPM-Solver.
///
/// # Errors
/// An invalid configuration, and steps, `eta` or `clip` out of range.
pub fn table(
    config: &SchedulerConfig,
    sampler: Sampler,
    steps: usize,
    eta: f64,
    clip: Option<f32>,
) -> Result<SamplerTable> {
    let schedule = NoiseSchedule::new(config)?;
    if !(0.0..=1.0).contains(&eta) {
        return Err(Error::invalid(format!("eta is {eta}; a number from 0 to 1 is needed")));
    }
    if let Some(clip) = clip
        && (clip.is_nan() || clip <= 0.0)
    {
        return Err(Error::invalid(format!("the clip range is {clip}; it must be positive")));
    }
    let timesteps = timesteps(config, sampler, steps)?;
    let clip = clip.unwrap_or(f32::INFINITY);
    let rows = match sampler {
        Sampler::Ddpm => ddpm_rows(config, &schedule, &timesteps, clip)?,
        Sampler::Ddim => ddim_rows(config, &schedule, &timesteps, eta as f32, clip)?,
        Sampler::DpmSolverPp2m => dpm_rows(config, &schedule, &timesteps, clip)?,
        Sampler::Heun => {
            return Err(Error::invalid("heun goes by noise levels; a schedule has timesteps"));
        }
    };
    for (row, t) in rows.iter().zip(&timesteps) {
        let unclipped = Row { clip: 0.0, ..*row };
        let numbers: &[f32] = bytemuck::cast_slice(std::slice::from_ref(&unclipped));
        if !numbers.iter().all(|number| number.is_finite()) {
            return Err(Error::invalid(format!(
                "{} can't step from timestep {t}: ᾱ is {:e} there, too close to 0 or 1 for float32; \
                 take other betas or fewer timesteps",
                sampler.name(),
                schedule.alpha_bar()[*t]
            )));
        }
    }
    Ok(SamplerTable::of_timesteps(&timesteps, rows))
}

/// The timesteps of a run, from noise to image.
///
/// # Errors
/// No steps, more than there are timesteps, or an offset that leads beyond the last one.
pub fn timesteps(config: &SchedulerConfig, sampler: Sampler, steps: usize) -> Result<Vec<usize>> {
    let trained = config.num_train_timesteps;
    // DPM-Solver counts its end among the spaced timesteps, and leaves it out.
    let surplus = usize::from(sampler == Sampler::DpmSolverPp2m);
    let spacing = config.timestep_spacing.unwrap_or(sampler.default_spacing());
    if !(1..=trained).contains(&steps) {
        return Err(Error::invalid(format!(
            "{steps} sampling steps; a number from 1 to {trained}, the timesteps of training, is \
             needed"
        )));
    }
    let list: Vec<usize> = match spacing {
        Spacing::Leading => {
            let stride = trained / (steps + surplus);
            (surplus..steps + surplus).rev().map(|i| i * stride + config.steps_offset).collect()
        }
        Spacing::Linspace => {
            let intervals = (steps + surplus - 1).max(1) as f64;
            let stride = (trained - 1) as f64 / intervals;
            (surplus..steps + surplus)
                .rev()
                // The end is not left to rounding, as in numpy.
                .map(|i| {
                    if i > 0 && i as f64 == intervals {
                        trained - 1
                    } else {
                        round(i as f64 * stride)
                    }
                })
                .collect()
        }
        Spacing::Trailing => {
            let stride = trained as f64 / steps as f64;
            (0..steps)
                .map(|i| round(trained as f64 - i as f64 * stride).saturating_sub(1))
                .collect()
        }
    };
    if let Some(beyond) = list.iter().find(|&&t| t >= trained) {
        return Err(Error::invalid(format!(
            "{steps} steps with steps_offset = {} lead to timestep {beyond}, beyond the last one, \
             {}; take fewer steps or no offset",
            config.steps_offset,
            trained - 1
        )));
    }
    if list.windows(2).any(|pair| pair[0] <= pair[1]) {
        return Err(Error::invalid(format!(
            "{steps} steps don't give as many different timesteps out of {trained}; take fewer"
        )));
    }
    Ok(list)
}

/// To the nearest, ties to even, as numpy does.
fn round(value: f64) -> usize {
    value.round_ties_even() as usize
}

/// Ho et al. 2020, equations 6, 7 and 15, between any two timesteps:
/// α = ᾱ/ᾱ_prev, β = 1−α, mean `√ᾱ_prev·β/(1−ᾱ)·x₀ + √α·(1−ᾱ_prev)/(1−ᾱ)·x`.
fn ddpm_rows(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    clip: f32,
) -> Result<Vec<Row>> {
    let variance_type = config.variance_type.unwrap_or(VarianceType::FixedSmall);
    let alpha_bar = schedule.alpha_bar();
    let mut rows = Vec::with_capacity(timesteps.len());
    for (index, &t) in timesteps.iter().enumerate() {
        let now = alpha_bar[t];
        let next = timesteps.get(index + 1).map_or(1.0, |&t| alpha_bar[t]);
        let alpha = now / next;
        let beta = 1.0 - alpha;
        let variance = match variance_type {
            VarianceType::FixedSmall => ((1.0 - next) / (1.0 - now) * beta).max(1e-20),
            VarianceType::FixedLarge => beta,
        };
        let (x0_from_x, x0_from_output) = schedule.image_shares(t)?;
        rows.push(Row {
            x0_from_x,
            x0_from_output,
            clip,
            x: alpha.sqrt() * (1.0 - next) / (1.0 - now),
            x0: next.sqrt() * beta / (1.0 - now),
            sigma: if t > 0 { variance.sqrt() } else { 0.0 },
            ..Row::default()
        });
    }
    Ok(rows)
}

/// Song et al. 2021, equations 12 and 16: `√ᾱ_prev·x₀ + √(1−ᾱ_prev−σ²)·ε + σ·z` with
/// `σ = η·√((1−ᾱ_prev)/(1−ᾱ))·√(1−ᾱ/ᾱ_prev)`. The previous timestep lies ⌊T/N⌋ below, whatever
/// the spacing.
fn ddim_rows(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    eta: f32,
    clip: f32,
) -> Result<Vec<Row>> {
    let alpha_bar = schedule.alpha_bar();
    let stride = schedule.timesteps() / timesteps.len();
    let last = if config.set_alpha_to_one { 1.0 } else { alpha_bar[0] };
    let mut rows = Vec::with_capacity(timesteps.len());
    for &t in timesteps {
        let now = alpha_bar[t];
        let next = t.checked_sub(stride).map_or(last, |t| alpha_bar[t]);
        let variance = (1.0 - next) / (1.0 - now) * (1.0 - now / next);
        // Rounding, or an ᾱ₀ that the run ends on twice, must not lead below zero.
        let sigma = eta * variance.max(0.0).sqrt();
        let direction = (1.0 - next - sigma * sigma).max(0.0).sqrt();
        let (x0_from_x, x0_from_output) = schedule.image_shares(t)?;
        let (eps_from_x, eps_from_output) = schedule.noise_shares(t)?;
        rows.push(Row {
            x0_from_x,
            x0_from_output,
            eps_from_x,
            eps_from_output,
            clip,
            x0: next.sqrt(),
            eps: direction,
            sigma,
            ..Row::default()
        });
    }
    Ok(rows)
}

/// Share of the image, share of the noise, and half the logarithm of their ratio squared, at the
/// noise level `sigma` = √((1−ᾱ)/ᾱ).
struct Level {
    image: f32,
    noise: f32,
    lambda: f32,
}

impl Level {
    fn new(sigma: f32) -> Self {
        let image = 1.0 / (sigma * sigma + 1.0).sqrt();
        let noise = sigma * image;
        Level { image, noise, lambda: image.ln() - noise.ln() }
    }
}

/// Lu et al. 2022, algorithm 2 (midpoint form): with h = λ_next − λ,
/// `x ← (σ_next/σ)·x − α_next·(e^{−h} − 1)·(x₀ + (x₀ − x₀_last)/(2r))`, r = h_last/h; the bracket is
/// `x₀` alone where the step is of first order.
fn dpm_rows(
    config: &SchedulerConfig,
    schedule: &NoiseSchedule,
    timesteps: &[usize],
    clip: f32,
) -> Result<Vec<Row>> {
    let sigma = |t: usize| {
        let alpha_bar = schedule.alpha_bar()[t];
        ((1.0 - alpha_bar) / alpha_bar).sqrt()
    };
    let final_sigma = match config.final_sigmas_type {
        FinalSigma::Zero => 0.0,
        FinalSigma::SigmaMin => sigma(0),
    };
    let count = timesteps.len();
    let levels: Vec<Level> =
        timesteps.iter().map(|&t| sigma(t)).chain([final_sigma]).map(Level::new).collect();
    let mut rows = Vec::with_capacity(count);
    for index in 0..count {
        let (now, next) = (&levels[index], &levels[index + 1]);
        let first_order_at_end = index == count - 1
            && (config.euler_at_final
                || (config.lower_order_final && count < 15)
                || config.final_sigmas_type == FinalSigma::Zero);
        let h = next.lambda - now.lambda;
        let towards_x0 = -next.image * ((-h).exp() - 1.0);
        let correction = if config.solver_order == 1 || index == 0 || first_order_at_end {
            0.0
        } else {
            let h_last = now.lambda - levels[index - 1].lambda;
            0.5 * towards_x0 * (1.0 / (h_last / h))
        };
        let (x0_from_x, x0_from_output) = schedule.image_shares(timesteps[index])?;
        rows.push(Row {
            x0_from_x,
            x0_from_output,
            clip,
            x: next.noise / now.noise,
            x0: towards_x0 + correction,
            history: -correction,
            next_x0: 1.0,
            ..Row::default()
        });
    }
    Ok(rows)
}

/// Applies a row as [`Row`] defines it; what devices are checked against. `noise` is read where the
/// row takes noise, and history that a row gives no weight is not read.
///
/// # Panics
/// Where the slices differ in length.
pub fn apply(row: &Row, x: &mut [f32], output: &[f32], history: &mut [f32], noise: &[f32]) {
    assert_eq!(x.len(), output.len());
    assert_eq!(x.len(), history.len());
    for (index, (x, history)) in x.iter_mut().zip(history).enumerate() {
        let (now, o) = (*x, output[index]);
        let x0 = (row.x0_from_x * now + row.x0_from_output * o).clamp(-row.clip, row.clip);
        let eps = row.eps_from_x * now + row.eps_from_output * o;
        let weighed = |weight: f32, value: f32| if weight == 0.0 { 0.0 } else { weight * value };
        *x = row.x * now
            + row.x0 * x0
            + row.eps * eps
            + weighed(row.history, *history)
            + if row.sigma == 0.0 { 0.0 } else { row.sigma * noise[index] };
        *history = row.next_x * now
            + row.next_x0 * x0
            + row.next_eps * eps
            + weighed(row.next_history, *history);
    }
}

#[cfg(test)]
#[path = "samplers_tests.rs"]
mod tests;
