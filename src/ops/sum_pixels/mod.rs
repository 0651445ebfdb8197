//! Sums over pixels, and over samples: the gradient of what holds for all pixels.

mod cpu;
mod launch;

pub(in crate::ops) use cpu::add_rows;

use super::shape::{self, Extent, Slices};
use super::{LaunchArgs, Op};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::Result;

/// The rows that a sum keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// `[B, C]`: one a sample.
    Samples,
    /// `[1, C]`: samples are summed too, in their order.
    One,
    /// `[C]`: the same without the first dimension.
    Flat,
}

impl Rows {
    /// What `b` is to `a` `[B, …, C]`; `None` if it is no row of it. A sample alone has a row of its own, as the gradient
    /// of a normalisation leaves it.
    pub fn of(a: &TensorType, b: &TensorType) -> Option<Rows> {
        let Extent { batch, channels, .. } = Extent::of(&a.shape);
        match b.shape[..] {
            [c] if c == channels => Some(Rows::Flat),
            [b, c] if b == batch && c == channels => Some(Rows::Samples),
            [1, c] if c == channels => Some(Rows::One),
            _ => None,
        }
    }
}

/// `x` `[B, …, C]` → `y`, float32 even of float16: sums over the dimensions between, and over samples as `rows` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SumPixels {
    pub rows: Rows,
}

impl Op for SumPixels {
    fn name(&self) -> &'static str {
        "sum_pixels"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        let Extent { batch, channels, .. } = Extent::of(&inputs[0].shape);
        Ok(vec![match self.rows {
            Rows::Samples => TensorType::f32([batch, channels]),
            Rows::One => TensorType::f32([1, channels]),
            Rows::Flat => TensorType::f32([channels]),
        }])
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if !target.is_cpu() {
            return 0;
        }
        let Extent { batch, pixels, channels } = Extent::of(&inputs[0].shape);
        batch * channels * Slices::new(pixels, channels).count
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_batch, check_threads, run};

    #[test]
    fn sums() {
        let x = Host::new(&[2, 2, 1, 2], (1..=8).map(|x| x as f32).collect());
        let sum = |rows| run(&SumPixels { rows }, &[&x])[0].clone();
        assert_eq!(sum(Rows::Samples).data, [4.0, 6.0, 12.0, 14.0]);
        assert_eq!(sum(Rows::One).data, [16.0, 20.0]);
        assert_eq!(sum(Rows::Flat).ty.shape, [2]);
    }

    #[test]
    fn many_slices_in_a_fixed_tree() {
        let x = Host::random(&[3, 90, 90, 7], 1);
        let y = run(&SumPixels { rows: Rows::Flat }, &[&x]);
        let want: Vec<f32> = (0..7)
            .map(|c| x.data.iter().skip(c).step_by(7).map(|&x| f64::from(x)).sum::<f64>() as f32)
            .collect();
        assert_close(&y[0].data, &want, 2e-3);
        check_threads(&SumPixels { rows: Rows::Flat }, &[&x]);
        check_batch(&SumPixels { rows: Rows::Samples }, &[&x], &[true], &[0]);
    }
}
