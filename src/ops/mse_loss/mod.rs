//! The mean squared error.

pub(in crate::ops) mod cpu;
mod launch;

use super::scale_add::ScaleAdd;
use super::shape::{self, Slices};
use super::{Build, GradArgs, LaunchArgs, Op, TensorId, grad_norm};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// (`x` `[B, …]`, `target` of the same shape, \[`weights` `[B]`\]) → `loss` `[1]` = Σ_b w_b · mean over
/// the sample of (x − target)²; w_b = 1/B without weights. Weights of 0 mask what pads a short batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MseLoss;

/// (`dloss` `[1]`, `x`, `target`, \[`weights`\]) → `dx` = dloss·w_b·2·(x − target)/elements of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MseLossGrad;

/// Checks (`x`, `target`, \[`weights`\]).
fn check(name: &str, inputs: &[&TensorType]) -> Result<()> {
    shape::expect(name, "target", inputs[1], inputs[0])?;
    match inputs.get(2) {
        Some(weights) => {
            shape::expect(name, "weights", weights, &TensorType::f32([inputs[0].shape[0]]))
        }
        None => Ok(()),
    }
}

/// Samples, and the slices that one is cut into.
pub(in crate::ops) fn slices(shape: &[usize]) -> (usize, Slices) {
    (shape[0], Slices::new(shape[1..].iter().product(), 1))
}

/// Elements of working memory of a loss over `shape`: a sum of squares for each slice.
pub(in crate::ops) fn scratch(target: &Target, shape: &[usize]) -> usize {
    if !target.is_cpu() {
        return shape[0] * grad_norm::slices(shape[1..].iter().product());
    }
    let (batch, slices) = slices(shape);
    batch * slices.count
}

impl Op for MseLoss {
    fn name(&self) -> &'static str {
        "mse_loss"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 2..=3)?;
        check(self.name(), inputs)?;
        Ok(vec![TensorType::f32([1])])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let mut grads = vec![None; args.inputs.len()];
        let Some(dloss) = args.output_grads[0].filter(|_| args.needs[0] || args.needs[1]) else {
            return Ok(grads);
        };
        let inputs: Vec<TensorId> = [dloss].iter().chain(args.inputs).copied().collect();
        let dx = graph.push(Arc::new(MseLossGrad), &inputs)?[0];
        if args.needs[1] {
            let negative = ScaleAdd { scale: -1.0, offset: 0.0 };
            grads[1] = Some(graph.push(Arc::new(negative), &[dx])?[0]);
        }
        grads[0] = args.needs[0].then_some(dx);
        Ok(grads)
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        scratch(target, &inputs[0].shape)
    }

    fn tickets(&self, target: &Target, _: &[&TensorType], _: &[&TensorType]) -> usize {
        usize::from(!target.is_cpu())
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for MseLossGrad {
    fn name(&self) -> &'static str {
        "mse_loss_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 3..=4)?;
        shape::expect(self.name(), "dloss", inputs[0], &TensorType::f32([1]))?;
        check(self.name(), &inputs[1..])?;
        Ok(vec![inputs[1].clone()])
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
        let x = Host::new(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let target = Host::new(&[2, 2], vec![0.0, 0.0, 3.0, 8.0]);
        assert_eq!(run(&MseLoss, &[&x, &target])[0].data, [21.0 / 4.0]);
        let weights = Host::new(&[2], vec![1.0, 0.0]);
        assert_eq!(run(&MseLoss, &[&x, &target, &weights])[0].data, [2.5]);
        let x = Host::random(&[2, 100, 100, 3], 1);
        let target = Host::random(&[2, 100, 100, 3], 2);
        let squares = x.data.iter().zip(&target.data).map(|(a, b)| f64::from(a - b).powi(2));
        let want = squares.sum::<f64>() / 60_000.0;
        assert_close(&run(&MseLoss, &[&x, &target])[0].data, &[want as f32], 2e-7);
    }

    #[test]
    fn gradients() {
        let inputs = [Host::random(&[3, 2, 2, 3], 1), Host::random(&[3, 2, 2, 3], 2)];
        check_gradient(Arc::new(MseLoss), &inputs, &[0], 1e-3);
        let [x, target] = inputs;
        let weights = Host::new(&[3], vec![0.5, 0.0, 2.0]);
        check_gradient(Arc::new(MseLoss), &[x, target, weights], &[0], 1e-3);
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let x = Host::random(&[3, 100, 90, 3], 1);
        let target = Host::random(&[3, 100, 90, 3], 2);
        let (weights, dloss) = (Host::random(&[3], 3), Host::new(&[1], vec![1.5]));
        check_threads(&MseLoss, &[&x, &target]);
        let inputs = [&dloss, &x, &target, &weights];
        check_threads(&MseLossGrad, &inputs);
        check_batch(&MseLossGrad, &inputs, &[false, true, true, true], &[0]);
    }

    #[test]
    fn nan_reaches_the_loss() {
        let x = Host::new(&[1, 2], vec![1.0, f32::NAN]);
        assert!(run(&MseLoss, &[&x, &Host::random(&[1, 2], 1)])[0].data[0].is_nan());
    }
}
