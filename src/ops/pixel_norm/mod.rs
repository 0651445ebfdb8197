//! Normalisation of each pixel to unit magnitude over its channels (Karras et al. 2024,
//! arXiv:2312.02696, eq. 30).

mod cpu;
mod launch;
mod pooled;

pub(in crate::ops) use cpu::normalise;
pub use pooled::PooledPixelNorm;

use super::shape::Extent;
use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// Added to magnitudes, here and in [`weight_norm`](super::weight_norm).
pub const EPSILON: f32 = 1e-4;

/// `x` `[B, …, C]` → `y`: each of `groups` runs of n = C / groups channels of a pixel becomes
/// x / (10⁻⁴ + ‖x‖/√n).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelNorm {
    pub groups: usize,
}

/// `dy`, `x` → `dx`. With r = ‖x‖/√n and s = 1 / (10⁻⁴ + r): dx = s·dy − s²·(dy·x)/(n·r)·x.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelNormGrad {
    pub groups: usize,
}

/// Channels of a run.
fn run_length(name: &str, x: &TensorType, groups: usize) -> Result<usize> {
    let Extent { channels, .. } = Extent::of(&x.shape);
    if groups == 0 || !channels.is_multiple_of(groups) {
        return Err(Error::operation(
            name,
            format!("{channels} channels do not divide by {groups} groups"),
        ));
    }
    Ok(channels / groups)
}

impl Op for PixelNorm {
    fn name(&self) -> &'static str {
        "pixel_norm"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 1..=1, &[true])?;
        run_length(self.name(), inputs[0], self.groups)?;
        Ok(vec![inputs[0].clone()])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0].filter(|_| args.needs[0]) else {
            return Ok(vec![None]);
        };
        let op = Arc::new(PixelNormGrad { groups: self.groups });
        Ok(vec![Some(graph.push(op, &[dy, args.inputs[0]])?[0])])
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for PixelNormGrad {
    fn name(&self) -> &'static str {
        "pixel_norm_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::halves(self.name(), inputs, 2..=2, &[true; 2])?;
        shape::expect(self.name(), "x", inputs[1], inputs[0])?;
        run_length(self.name(), inputs[0], self.groups)?;
        Ok(vec![inputs[0].clone()])
    }

    fn half(&self, _: &[&TensorType]) -> Vec<bool> {
        vec![true; 2]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{
        Host, assert_close, check_batch, check_gradient, check_threads, run,
    };

    #[test]
    fn values() {
        let x = Host::new(&[2, 1, 4], vec![3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 1e-4, 1e-4]);
        let y = run(&PixelNorm { groups: 1 }, &[&x])[0].clone();
        let (r, tiny) = (2.5001, 1e-4 + 1e-4 * 0.5f32.sqrt());
        let want = [3.0 / r, 4.0 / r, 0.0, 0.0, 0.0, 0.0, 1e-4 / tiny, 1e-4 / tiny];
        assert_close(&y.data, &want, 1e-6);
        let y = run(&PixelNorm { groups: 2 }, &[&x])[0].clone();
        let r = (12.5f32).sqrt() + 1e-4;
        assert_close(&y.data, &[3.0 / r, 4.0 / r, 0.0, 0.0, 0.0, 0.0, 0.5, 0.5], 1e-6);
    }

    #[test]
    fn gradients() {
        for (channels, groups) in [(5, 1), (37, 1), (12, 3), (6, 6)] {
            let x = Host::random(&[2, 3, channels], 1);
            // Away from zero, where runs of one or two channels are too bent for differences.
            let far = x.data.iter().map(|x| x + 0.7f32.copysign(*x)).collect();
            let x = Host::new(&x.ty.shape, far);
            check_gradient(Arc::new(PixelNorm { groups }), &[x], &[0], 3e-3);
        }
    }

    #[test]
    fn zeros_have_a_finite_gradient() {
        let (dy, x) = (Host::random(&[2, 5], 1), Host::new(&[2, 5], vec![0.0; 10]));
        let dx = run(&PixelNormGrad { groups: 1 }, &[&dy, &x])[0].clone();
        for (dx, dy) in dx.data.iter().zip(&dy.data) {
            assert!((dx - 1e4 * dy).abs() <= 1e-2 * dy.abs());
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let (x, dy) = (Host::random(&[3, 30, 31, 36], 1), Host::random(&[3, 30, 31, 36], 2));
        for groups in [1, 3] {
            check_threads(&PixelNorm { groups }, &[&x]);
            check_batch(&PixelNorm { groups }, &[&x], &[true], &[0]);
            check_threads(&PixelNormGrad { groups }, &[&dy, &x]);
            check_batch(&PixelNormGrad { groups }, &[&dy, &x], &[true, true], &[0]);
        }
    }

    #[test]
    fn groups_must_divide_the_channels() {
        let x = TensorType::f32([2, 4, 6]);
        for groups in [0, 4] {
            let said = PixelNorm { groups }.infer(&[&x]).unwrap_err().to_string();
            assert!(said.contains("6 channels") && said.contains(&groups.to_string()), "{said}");
        }
    }
}
