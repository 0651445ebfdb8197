//! Dropping activations at random (Srivastava et al. 2014, "Dropout"), in the form that keeps their mean.

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// (`x` `[B, …, C]`, `state`) → `y`: each element is 0 with the probability `share`, else
/// x/(1 − share).
///
/// What is dropped is a function of the run's seed, `purpose`, step, sample and element
/// ([`noise`](super::noise)): an element stays where its word of Philox is at least share·2³², whatever
/// the device and the batch. So the gradient is the same operation on the gradient of `y`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// From 0 to below 1.
    pub share: f64,
    /// See [`philox::purpose`](super::noise::philox::purpose).
    pub purpose: u32,
}

impl Dropout {
    /// The least word that keeps an element.
    fn threshold(&self) -> u32 {
        (self.share * (1u64 << 32) as f64) as u32
    }

    /// What elements that stay are multiplied by.
    fn scale(&self) -> f32 {
        (1.0 / (1.0 - self.share)) as f32
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 2..=2)?;
        shape::halves(self.name(), &inputs[..1], 1..=1, &[true])?;
        shape::expect(self.name(), "state", inputs[1], &state::ty())?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else { return Ok(vec![None, None]) };
        let dx = graph.push(std::sync::Arc::new(*self), &[dy, args.inputs[1]])?[0];
        Ok(vec![Some(dx), None])
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true, false])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::noise::philox::philox4x32;
    use crate::ops::state::{SAMPLE, STEP, StepState};
    use crate::ops::testing::{Host, check_threads, run};

    fn state() -> Host {
        let mut state = StepState::new(5 << 32 | 6);
        state.words[STEP] = 7;
        state.words[SAMPLE] = 8;
        Host::bits(&[16], &state.words)
    }

    #[test]
    fn a_share_is_dropped_and_the_mean_stays() {
        let op = Dropout { share: 0.3, purpose: 9 };
        let x = Host::new(&[3, 50, 40, 5], vec![1.0; 30_000]);
        let y = run(&op, &[&x, &state()])[0].clone();
        let dropped = y.data.iter().filter(|&&y| y == 0.0).count();
        assert!((8_500..9_500).contains(&dropped), "{dropped}");
        assert!(y.data.iter().all(|&y| y == 0.0 || y == 1.0 / 0.7));
        check_threads(&op, &[&x, &state()]);
    }

    #[test]
    fn the_word_of_an_element_decides() {
        let op = Dropout { share: 0.5, purpose: 9 };
        let x = Host::random(&[2, 3, 5, 4], 1);
        let y = run(&op, &[&x, &state()])[0].clone();
        for (i, (&x, &y)) in x.data.iter().zip(&y.data).enumerate() {
            let (sample, pixel, channel) = (i / 60, i % 60 / 4, i % 4);
            let element = (channel * 15 + pixel) as u32;
            let words = philox4x32([element / 4, 8 + sample as u32, 7, 9], [6, 5]);
            let stays = words[element as usize % 4] >= 1 << 31;
            assert_eq!(y, if stays { 2.0 * x } else { 0.0 });
        }
    }

    #[test]
    fn nothing_is_dropped_for_a_share_of_zero() {
        let x = Host::random(&[1, 4, 4, 3], 1);
        assert_eq!(run(&Dropout { share: 0.0, purpose: 1 }, &[&x, &state()])[0].data, x.data);
    }
}
