//! Heun's sampler (Karras et al. 2022, arXiv:2206.00364): the noise levels that a run goes through,
//! and its table.

use super::samplers::SamplerTable;
use crate::error::{Error, Result};
use crate::ops::sampler_update::{Row, pair};

/// Bounds of noise levels, in standard deviations of the noise.
const LEAST_LEVEL: f64 = 1e-10;
const MOST_LEVEL: f64 = 1e10;

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
        // Networks are told levels in float32, and so is an image that they are added to.
        for (name, value) in [("sigma_min", sigma_min), ("sigma_max", sigma_max)] {
            if !(LEAST_LEVEL..=MOST_LEVEL).contains(&value) {
                return Err(Error::invalid(format!(
                    "{name} is {value:e}, which float32 can't tell from nothing or from everything; a \
                     level from {LEAST_LEVEL:e} to {MOST_LEVEL:e} is needed"
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
        let list: Vec<f64> = (0..steps).map(level).chain([0.0]).collect();
        match list[..steps].iter().find(|level| !(LEAST_LEVEL..=MOST_LEVEL).contains(*level)) {
            None => Ok(list),
            Some(level) => Err(Error::invalid(format!(
                "rho is {rho:e}, with which a noise level would be {level:e}; 7 is usual"
            ))),
        }
    }
}

/// Fresh noise before each step, which takes the state up to a higher level first (the same paper,
/// algorithm 2). With [`Churn::default`] there is none.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Churn {
    /// S_churn: shared out evenly over the steps.
    pub amount: f64,
    /// S_tmin and S_tmax: the levels within which noise is added.
    pub sigma_min: f64,
    pub sigma_max: f64,
    /// S_noise: standard deviation of the noise, as a share of what keeps the level.
    pub noise: f64,
}

impl Default for Churn {
    fn default() -> Self {
        Churn { amount: 0.0, sigma_min: 0.0, sigma_max: f64::INFINITY, noise: 1.0 }
    }
}

impl Churn {
    /// The level that a step of `steps` begins from instead of `sigma`.
    fn raised(&self, sigma: f64, steps: usize) -> f64 {
        if !(self.sigma_min..=self.sigma_max).contains(&sigma) {
            return sigma;
        }
        let gamma = (self.amount / steps as f64).min(std::f64::consts::SQRT_2 - 1.0);
        sigma * (1.0 + gamma)
    }

    fn validate(&self) -> Result<()> {
        for (name, value) in [("churn", self.amount), ("churn_noise", self.noise)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::invalid(format!(
                    "{name} is {value}; a number of at least 0 is needed"
                )));
            }
        }
        if !(self.sigma_min >= 0.0 && self.sigma_min <= self.sigma_max) {
            return Err(Error::invalid(format!(
                "churn takes place from {} to {}; noise levels in order are needed",
                self.sigma_min, self.sigma_max
            )));
        }
        Ok(())
    }
}

/// Heun's method (the same paper, algorithm 2, deterministic without churn) for a network that gives
/// the expected clean image D(x; σ): 2·steps − 1 evaluations, two for each step but the last. With
/// r = σ_next/σ, the first takes the state to r·x + (1 − r)·D and keeps what half of that step leads
/// to; the second adds the other half along the slope at the end, (x − D)/σ_next.
///
/// The state is kept in pairs: differences of neighbouring levels are small beside the state itself.
///
/// # Errors
/// Impossible levels, and churn that is negative or not finite.
pub fn heun(levels: &Levels, churn: &Churn) -> Result<SamplerTable> {
    churn.validate()?;
    let list = levels.list()?;
    let raised = |step: usize| churn.raised(list[step], levels.steps);
    // What takes the state from the level of a step to the one that it begins from.
    let lift = |step: usize| churn.noise * (raised(step).powi(2) - list[step].powi(2)).sqrt();
    let mut table = Wide { times: Vec::new(), rows: Vec::new(), rests: Vec::new() };
    for step in 0..levels.steps {
        let (now, next) = (raised(step), list[step + 1]);
        let ratio = next / now;
        let first = [ratio, 1.0 - ratio, 0.0, 0.0, 0.5 * (1.0 + ratio), 0.5 * (1.0 - ratio)];
        table.push(now, first);
        if next > 0.0 {
            let half = 0.5 * (1.0 - now / next);
            let fresh = if step + 1 < levels.steps { lift(step + 1) } else { 0.0 };
            table.push(next, [half, -half, 1.0, fresh, 0.0, 0.0]);
        }
    }
    let start = (list[0].powi(2) + lift(0).powi(2)).sqrt();
    let Wide { times, rows, rests } = table;
    Ok(SamplerTable { times, start, rows, rests })
}

/// A table whose coefficients have more digits than float32.
struct Wide {
    times: Vec<f32>,
    rows: Vec<Row>,
    rests: Vec<Row>,
}

