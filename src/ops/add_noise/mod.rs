//! The forward process q(x_t | x₀): x_t = signal·x₀ + noise·ε (Ho et al. 2020, arXiv:2006.11239,
//! eq. 4, with signal = √ᾱ_t and noise = √(1 − ᾱ_t)).

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// (`x0` `[B, …, C]`, `noise` of the same shape, `table` `[T, 2]` of (signal, noise),
/// `timesteps` `[B]`: whole numbers below T, as float32) → `x_t`, and with `velocity` also
/// `v` = signal·ε − noise·x₀ (Salimans & Ho 2022, arXiv:2202.00512, appendix D).
///
/// With `draws` the state of a run stands in place of `noise`, which is what [`Normal`](super::noise::Normal) draws for
/// that purpose, and the last output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddNoise {
    pub velocity: bool,
    /// See [`philox::purpose`](super::noise::philox::purpose).
    pub draws: Option<u32>,
}

impl Op for AddNoise {
    fn name(&self) -> &'static str {
        "add_noise"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::arity(self.name(), inputs, 4..=4)?;
        let &[x0, source, table, timesteps] = inputs else { unreachable!("four inputs") };
        shape::floats(self.name(), &[x0, table, timesteps], 3..=3)?;
        match self.draws {
            None => shape::expect(self.name(), "noise", source, x0)?,
            Some(_) => shape::expect(self.name(), "state", source, &state::ty())?,
        }
        shape::expect(self.name(), "timesteps", timesteps, &TensorType::f32([x0.shape[0]]))?;
        if table.shape.len() != 2 || table.shape[1] != 2 {
            return Err(Error::operation(
                self.name(),
                format!("the table must be [T, 2], not {table:?}"),
            ));
        }
        Ok(vec![x0.clone(); 1 + usize::from(self.velocity) + usize::from(self.draws.is_some())])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::noise::Normal;
    use crate::ops::state::{SAMPLE, STEP, StepState};
    use crate::ops::testing::{
        Host, assert_close, assert_same_bits, check_batch, check_threads, run,
    };

    #[test]
    fn values_threads_and_batch() {
        let (x0, noise) = (Host::random(&[3, 80, 80, 3], 1), Host::random(&[3, 80, 80, 3], 2));
        let table = Host::new(&[2, 2], vec![0.8, 0.6, 0.28, 0.96]);
        let timesteps = Host::new(&[3], vec![1.0, 0.0, 1.0]);
        let op = AddNoise { velocity: true, draws: None };
        let inputs = [&x0, &noise, &table, &timesteps];
        let got = run(&op, &inputs);
        for (i, (&x, &e)) in x0.data.iter().zip(&noise.data).enumerate() {
            let (s, n) = if i / 19200 == 1 { (0.8, 0.6) } else { (0.28, 0.96) };
            assert_close(&[got[0].data[i], got[1].data[i]], &[s * x + n * e, s * e - n * x], 3e-7);
        }
        check_threads(&op, &inputs);
        check_batch(&op, &inputs, &[true, true, false, true], &[0, 1]);
        assert_eq!(run(&AddNoise { velocity: false, ..op }, &inputs)[0].data, got[0].data);
    }

    #[test]
    fn drawn_noise_is_that_of_the_run() {
        let x0 = Host::random(&[3, 5, 7, 3], 1);
        let mut state = StepState::new(11);
        state.words[STEP] = 7;
        state.words[SAMPLE] = 8;
        let state = Host::bits(&[16], &state.words);
        let table = Host::new(&[2, 2], vec![0.8, 0.6, 0.28, 0.96]);
        let timesteps = Host::new(&[3], vec![1.0, 0.0, 1.0]);
        let noise = run(&Normal { purpose: 99 }, &[&x0, &state])[0].clone();
        for velocity in [false, true] {
            let drawing = AddNoise { velocity, draws: Some(99) };
            let mut want =
                run(&AddNoise { draws: None, ..drawing }, &[&x0, &noise, &table, &timesteps]);
            want.push(noise.clone());
            let inputs = [&x0, &state, &table, &timesteps];
            let got = run(&drawing, &inputs);
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert_same_bits(got, want, "drawn noise");
            }
            check_threads(&drawing, &inputs);
        }
    }

    #[test]
    fn bad_shapes_are_refused() {
        let (x0, t) = (TensorType::f32([3, 4]), TensorType::f32([3]));
        let op = AddNoise { velocity: false, draws: None };
        assert!(op.infer(&[&x0, &x0, &TensorType::f32([5, 3]), &t]).is_err());
        assert!(op.infer(&[&x0, &x0, &TensorType::f32([5, 2]), &TensorType::f32([2])]).is_err());
        let drawing = AddNoise { draws: Some(1), ..op };
        assert!(drawing.infer(&[&x0, &x0, &TensorType::f32([5, 2]), &t]).is_err());
        assert!(op.infer(&[&x0, &state::ty(), &TensorType::f32([5, 2]), &t]).is_err());
    }
}
