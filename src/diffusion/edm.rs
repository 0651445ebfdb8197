//! Heun's sampler (Karras et al. 2022, arXiv:2206.00364, algorithm 1): the noise levels that a run goes
//! through, and a run whose state the host keeps in float64.

use crate::error::{Error, Result};

/// The noise levels of a run of `steps` steps, from noise to image, and 0 behind the last (the same
/// paper, eq. 5).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Levels {
    pub steps: usize,
    pub sigma_min: f64,
    pub sigma_max: f64,
    /// How much the levels crowd together at the low end.
    pub rho: f64,
}

impl Default for Levels {
    fn default() -> Self {
        Levels { steps: 32, sigma_min: 0.002, sigma_max: 80.0, rho: 7.0 }
    }
}

impl Levels {
    /// The levels, `steps` + 1 of them.
    ///
    /// # Errors
    /// No steps, and levels or ρ that are not positive or out of order.
    pub fn list(&self) -> Result<Vec<f64>> {
        let Levels { steps, sigma_min, sigma_max, rho } = *self;
        if steps == 0 {
            return Err(Error::invalid("0 sampling steps; at least 1 is needed"));
        }
        for (name, value) in [("sigma_min", sigma_min), ("sigma_max", sigma_max), ("rho", rho)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::invalid(format!(
                    "{name} is {value}; a positive number is needed"
                )));
            }
        }
        if sigma_min > sigma_max {
            return Err(Error::invalid(format!(
                "sigma_min is {sigma_min}, above sigma_max = {sigma_max}; exchange them"
            )));
        }
        let (high, low) = (sigma_max.powf(1.0 / rho), sigma_min.powf(1.0 / rho));
        let level = |step: usize| match step {
            0 => sigma_max,
            _ => (high + step as f64 / (steps - 1) as f64 * (low - high)).powf(rho),
        };
        Ok((0..steps).map(level).chain([0.0]).collect())
    }
}

/// A network as a sampler sees it: (noisy image, noise level) → the expected clean image.
pub type Denoise<'a> = dyn FnMut(&[f64], f64) -> Result<Vec<f32>> + 'a;

/// Runs Heun's method over the levels without churn: 2·steps − 1 evaluations of `denoise`. `noise` is
/// standard normal.
///
/// # Errors
/// Those of `denoise`.
pub fn heun(levels: &[f64], noise: &[f32], denoise: &mut Denoise) -> Result<Vec<f64>> {
    let first = levels.first().copied().unwrap_or(0.0);
    let mut x: Vec<f64> = noise.iter().map(|&z| first * f64::from(z)).collect();
    for pair in levels.windows(2) {
        let (now, next) = (pair[0], pair[1]);
        let mut slopes = |x: &[f64], level: f64| -> Result<Vec<f64>> {
            let denoised = denoise(x, level)?;
            Ok(x.iter().zip(denoised).map(|(x, d)| (x - f64::from(d)) / level).collect())
        };
        let slope = slopes(&x, now)?;
        let euler: Vec<f64> = x.iter().zip(&slope).map(|(x, d)| x + (next - now) * d).collect();
        if next == 0.0 {
            x = euler;
            continue;
        }
        let second = slopes(&euler, next)?;
        for ((x, first), second) in x.iter_mut().zip(&slope).zip(&second) {
            *x += (next - now) * (first + second) / 2.0;
        }
    }
    Ok(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_fall_from_the_highest_to_zero() {
        let levels = Levels::default().list().unwrap();
        assert_eq!(levels.len(), 33);
        assert_eq!((levels[0], levels[32]), (80.0, 0.0));
        assert!((levels[31] - 0.002).abs() <= 1e-15);
        assert!(levels.windows(2).all(|pair| pair[0] > pair[1]));
        assert_eq!(Levels { steps: 1, ..Levels::default() }.list().unwrap(), [80.0, 0.0]);
    }

    #[test]
    fn impossible_levels_are_refused() {
        let all = Levels::default();
        for (levels, word) in [
            (Levels { steps: 0, ..all }, "0 sampling steps"),
            (Levels { sigma_min: 0.0, ..all }, "sigma_min is 0"),
            (Levels { sigma_max: f64::NAN, ..all }, "sigma_max is NaN"),
            (Levels { rho: -1.0, ..all }, "rho is -1"),
            (Levels { sigma_min: 2.0, sigma_max: 1.0, ..all }, "above sigma_max = 1"),
        ] {
            let said = levels.list().unwrap_err().to_string();
            assert!(said.contains(word), "{said}");
        }
    }

    /// Data that are normal with standard deviation s have the exact denoiser s²/(s² + σ²)·x and the
    /// exact path x₀·√(s² + σ²)/√(s² + σ₀²); Heun's error falls with the square of the step.
    #[test]
    fn converges_to_the_exact_path_in_second_order() {
        let s = 0.5f64;
        let error = |steps| {
            let levels = Levels { steps, ..Levels::default() }.list().unwrap();
            let mut evaluations = 0;
            let x = heun(&levels, &[1.0], &mut |x, sigma| {
                evaluations += 1;
                Ok(vec![(s * s / (s * s + sigma * sigma) * x[0]) as f32])
            })
            .unwrap();
            assert_eq!(evaluations, 2 * steps - 1);
            (x[0] - 80.0 * s / (s * s + 6400.0f64).sqrt()).abs()
        };
        let (coarse, fine) = (error(16), error(64));
        assert!(fine <= coarse / 14.0 && fine <= 2e-3, "{coarse} {fine}");
    }
}