impl Wide {
    /// An evaluation at a level, and the coefficients of x, D, history and noise in the new state, of
    /// x and D in the new history.
    fn push(&mut self, level: f64, coefficients: [f64; 6]) {
        let part = |index: usize| {
            let [x, x0, history, sigma, next_x, next_x0] =
                coefficients.map(|value| pair(value)[index]);
            Row { x, x0, history, sigma, next_x, next_x0, ..Row::default() }
        };
        let whole = Row { x0_from_output: 1.0, clip: f32::INFINITY, ..part(0) };
        self.times.push(level as f32);
        self.rows.push(whole);
        self.rests.push(part(1));
    }
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

    /// Runs a table on the host in float64, on one number, with the exact denoiser of data that are
    /// normal with standard deviation `s`; `noise` is each row's fresh noise.
    fn run(table: &SamplerTable, s: f64, noise: impl Fn(usize) -> f64) -> f64 {
        let (mut x, mut history) = (table.start, 0.0);
        let rows = table.rows.iter().zip(&table.rests).zip(&table.times);
        for (index, ((row, rest), &sigma)) in rows.enumerate() {
            let c = |of: fn(&Row) -> f32| f64::from(of(row)) + f64::from(of(rest));
            let d = s * s / (s * s + f64::from(sigma).powi(2)) * x;
            let kept = c(|r| r.next_x) * x + c(|r| r.next_x0) * d;
            let fresh = c(|r| r.sigma) * noise(index);
            x = c(|r| r.x) * x + c(|r| r.x0) * d + c(|r| r.history) * history + fresh;
            history = kept;
        }
        x
    }

    /// How far the default run ends from one in float64 whose state is kept as `kept` says.
    fn distance(kept: impl Fn(f64) -> f64) -> f64 {
        let table = heun(&Levels::default(), &Churn::default()).unwrap();
        let s = 0.5;
        let (mut x, mut history) = (kept(table.start * 0.7), 0.0);
        for ((row, rest), &sigma) in table.rows.iter().zip(&table.rests).zip(&table.times) {
            let c = |of: fn(&Row) -> f32| kept(f64::from(of(row)) + f64::from(of(rest)));
            let d = s * s / (s * s + f64::from(sigma).powi(2)) * x;
            let next = kept(c(|r| r.next_x) * x + c(|r| r.next_x0) * d);
            x = kept(c(|r| r.x) * x + c(|r| r.x0) * d + c(|r| r.history) * history);
            history = next;
        }
        (x - 0.7 * run(&table, s, |_| 0.0)).abs()
    }

    /// Docs/edm2.md says how far apart states of different precision end.
    #[test]
    fn a_pair_is_nearly_as_good_as_float64() {
        let in_pairs = distance(|value| pair(value).map(f64::from).iter().sum());
        let in_float32 = distance(|value| f64::from(value as f32));
        println!("{in_pairs:e} {in_float32:e}");
        assert!(in_pairs <= 1e-13, "{in_pairs:e}");
        assert!(in_float32 > 1e3 * in_pairs, "{in_float32:e}");
    }

    /// The exact path of such data is x₀·√(s² + σ²)/√(s² + σ₀²); Heun's error falls with the square of
    /// the step.
    #[test]
    fn converges_to_the_exact_path_in_second_order() {
        let s = 0.5f64;
        let error = |steps| {
            let table = heun(&Levels { steps, ..Levels::default() }, &Churn::default()).unwrap();
            assert_eq!(table.len(), 2 * steps - 1);
            assert!(table.takes_history() && !table.takes_noise());
            (run(&table, s, |_| 0.0) - 80.0 * s / (s * s + 6400.0f64).sqrt()).abs()
        };
        let (coarse, fine) = (error(16), error(64));
        assert!(fine <= coarse / 14.0 && fine <= 2e-3, "{coarse} {fine}");
    }

    /// With noise as strong as its level says, samples keep the variance of the data.
    #[test]
    fn churn_keeps_the_variance_of_the_data() {
        let s = 0.5f64;
        let levels = Levels { steps: 64, ..Levels::default() };
        let churn = Churn { amount: 20.0, sigma_min: 0.05, sigma_max: 50.0, noise: 1.0 };
        let table = heun(&levels, &churn).unwrap();
        assert!(table.takes_noise());
        assert_eq!(table.start, 80.0, "80 lies above the levels of churn");
        // The run is linear, so the variance of its end is a sum over what goes in.
        let of_start = run(&table, s, |_| 0.0);
        let of_noise = (0..table.len()).map(|row| {
            let with = run(&table, s, |index| if index == row { 1.0 } else { 0.0 });
            (with - of_start).powi(2)
        });
        let deviation = (of_start.powi(2) + of_noise.sum::<f64>()).sqrt();
        assert!((deviation - s).abs() <= 0.02 * s, "{deviation}");
        let said = heun(&levels, &Churn { amount: -1.0, ..churn }).unwrap_err().to_string();
        assert!(said.contains("churn is -1"), "{said}");
    }
}
