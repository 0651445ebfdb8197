//! Learning rates as functions of the step: linear warm-up, then constant, linear or cosine decay.

use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate goes from its peak to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// Stays at the peak.
    Constant,
    /// Falls along half a cosine (Loshchilov and Hutter 2017, equation 5, without restarts).
    Cosine,
    /// Falls along a line.
    Linear,
    /// Falls as 1/√step after `flat` steps, for as long as training lasts (Karras et al. 2024,
    /// arXiv:2312.02696, eq. 67).
    InverseSqrt,
}

/// A learning rate for every optimizer step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LrSchedule {
    pub decay: Decay,
    pub peak: f64,
    /// Reached `steps` steps in; unused by [`Decay::Constant`].
    pub end: f64,
    /// Steps over which the rate rises to the peak along a line.
    pub warmup: u64,
    /// Length of warm-up and decay together.
    pub steps: u64,
    /// Of [`Decay::InverseSqrt`]: the steps before it falls.
    pub flat: u64,
}

impl LrSchedule {
    /// The rate of optimizer step `step`, counted from 0.
    ///
    /// Warm-up gives `peak·(step + 1)/warmup`, so that the first step counts. The decay is the
    /// closed form of PyTorch's `CosineAnnealingLR` with `T_max = steps − warmup` (and the same
    /// along a line); from `steps` on the rate stays at its end. [`Decay::InverseSqrt`] is EDM2's:
    /// `peak/√max(step/flat, 1)·min(step/warmup, 1)`, so that its first rate is 0.
    pub fn rate(&self, step: u64) -> f64 {
        if self.decay == Decay::InverseSqrt {
            let share = |of: u64| if of == 0 { f64::INFINITY } else { step as f64 / of as f64 };
            let fallen = if self.flat == 0 { 1.0 } else { share(self.flat).max(1.0) };
            return self.peak / fallen.sqrt() * share(self.warmup).min(1.0);
        }
        if step < self.warmup {
            return self.peak * (step + 1) as f64 / self.warmup as f64;
        }
        let length = self.steps.saturating_sub(self.warmup);
        let done =
            if length == 0 { 1.0 } else { ((step - self.warmup) as f64 / length as f64).min(1.0) };
        let remaining = match self.decay {
            Decay::Constant | Decay::InverseSqrt => return self.peak,
            Decay::Linear => 1.0 - done,
            Decay::Cosine => (1.0 + (PI * done).cos()) / 2.0,
        };
        self.end + (self.peak - self.end) * remaining
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    fn schedule(decay: Decay, warmup: u64) -> LrSchedule {
        LrSchedule { decay, peak: 1e-3, end: 1e-5, warmup, steps: 12, flat: 0 }
    }

    // torch.optim.lr_scheduler.CosineAnnealingLR(optimizer at 1e-3, T_max=12, eta_min=1e-5).
    #[test]
    fn cosine_is_pytorchs() {
        let want = [0.001, 0.0009831332840130886, 0.0009336825748732971, 0.0008550178566873409];
        for (step, want) in want.into_iter().enumerate() {
            let got = schedule(Decay::Cosine, 0).rate(step as u64);
            assert_relative_eq!(got, want, max_relative = 1e-12);
        }
        assert_relative_eq!(schedule(Decay::Cosine, 0).rate(6), 5.05e-4, max_relative = 1e-12);
        assert_relative_eq!(schedule(Decay::Cosine, 0).rate(12), 1e-5, max_relative = 1e-12);
        assert_relative_eq!(schedule(Decay::Cosine, 0).rate(1000), 1e-5, max_relative = 1e-12);
    }

    #[test]
    fn warm_up_rises_to_the_peak_and_the_decay_starts_from_it() {
        for decay in [Decay::Constant, Decay::Cosine, Decay::Linear] {
            let rates: Vec<f64> = (0..5).map(|step| schedule(decay, 4).rate(step)).collect();
            for (got, want) in rates.iter().zip([2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3]) {
                assert_relative_eq!(*got, want, max_relative = 1e-12);
            }
        }
        assert_relative_eq!(schedule(Decay::Linear, 4).rate(8), 5.05e-4, max_relative = 1e-12);
        assert_relative_eq!(schedule(Decay::Cosine, 4).rate(8), 5.05e-4, max_relative = 1e-12);
        assert_eq!(schedule(Decay::Constant, 4).rate(1000), 1e-3);
    }

    // lr=0.01, t_ref=4, a ramp of 2 steps: the reference's learning_rate_schedule at step·batch images.
    #[test]
    fn inverse_roots_are_edm2s() {
        let schedule = LrSchedule { flat: 4, ..schedule(Decay::InverseSqrt, 2) };
        for (step, want) in [(0, 0.0), (1, 5e-4), (2, 1e-3), (4, 1e-3), (16, 5e-4), (100, 2e-4)] {
            assert_relative_eq!(schedule.rate(step), want, max_relative = 1e-12);
        }
        let flat = LrSchedule { flat: 0, warmup: 0, ..schedule };
        assert_eq!(flat.rate(0), 1e-3);
    }

    #[test]
    fn degenerate_lengths_stay_finite() {
        for decay in [Decay::Constant, Decay::Cosine, Decay::Linear] {
            let all_warmup = LrSchedule { steps: 4, ..schedule(decay, 4) };
            for step in 0..8 {
                assert!(all_warmup.rate(step) > 0.0 && all_warmup.rate(step) <= 1e-3);
            }
            let rate = LrSchedule { steps: 0, warmup: 0, ..schedule(decay, 0) }.rate(0);
            assert!(rate.is_finite());
        }
    }
}
