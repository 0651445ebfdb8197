//! Timings: repetitions after a warm-up, percentiles, and the raw samples.

use crate::Result;
use std::time::Instant;

/// What was measured.
pub struct Timing {
    /// Milliseconds of each repetition, in order.
    pub samples: Vec<f64>,
}

impl Timing {
    /// Calls `work` `warmup` times unmeasured, then `repetitions` times (at least once); in front
    /// of each call `before`, whose time never counts.
    ///
    /// # Errors
    /// The first that either gives.
    pub fn measure<S>(
        [warmup, repetitions]: [usize; 2],
        state: &mut S,
        before: impl Fn(&mut S) -> Result<()>,
        work: impl Fn(&mut S) -> Result<()>,
    ) -> Result<Timing> {
        for _ in 0..warmup {
            before(state)?;
            work(state)?;
        }
        let mut samples = Vec::with_capacity(repetitions.max(1));
        for _ in 0..repetitions.max(1) {
            before(state)?;
            let start = Instant::now();
            work(state)?;
            samples.push(start.elapsed().as_secs_f64() * 1e3);
        }
        Ok(Timing { samples })
    }

    /// The sample above a share of all, by nearest rank, as `benches/peers/` has it.
    pub fn percentile(&self, share: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64) as usize;
        sorted.get(rank.min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let timing = Timing { samples: vec![4.0, 1.0, 3.0, 2.0] };
        assert_eq!(timing.percentile(0.0), 1.0);
        assert_eq!(timing.percentile(0.5), 3.0);
        assert_eq!(timing.percentile(0.95), 4.0);
        assert_eq!(timing.percentile(1.0), 4.0);
        assert_eq!(Timing { samples: vec![7.0] }.percentile(0.95), 7.0);
    }

    #[test]
    fn warm_up_is_not_measured() {
        let work = |calls: &mut [usize; 2]| {
            calls[1] += 1;
            Ok(())
        };
        let before = |calls: &mut [usize; 2]| {
            calls[0] += 1;
            Ok(())
        };
        let mut calls = [0, 0];
        let timing = Timing::measure([2, 3], &mut calls, before, work).unwrap();
        assert_eq!(timing.samples.len(), 3);
        assert_eq!(calls, [5, 5]);
    }
}
