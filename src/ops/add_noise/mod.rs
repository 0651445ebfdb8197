//! The forward process q(x_t | x₀): x_t = signal·x₀ + noise·ε.

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// (`x0` `[B, …, C]`, `noise` of the same shape, and what [`Shares`] asks for) → `x_t` and what that adds.
///
/// With `draws` the state of a run stands in place of `noise`, which is drawn for that purpose from the run's
/// [stream](super::noise).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddNoise {
    pub shares: Shares,
    /// See [`philox::purpose`](super::noise::philox::purpose).
    pub draws: Option<u32>,
}

/// Where signal and noise come from, the shares of image and noise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// `table` `[T, 2]` of both and `timesteps` `[B]`, whole numbers below T as float32 (Ho et al. 2020,
    /// arXiv:2006.11239, eq. 4, with signal = √ᾱ_t and noise = √(1 − ᾱ_t)). With `velocity` also gives
    /// `v` = signal·ε − noise·x₀ (Salimans & Ho 2022, arXiv:2202.00512, appendix D); then the noise, where it is drawn.
    Timesteps { velocity: bool },
    /// 1 and `sigma` `[B]` (Karras et al. 2022, arXiv:2206.00364, eq. 2).
    Sigma,
}

impl AddNoise {
    /// Results beside `x_t`: whether there is `v`, and the noise.
    fn more(&self) -> [bool; 2] {
        match self.shares {
            Shares::Timesteps { velocity } => [velocity, self.draws.is_some()],
            Shares::Sigma => [false; 2],
        }
    }
}

impl Op for AddNoise {
    fn name(&self) -> &'static str {
        "add_noise"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let given = if self.shares == Shares::Sigma { 3 } else { 4 };
        shape::arity(self.name(), inputs, given..=given)?;
        let &[x0, source, .., times] = inputs else { unreachable!("at least three inputs") };
        shape::floats(self.name(), &[x0, times], 2..=2)?;
        match self.draws {
            None => shape::expect(self.name(), "noise", source, x0)?,
            Some(_) => shape::expect(self.name(), "state", source, &state::ty())?,
        }
        shape::expect(self.name(), "times", times, &TensorType::f32([x0.shape[0]]))?;
        if let &[_, _, table, _] = inputs {
            shape::float(self.name(), table)?;
            if table.shape.len() != 2 || table.shape[1] != 2 {
                let what = format!("the table must be [T, 2], not {table:?}");
                return Err(Error::operation(self.name(), what));
            }
        }
        let more = self.more().into_iter().filter(|&more| more).count();
        Ok(vec![x0.clone(); 1 + more])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::noise::normal::Stream;
    use crate::ops::state::{SAMPLE, STEP, StepState};
    use crate::ops::testing::{
        Host, assert_close, assert_same_bits, check_batch, check_threads, run,
    };

    const PLAIN: AddNoise = AddNoise { shares: Shares::Timesteps { velocity: false }, draws: None };
    const VELOCITY: AddNoise = AddNoise { shares: Shares::Timesteps { velocity: true }, ..PLAIN };
    const SIGMA: AddNoise = AddNoise { shares: Shares::Sigma, ..PLAIN };

    fn table() -> [Host; 2] {
        [Host::new(&[2, 2], vec![0.8, 0.6, 0.28, 0.96]), Host::new(&[3], vec![1.0, 0.0, 1.0])]
    }

    #[test]
    fn values_threads_and_batch() {
        let (x0, noise) = (Host::random(&[3, 80, 80, 3], 1), Host::random(&[3, 80, 80, 3], 2));
        let [table, timesteps] = table();
        let inputs = [&x0, &noise, &table, &timesteps];
        let got = run(&VELOCITY, &inputs);
        for (i, (&x, &e)) in x0.data.iter().zip(&noise.data).enumerate() {
            let (s, n) = if i / 19200 == 1 { (0.8, 0.6) } else { (0.28, 0.96) };
            assert_close(&[got[0].data[i], got[1].data[i]], &[s * x + n * e, s * e - n * x], 3e-7);
        }
        check_threads(&VELOCITY, &inputs);
        check_batch(&VELOCITY, &inputs, &[true, true, false, true], &[0, 1]);
        assert_eq!(run(&PLAIN, &inputs)[0].data, got[0].data);
    }

