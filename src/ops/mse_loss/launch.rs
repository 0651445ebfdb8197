//! Kernel launches of the mean squared error and its gradient.

use super::{MseLoss, MseLossGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, MSE_LOSS_DGRAD_NHWC_F32, MSE_LOSS_FWD_NHWC_F32, UNSET, dimension,
};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::grad_norm::grid;

kernels::params! {
    /// `MseLoss` of kernels/squares.cu.
    struct Forward for MSE_LOSS_FWD_NHWC_F32 {
        x: u64, target: u64, weights: u64, loss: u64, sums: u64, ticket: u64, elements: i64,
        scale: f64,
    }
}

kernels::params! {
    /// `MseLossBackward` of kernels/squares.cu.
    struct Backward for MSE_LOSS_DGRAD_NHWC_F32 {
        dloss: u64, x: u64, target: u64, weights: u64, dx: u64,
        elements: i64, batch: i32, unused: i32,
    }
}

impl MseLoss {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x, target, weights @ ..], [loss]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let batch = x.ty.shape[0];
        let elements = x.ty.elements() / batch;
        let params = Forward {
            x: UNSET,
            target: UNSET,
            weights: UNSET,
            loss: UNSET,
            sums: UNSET,
            ticket: UNSET,
            elements: elements as i64,
            scale: 1.0 / (if weights.is_empty() { elements * batch } else { elements } as f64),
        };
        let read = [Some(x), Some(target), weights.first()];
        let written = [Some(loss), args.scratch, args.tickets];
        let grid = grid("mse_loss", elements, batch)?;
        let kernel = &MSE_LOSS_FWD_NHWC_F32;
        Ok(vec![kernel.launch(grid, [kernel.threads, 1, 1], 0, &params, &read, &written)])
    }
}

impl MseLossGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([dloss, x, target, weights @ ..], [dx]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let batch = x.ty.shape[0];
        let params = Backward {
            dloss: UNSET,
            x: UNSET,
            target: UNSET,
            weights: UNSET,
            dx: UNSET,
            elements: (x.ty.elements() / batch) as i64,
            batch: dimension("mse_loss_grad", batch)?,
            unused: 0,
        };
        let read = [Some(dloss), Some(x), Some(target), weights.first()];
        let elements = x.ty.elements();
        Ok(vec![MSE_LOSS_DGRAD_NHWC_F32.over(elements, &params, &read, &[Some(dx)])])
    }
}
