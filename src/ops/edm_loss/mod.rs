//! EDM2's loss: squared errors weighted by noise level, under a learned uncertainty
//! (Karras et al. 2024, arXiv:2312.02696, eqs. 14 and 21).

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, mse_loss, shape};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// (`denoised` `[B, …]`, `target` of the same shape, `log_variance` `[B, 1]`, `sigma` `[B]`) → `loss` `[1]`
/// = mean over samples of Σ w·e⁻ᵘ·(denoised − target)² + u, with w = (σ² + d²)/(σd)², d = `sigma_data`
/// and the sum over all n elements of a sample; and `squares` `[B]` = Σ (denoised − target)², for the
/// gradient.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EdmLoss {
    pub sigma_data: f32,
}

/// `dloss` `[1]`, then what [`EdmLoss`] reads, then `squares` → `ddenoised` and `dlog_variance` `[B, 1]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EdmLossGrad {
    pub sigma_data: f32,
}

/// w·e⁻ᵘ of one sample.
fn weight(sigma_data: f32, sigma: f32, log_variance: f32) -> f64 {
    let (s, d) = (f64::from(sigma), f64::from(sigma_data));
    (s * s + d * d) / (s * d).powi(2) * (-f64::from(log_variance)).exp()
}

/// Checks what both read but for the upstream gradient.
fn check(name: &str, inputs: &[&TensorType]) -> Result<()> {
    let batch = inputs[0].shape[0];
    shape::expect(name, "target", inputs[1], inputs[0])?;
    shape::expect(name, "log_variance", inputs[2], &TensorType::f32([batch, 1]))?;
    shape::expect(name, "sigma", inputs[3], &TensorType::f32([batch]))
}

impl Op for EdmLoss {
    fn name(&self) -> &'static str {
        "edm_loss"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 4..=4)?;
        check(self.name(), inputs)?;
        Ok(vec![TensorType::f32([1]), TensorType::f32([inputs[0].shape[0]])])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dloss) = args.output_grads[0] else { return Ok(vec![None; 4]) };
        let mut inputs = vec![dloss];
        inputs.extend(args.inputs);
        inputs.push(args.outputs[1]);
        let made = graph.push(Arc::new(EdmLossGrad { sigma_data: self.sigma_data }), &inputs)?;
        let grad = |input: usize, output: usize| args.needs[input].then_some(made[output]);
        Ok(vec![grad(0, 0), None, grad(2, 1), None])
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        mse_loss::scratch(target, &inputs[0].shape)
    }

    fn tickets(&self, target: &Target, _: &[&TensorType], _: &[&TensorType]) -> usize {
        usize::from(!target.is_cpu())
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for EdmLossGrad {
    fn name(&self) -> &'static str {
        "edm_loss_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 6..=6)?;
        shape::expect(self.name(), "dloss", inputs[0], &TensorType::f32([1]))?;
        check(self.name(), &inputs[1..5])?;
        shape::expect(self.name(), "squares", inputs[5], inputs[4])?;
        Ok(vec![inputs[1].clone(), inputs[3].clone()])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::testing::{Host, assert_close, check_gradient, check_threads, run};

    const OP: EdmLoss = EdmLoss { sigma_data: 0.5 };

    fn inputs(shape: &[usize]) -> [Host; 4] {
        let batch = shape[0];
        let sigma = (0..batch).map(|index| 0.4 + 0.9 * index as f32).collect();
        [
            Host::random(shape, 1),
            Host::random(shape, 2),
            Host::random(&[batch, 1], 3),
            Host::new(&[batch], sigma),
        ]
    }

    #[test]
    fn values() {
        let denoised = Host::new(&[2, 2], vec![1.0, 2.0, 3.0, 4.0]);
        let target = Host::new(&[2, 2], vec![0.0, 0.0, 3.0, 3.0]);
        let log_variance = Host::new(&[2, 1], vec![0.0, 2f32.ln()]);
        let sigma = Host::new(&[2], vec![0.5, 1.0]);
        let out = run(&OP, &[&denoised, &target, &log_variance, &sigma]);
        assert_eq!(out[1].data, [5.0, 1.0]);
        // w = 0.5 / 0.0625 = 8 and 1.25 / 0.25 = 5.
        let want = (8.0 * 5.0 + 5.0 / 2.0 + 2.0 * 2f32.ln()) / 2.0;
        assert_close(&out[0].data, &[want], 1e-5);
    }

    #[test]
    fn gradients() {
        let [denoised, target, log_variance, sigma] = inputs(&[3, 2, 2, 3]);
        let hosts = [denoised, target, log_variance, sigma];
        check_gradient(Arc::new(OP), &hosts, &[0], 2e-3);
    }

    #[test]
    fn threads_do_not_matter() {
        let hosts = inputs(&[3, 100, 90, 3]);
        let mut all: Vec<&Host> = hosts.iter().collect();
        check_threads(&OP, &all);
        let (dloss, squares) = (Host::new(&[1], vec![1.5]), run(&OP, &all)[1].clone());
        all.insert(0, &dloss);
        all.push(&squares);
        check_threads(&EdmLossGrad { sigma_data: 0.5 }, &all);
    }

    #[test]
    fn other_shapes_are_refused() {
        let (image, row) = (TensorType::f32([2, 3]), TensorType::f32([2]));
        assert!(OP.infer(&[&image, &image, &row, &row]).is_err());
        assert!(OP.infer(&[&image, &row, &TensorType::f32([2, 1]), &row]).is_err());
    }
}
