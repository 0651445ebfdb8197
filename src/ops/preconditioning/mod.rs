//! What a network's input, output and noise level are multiplied by so that all have unit variance
//! (Karras et al. 2022, arXiv:2206.00364, table 1, "EDM").

mod cpu;
mod launch;

use super::{Build, GradArgs, LaunchArgs, Op, TensorId, shape};
use crate::device::{KernelWork, TensorType};
use crate::error::{Error, Result};
use std::sync::Arc;

/// `sigma` `[B]`, positive → `c_skip` = d²/(σ² + d²), `c_out` = σd/√(σ² + d²), `c_in` = 1/√(σ² + d²),
/// each `[B, channels]` with all channels alike, and `c_noise` `[B]` = ln(σ)/4; d is `sigma_data`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Preconditioning {
    pub sigma_data: f32,
    pub channels: usize,
}

/// Gradients of those of the four results that `given` names, then `sigma` → `dsigma` `[B]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreconditioningGrad {
    pub of: Preconditioning,
    pub given: [bool; 4],
}

impl Preconditioning {
    /// The four results for one noise level, in float64.
    fn values(&self, sigma: f32) -> [f32; 4] {
        let (s, d) = (f64::from(sigma), f64::from(self.sigma_data));
        let q = s * s + d * d;
        [d * d / q, s * d / q.sqrt(), 1.0 / q.sqrt(), s.ln() / 4.0].map(|value| value as f32)
    }

    /// Their derivatives.
    fn slopes(&self, sigma: f32) -> [f32; 4] {
        let (s, d) = (f64::from(sigma), f64::from(self.sigma_data));
        let q = s * s + d * d;
        let cube = q * q.sqrt();
        let slopes = [-2.0 * s * d * d / (q * q), d * d * d / cube, -s / cube, 0.25 / s];
        slopes.map(|value| value as f32)
    }

    fn types(&self, sigma: &TensorType) -> [TensorType; 4] {
        let rows = TensorType::f32([sigma.shape[0], self.channels]);
        [rows.clone(), rows.clone(), rows, sigma.clone()]
    }
}

fn check(name: &str, sigma: &TensorType, channels: usize) -> Result<()> {
    if sigma.shape.len() == 1 && channels > 0 {
        return Ok(());
    }
    Err(Error::operation(name, format!("needs [B] and channels, not {sigma:?} and {channels}")))
}

impl Op for Preconditioning {
    fn name(&self) -> &'static str {
        "preconditioning"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 1..=1)?;
        check(self.name(), inputs[0], self.channels)?;
        Ok(self.types(inputs[0]).to_vec())
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let mut given = [false; 4];
        for (given, grad) in given.iter_mut().zip(args.output_grads) {
            *given = grad.is_some();
        }
        let mut inputs: Vec<TensorId> = args.output_grads.iter().copied().flatten().collect();
        inputs.push(args.inputs[0]);
        let op = PreconditioningGrad { of: *self, given };
        Ok(vec![Some(graph.push(Arc::new(op), &inputs)?[0])])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for PreconditioningGrad {
    fn name(&self) -> &'static str {
        "preconditioning_grad"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let count = 1 + self.given.iter().filter(|&&given| given).count();
        shape::floats(self.name(), inputs, count..=count)?;
        let (sigma, grads) = (inputs[count - 1], &inputs[..count - 1]);
        check(self.name(), sigma, self.of.channels)?;
        let wanted = self.of.types(sigma).into_iter().zip(self.given).filter(|(_, given)| *given);
        for (grad, (wanted, _)) in grads.iter().zip(wanted) {
            shape::expect(self.name(), "a gradient", grad, &wanted)?;
        }
        Ok(vec![sigma.clone()])
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

    const OP: Preconditioning = Preconditioning { sigma_data: 0.5, channels: 3 };

    #[test]
    fn values() {
        let sigma = Host::new(&[2], vec![0.5, 2.0]);
        let [skip, out, input, noise] = &run(&OP, &[&sigma])[..] else { panic!("four results") };
        let (q, wide) = (0.5f32.sqrt(), 4.25f32.sqrt());
        assert_close(&skip.data, &[0.5, 0.5, 0.5, 0.25 / 4.25, 0.25 / 4.25, 0.25 / 4.25], 1e-7);
        assert_close(&out.data[2..4], &[0.25 / q, 1.0 / wide], 1e-7);
        assert_close(&input.data[2..4], &[1.0 / q, 1.0 / wide], 2e-7);
        assert_close(&noise.data, &[0.5f32.ln() / 4.0, 2f32.ln() / 4.0], 1e-7);
    }

    #[test]
    fn gradients() {
        let sigma = Host::new(&[3], vec![0.6, 1.5, 7.0]);
        for outputs in [&[0, 1, 2, 3][..], &[1], &[0, 3]] {
            check_gradient(Arc::new(OP), std::slice::from_ref(&sigma), outputs, 3e-3);
        }
    }

    #[test]
    fn neither_threads_nor_batch_matter() {
        let sigma = Host::new(&[3], vec![0.002, 1.5, 80.0]);
        check_threads(&OP, &[&sigma]);
        check_batch(&OP, &[&sigma], &[true], &[0, 1, 2, 3]);
    }

    #[test]
    fn other_shapes_are_refused() {
        assert!(OP.infer(&[&TensorType::f32([3, 1])]).is_err());
        assert!(Preconditioning { channels: 0, ..OP }.infer(&[&TensorType::f32([3])]).is_err());
    }
}
