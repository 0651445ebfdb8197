//! Noise as a function of seed, purpose, step, sample and element: it depends neither on device,
//! batch, thread count nor on what was drawn before.

pub(in crate::ops) mod cpu;
mod launch;
pub mod normal;
pub mod philox;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// Standard normal noise: (`like` `[B, …, C]`, `state`, \[`seeds` u32 `[B, 2]`\]) → `noise` of the
/// shape of `like`, whose values aren't read.
///
/// Without seeds the stream is the run's (key: the state's seed; step: `STEP`; sample: `SAMPLE` + b);
/// with seeds (lower half, upper half) each image has its own (step: `ROW`; sample: 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Normal {
    /// See [`philox::purpose`].
    pub purpose: u32,
}

impl Op for Normal {
    fn name(&self) -> &'static str {
        "normal"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 2..=3)?;
        shape::float(self.name(), inputs[0])?;
        shape::expect(self.name(), "state", inputs[1], &state::ty())?;
        if let Some(seeds) = inputs.get(2) {
            let wanted = TensorType::u32([inputs[0].shape[0], 2]);
            shape::expect(self.name(), "seeds", seeds, &wanted)?;
        }
        Ok(vec![inputs[0].clone()])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::state::{SAMPLE, STEP, StepState};
    use crate::ops::testing::{Host, check_batch, check_threads, run};

    const OP: Normal = Normal { purpose: philox::purpose("test") };

    #[test]
    fn streams() {
        let like = Host::random(&[2, 4, 4, 3], 1);
        let mut state = StepState::new(5 << 32 | 6);
        state.words[STEP] = 7;
        state.words[SAMPLE] = 8;
        let noise = run(&OP, &[&like, &Host::bits(&[16], &state.words)])[0].clone();
        let key = [6, 5];
        for sample in 0..2 {
            let purpose = OP.purpose;
            let stream = normal::Stream { key, purpose, step: 7, sample: 8 + sample as u32 };
            // Element 17 of NCHW: channel 1, row 0, column 1.
            let at = sample * 48 + 3 + 1;
            assert_eq!(noise.data[at], stream.quad(17 / 4)[17 % 4]);
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let like = Host::random(&[3, 90, 80, 3], 1);
        let state = Host::bits(&[16], &StepState::new(1).words);
        let seeds = Host::bits(&[3, 2], &[1, 0, 2, 0, 1, 7]);
        check_threads(&OP, &[&like, &state, &seeds]);
        check_threads(&OP, &[&like, &state]);
        check_batch(&OP, &[&like, &state, &seeds], &[true, false, true], &[0]);
        let noise = run(&OP, &[&like, &state, &seeds]);
        assert_ne!(noise[0].samples(0..1).data, noise[0].samples(2..3).data);
    }

    #[test]
    fn bad_shapes_are_refused() {
        let like = TensorType::f32([3, 4]);
        assert!(OP.infer(&[&like, &TensorType::f32([16])]).is_err());
        assert!(OP.infer(&[&like, &state::ty(), &TensorType::u32([2, 2])]).is_err());
    }
}
