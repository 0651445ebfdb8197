//! Kernel launches of Adam: a thread has four parameters.

use super::AdamW;
use crate::device::KernelWork;
use crate::device::kernels::{self, ADAMW_FWD_NHWC_F32, UNSET};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `AdamW` of kernels/optimizer.cu.
    struct Params for ADAMW_FWD_NHWC_F32 {
        grads: u64, norm: u64, w: u64, m: u64, v: u64, ema: u64, state: u64,
        elements: i64,
        beta1: f64, beta2: f64, eps: f64, weight_decay: f64, max_norm: f64,
        decoupled: i32, zero_non_finite: i32,
    }
}

impl AdamW {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([grads, norm], [w, m, v, ema @ .., state]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let elements = grads.ty.elements();
        kernels::check_fours("adamw", [grads, w, m, v].into_iter().chain(ema.first()))?;
        let params = Params {
            grads: UNSET,
            norm: UNSET,
            w: UNSET,
            m: UNSET,
            v: UNSET,
            ema: UNSET,
            state: UNSET,
            elements: elements as i64,
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.eps,
            weight_decay: self.weight_decay,
            max_norm: self.max_norm.unwrap_or(f64::INFINITY),
            decoupled: i32::from(self.decoupled),
            zero_non_finite: i32::from(self.zero_non_finite),
        };
        Ok(vec![ADAMW_FWD_NHWC_F32.over(
            elements.div_ceil(4),
            &params,
            &[Some(grads), Some(norm)],
            &[Some(w), Some(m), Some(v), ema.first(), Some(state)],
        )])
    }
}
