//! Random Fourier features of a scalar (Tancik et al. 2020, arXiv:2006.10739, eq. 5, in the
//! magnitude-preserving form of Karras et al. 2024, arXiv:2312.02696, eq. 75).

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `x` `[B]`, `freqs` `[C]`, `phases` `[C]` → `y` `[B, C]` = √2·cos(x·freqs + phases), in float32
/// whatever the target computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourierFeatures;

/// `dy` `[B, C]`, `x`, `freqs`, `phases` → their gradients `dx` `[B]`, `dfreqs` `[C]`, `dphases` `[C]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourierFeaturesGrad;

/// Checks x, freqs and phases; gives B and C.
fn sizes(name: &str, inputs: &[&TensorType]) -> Result<[usize; 2]> {
    match [0, 1, 2].map(|index| &inputs[index].shape[..]) {
        [&[batch], &[channels], &[phases]] if channels == phases => Ok([batch, channels]),
        shapes => Err(Error::operation(name, format!("needs [B], [C] and [C], not {shapes:?}"))),
    }
}

impl Op for FourierFeatures {
    fn name(&self) -> &'static str {
        "fourier_features"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 3..=3)?;
        Ok(vec![TensorType::f32(sizes(self.name(), inputs)?)])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else { return Ok(vec![None; 3]) };
        let mut inputs = vec![dy];
        inputs.extend(args.inputs);
        let made = graph.push(Arc::new(FourierFeaturesGrad), &inputs)?;
        Ok(made.into_iter().zip(args.needs).map(|(grad, &needed)| needed.then_some(grad)).collect())
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for FourierFeaturesGrad {
    fn name(&self) -> &'static str {
        "fourier_features_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 4..=4)?;
        let wanted = TensorType::f32(sizes(self.name(), &inputs[1..])?);
        shape::expect(self.name(), "dy", inputs[0], &wanted)?;
        Ok(inputs[1..].iter().map(|&ty| ty.clone()).collect())
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
        let x = Host::new(&[2], vec![-0.5, 1.25]);
        let (freqs, phases) = (Host::new(&[2], vec![6.0, -11.0]), Host::new(&[2], vec![0.1, 5.0]));
        let y = run(&FourierFeatures, &[&x, &freqs, &phases])[0].clone();
        let want = [-2.9f64, 10.5, 7.6, -8.75].map(|angle| (2f64.sqrt() * angle.cos()) as f32);
        assert_close(&y.data, &want, 2e-6);
    }

    #[test]
    fn gradients() {
        let inputs = [Host::random(&[3], 1), Host::random(&[17], 2), Host::random(&[17], 3)];
        check_gradient(Arc::new(FourierFeatures), &inputs, &[0], 1e-3);
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let hosts = [Host::random(&[5], 1), Host::random(&[40], 2), Host::random(&[40], 3)];
        let inputs = [&hosts[0], &hosts[1], &hosts[2]];
        check_threads(&FourierFeatures, &inputs);
        check_batch(&FourierFeatures, &inputs, &[true, false, false], &[0]);
        let dy = Host::random(&[5, 40], 4);
        let inputs = [&dy, &hosts[0], &hosts[1], &hosts[2]];
        check_threads(&FourierFeaturesGrad, &inputs);
        check_batch(&FourierFeaturesGrad, &inputs, &[true, true, false, false], &[0]);
    }

    #[test]
    fn other_shapes_are_refused() {
        let (x, c) = (TensorType::f32([3]), TensorType::f32([5]));
        assert!(FourierFeatures.infer(&[&x, &c, &x]).is_err());
        assert!(FourierFeatures.infer(&[&TensorType::f32([3, 1]), &c, &c]).is_err());
    }
}
