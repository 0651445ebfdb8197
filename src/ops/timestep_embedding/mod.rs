//! The sinusoidal embedding of timesteps (Vaswani et al. 2017, section 3.5, in the variants of
//! diffusers' `get_timestep_embedding`).

mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};

/// `t` `[B]` → `[B, dim]`: sin(t·fᵢ) then cos(t·fᵢ) (with `flip_sin_to_cos` the other way round),
/// fᵢ = max_period^(−i / (half − freq_shift)), half = ⌊dim / 2⌋; an odd `dim` ends with 0.
///
/// Frequencies and arguments are rounded to float32 where diffusers rounds them: a timestep of
/// 999 times a frequency has an error of 3e-5 in float32, which would otherwise be a difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TimestepEmbedding {
    pub dim: usize,
    pub flip_sin_to_cos: bool,
    /// 1 in the original DDPM, 0 in latent diffusion.
    pub freq_shift: f64,
    pub max_period: f64,
}

impl Op for TimestepEmbedding {
    fn name(&self) -> &'static str {
        "timestep_embedding"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 1..=1)?;
        let t = inputs[0];
        let refuse = |what: String| Err(Error::operation(self.name(), what));
        if t.shape.len() != 1 {
            return refuse(format!("timesteps must be [B], not {t:?}"));
        }
        let half = (self.dim / 2) as f64;
        if self.dim < 2 || half <= self.freq_shift {
            return refuse(format!(
                "half of dim {} must be above freq_shift {}",
                self.dim, self.freq_shift
            ));
        }
        Ok(vec![TensorType::f32([t.shape[0], self.dim])])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_batch, check_threads, run};

    const DDPM: TimestepEmbedding =
        TimestepEmbedding { dim: 8, flip_sin_to_cos: false, freq_shift: 1.0, max_period: 1e4 };

    /// diffusers 0.42.1, torch 2.15: `get_timestep_embedding(torch.tensor([0., 1., 999.]), 8,
    /// flip_sin_to_cos=F, downscale_freq_shift=S)`.
    #[test]
    fn matches_diffusers() {
        let t = Host::new(&[3], vec![0.0, 1.0, 999.0]);
        let got = run(&DDPM, &[&t])[0].clone();
        assert_close(&got.data, &DIFFUSERS_SHIFT_1, 1e-6);
        let op = TimestepEmbedding { flip_sin_to_cos: true, freq_shift: 0.0, ..DDPM };
        assert_close(&run(&op, &[&t])[0].data, &DIFFUSERS_FLIPPED, 1e-6);
        let odd = run(&TimestepEmbedding { dim: 9, ..DDPM }, &[&t])[0].clone();
        assert_eq!(odd.data[9..17], got.data[8..16]);
        assert_eq!(odd.data[17], 0.0);
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let t = Host::new(&[3], vec![1.0, 500.0, 20.5]);
        check_threads(&DDPM, &[&t]);
        check_batch(&DDPM, &[&t], &[true], &[0]);
    }

    #[test]
    fn bad_attributes_are_refused() {
        let t = TensorType::f32([3]);
        assert!(TimestepEmbedding { dim: 2, ..DDPM }.infer(&[&t]).is_err());
        assert!(DDPM.infer(&[&TensorType::f32([3, 1])]).is_err());
    }

    const DIFFUSERS_SHIFT_1: [f32; 24] = [
        0.0,
        0.0,
        0.0,
        0.0,
        1.0,
        1.0,
        1.0,
        1.0,
        0.84147096,
        0.04639923,
        0.0021544332,
        0.00009999999,
        0.54030234,
        0.99892294,
        0.9999977,
        1.0,
        -0.026460752,
        0.6848614,
        0.8356485,
        0.09973391,
        0.9996498,
        -0.72867334,
        -0.54926467,
        0.99501413,
    ];
    const DIFFUSERS_FLIPPED: [f32; 24] = [
        1.0,
        1.0,
        1.0,
        1.0,
        0.0,
        0.0,
        0.0,
        0.0,
        0.54030234,
        0.9950042,
        0.99995,
        0.9999995,
        0.84147096,
        0.099833414,
        0.009999833,
        0.0009999998,
        0.9996498,
        0.80745506,
        -0.8444698,
        0.54114354,
        -0.026460752,
        -0.5899291,
        -0.53560317,
        0.8409302,
    ];
}
