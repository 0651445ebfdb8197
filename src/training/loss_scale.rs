//! Dynamic loss scaling (Micikevicius et al. 2018, "Mixed precision training", arXiv:1710.03740,
//! section 3.2): in float16 small gradients would vanish, so the loss is multiplied by a factor
//! before it is differentiated and the gradients are divided by it before they are used.

/// The factor and how it follows the gradients: halved by a step whose gradients overflow, which is
/// skipped, and doubled after a while without one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    /// A power of two, so that scaling rounds nothing.
    pub factor: f32,
    /// Steps without an overflow since the factor last changed.
    pub good_steps: u32,
    /// So many such steps double the factor.
    pub growth_interval: u32,
}

impl Default for LossScale {
    /// 65,536, doubled every 2,000 steps.
    fn default() -> LossScale {
        LossScale { factor: 65_536.0, good_steps: 0, growth_interval: 2000 }
    }
}

impl LossScale {
    /// The scale that a run begins with whose loss adds up so many elements.
    pub fn for_sum_of(elements: usize) -> LossScale {
        let all = LossScale::default();
        LossScale { factor: (all.factor / elements.next_power_of_two() as f32).max(1.0), ..all }
    }

    const LARGEST: f32 = 16_777_216.0;

    /// Takes note of how a step went; returns whether the factor changed.
    pub fn after(&mut self, overflow: bool) -> bool {
        let before = self.factor;
        if overflow {
            self.factor = (self.factor / 2.0).max(1.0);
            self.good_steps = 0;
        } else {
            self.good_steps += 1;
            if self.good_steps >= self.growth_interval {
                self.factor = (self.factor * 2.0).min(Self::LARGEST);
                self.good_steps = 0;
            }
        }
        self.factor != before
    }

    /// Whether an overflow can't be helped by a smaller factor.
    pub fn is_least(&self) -> bool {
        self.factor <= 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_begin_with_a_smaller_scale() {
        assert_eq!(LossScale::for_sum_of(1), LossScale::default());
        assert_eq!(LossScale::for_sum_of(192).factor, 256.0);
        assert_eq!(LossScale::for_sum_of(1 << 20).factor, 1.0);
    }

    #[test]
    fn overflows_halve_and_patience_doubles() {
        let mut scale = LossScale { factor: 4.0, good_steps: 0, growth_interval: 3 };
        assert!(scale.after(true));
        assert_eq!(scale.factor, 2.0);
        assert_eq!([false; 3].map(|overflow| scale.after(overflow)), [false, false, true]);
        assert_eq!((scale.factor, scale.good_steps), (4.0, 0));
        assert!(!scale.is_least());
        for _ in 0..5 {
            scale.after(true);
        }
        assert!(scale.is_least());
        assert_eq!(scale.factor, 1.0);
        scale.factor = LossScale::LARGEST;
        assert_eq!([false; 3].map(|overflow| scale.after(overflow)), [false; 3]);
    }
}