    #[test]
    fn noise_of_levels() {
        let (x0, noise) = (Host::random(&[3, 80, 80, 3], 1), Host::random(&[3, 80, 80, 3], 2));
        let sigma = Host::new(&[3], vec![80.0, 0.002, 1.5]);
        let inputs = [&x0, &noise, &sigma];
        let [got] = &run(&SIGMA, &inputs)[..] else { panic!("one result") };
        for (i, (&x, &e)) in x0.data.iter().zip(&noise.data).enumerate() {
            let level = sigma.data[i / 19200];
            assert_close(&[got.data[i]], &[x + level * e], 3e-7 * level.max(1.0));
        }
        check_threads(&SIGMA, &inputs);
        check_batch(&SIGMA, &inputs, &[true, true, true], &[0]);
    }

    /// A run's state and the noise of three images in it.
    fn drawn(dims: [usize; 4], purpose: u32) -> [Host; 2] {
        let mut state = StepState::new(5 << 32 | 11);
        state.words[STEP] = 7;
        state.words[SAMPLE] = 8;
        let [_, height, width, channels] = dims;
        let pixels = height * width;
        let value = |at: usize| {
            let (sample, pixel, channel) =
                (at / pixels / channels, at / channels % pixels, at % channels);
            let stream = Stream { key: [11, 5], purpose, step: 7, sample: 8 + sample as u32 };
            // Elements are counted as in NCHW.
            let element = channel * pixels + pixel;
            stream.quad((element / 4) as u32)[element % 4]
        };
        let noise = (0..dims.iter().product()).map(value).collect();
        [Host::bits(&[16], &state.words), Host::new(&dims, noise)]
    }

    #[test]
    fn drawn_noise_is_that_of_the_run() {
        let dims = [3, 5, 7, 3];
        let x0 = Host::random(&dims, 1);
        let [state, noise] = drawn(dims, 99);
        let [table, timesteps] = table();
        let sigma = Host::new(&[3], vec![80.0, 0.002, 1.5]);
        for op in [PLAIN, VELOCITY, SIGMA] {
            let drawing = AddNoise { draws: Some(99), ..op };
            let mut inputs = match op.shares {
                Shares::Sigma => vec![&x0, &noise, &sigma],
                Shares::Timesteps { .. } => vec![&x0, &noise, &table, &timesteps],
            };
            let mut want = run(&op, &inputs);
            if op.shares != Shares::Sigma {
                want.push(noise.clone());
            }
            inputs[1] = &state;
            let got = run(&drawing, &inputs);
            assert_eq!(got.len(), want.len());
            for (got, want) in got.iter().zip(&want) {
                assert_same_bits(got, want, "drawn noise");
            }
        }
        let large = Host::random(&[3, 90, 80, 3], 1);
        let of_table = AddNoise { draws: Some(99), ..VELOCITY };
        check_threads(&of_table, &[&large, &state, &table, &timesteps]);
        check_threads(&AddNoise { draws: Some(99), ..SIGMA }, &[&large, &state, &sigma]);
    }

    #[test]
    fn bad_shapes_are_refused() {
        let (x0, t) = (TensorType::f32([3, 4]), TensorType::f32([3]));
        let [table, state] = [TensorType::f32([5, 2]), state::ty()];
        assert!(PLAIN.infer(&[&x0, &x0, &TensorType::f32([5, 3]), &t]).is_err());
        assert!(PLAIN.infer(&[&x0, &x0, &table, &TensorType::f32([2])]).is_err());
        let drawing = AddNoise { draws: Some(1), ..PLAIN };
        assert!(drawing.infer(&[&x0, &x0, &table, &t]).is_err());
        assert!(PLAIN.infer(&[&x0, &state, &table, &t]).is_err());
        assert!(PLAIN.infer(&[&x0, &x0, &t]).is_err());
        assert!(SIGMA.infer(&[&x0, &x0, &table, &t]).is_err());
        assert!(SIGMA.infer(&[&x0, &x0, &TensorType::f32([2])]).is_err());
    }
}
