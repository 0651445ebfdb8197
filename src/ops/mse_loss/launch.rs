//! Kernel launches of the mean squared error and its gradient.

use super::{MseLoss, MseLossGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, MSE_LOSS_DGRAD_NHWC_F32, MSE_LOSS_FWD_NHWC_F32, UNSET, dimension,
};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::grad_norm::{slices, square_sums};

kernels::params! {
    /// `MseLoss` of kernels/squares.cu.
    struct Forward for MSE_LOSS_FWD_NHWC_F32 {
        sums: u64, weights: u64, loss: u64, elements: i64, batch: i32, slices: i32,
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
        let Some(sums) = args.scratch else { unreachable!("working memory was asked for") };
        let batch = x.ty.shape[0];
        let elements = x.ty.elements() / batch;
        let params = Forward {
            sums: UNSET,
            weights: UNSET,
            loss: UNSET,
            elements: elements as i64,
            batch: dimension("mse_loss", batch)?,
            slices: dimension("mse_loss", slices(elements))?,
        };
        let read = [Some(sums), weights.first()];
        Ok(vec![
            square_sums("mse_loss", x, Some(target), sums, batch)?,
            MSE_LOSS_FWD_NHWC_F32.over(1, &params, &read, &[Some(loss)]),
        ])
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
