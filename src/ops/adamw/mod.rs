//! Adam with decoupled weight decay over all parameters at once (Loshchilov & Hutter 2019,
//! arXiv:1711.05101, algorithm 2), with clipping by the global norm and a moving average.

pub(in crate::ops) mod cpu;
mod launch;

use super::{LaunchArgs, Op, shape, state};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;

/// In place on `w`, `m`, `v`, \[`ema`\] (all of the shape of `grads`) and `state`, from (`grads`,
/// `norm` `[2]` of [`GradNorm`](super::grad_norm::GradNorm)).
///
/// g = grads / loss scale, times min(1, max_norm / (norm + 1e-6)); with L2 decay g += λ·w, with
/// decoupled decay w −= lr·λ·w; m += (1 − β₁)(g − m); v = β₂·v + (1 − β₂)·g²;
/// w −= lr / bias₁ · m / (√v / √bias₂ + eps); ema += (1 − decay)(w − ema). Rates, bias corrections
/// and the average's decay are words of the state. The order of rounding is that of PyTorch's `AdamW`.
///
/// Where the norm isn't finite nothing changes but the state's words `SKIPPED` and `FIRST_BAD`; or, with
/// `zero_non_finite`, gradients that are NaN or infinite count as 0 (and nothing may be clipped).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Decoupled weight decay (AdamW), or the L2 form of plain Adam.
    pub decoupled: bool,
    /// Limit of the global norm, `None` for no clipping.
    pub max_norm: Option<f64>,
    /// Whether bad gradients are zeroed instead of the step skipped.
    pub zero_non_finite: bool,
    /// Whether there is a moving average.
    pub ema: bool,
}

impl Op for AdamW {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        shape::floats(self.name(), inputs, 2..=2)?;
        shape::expect(self.name(), "norm", inputs[1], &TensorType::f32([2]))?;
        let mut outputs = vec![inputs[0].clone(); if self.ema { 4 } else { 3 }];
        outputs.push(state::ty());
        Ok(outputs)
    }

    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        // Gradients are read, everything in place is read and written.
        let outputs: usize = outputs.iter().map(|ty| 2 * ty.bytes()).sum();
        (inputs[0].bytes() + outputs) as u64
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests;
