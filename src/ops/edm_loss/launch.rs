//! Kernel launches of EDM2's loss and its gradient.

use super::{EdmLoss, EdmLossGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, EDM_LOSS_DGRAD_NHWC_F32, EDM_LOSS_FWD_NHWC_F32, UNSET, dimension,
};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::grad_norm::grid;

kernels::params! {
    /// `EdmLoss` of kernels/squares.cu.
    struct Forward for EDM_LOSS_FWD_NHWC_F32 {
        x: u64, target: u64, log_variance: u64, sigma: u64, loss: u64, squares: u64, sums: u64,
        ticket: u64, elements: i64, sigma_data: f32, unused: i32,
    }
}

kernels::params! {
    /// `EdmLossBackward` of kernels/squares.cu.
    struct Backward for EDM_LOSS_DGRAD_NHWC_F32 {
        dloss: u64, denoised: u64, target: u64, log_variance: u64, sigma: u64, squares: u64,
        ddenoised: u64, dlog_variance: u64, elements: i64, batch: i32, sigma_data: f32,
    }
}

impl EdmLoss {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x, target, log_variance, sigma], [loss, squares]) = (args.inputs, args.outputs)
        else {
            unreachable!("inputs are checked")
        };
        let batch = x.ty.shape[0];
        let elements = x.ty.elements() / batch;
        let params = Forward {
            x: UNSET,
            target: UNSET,
            log_variance: UNSET,
            sigma: UNSET,
            loss: UNSET,
            squares: UNSET,
            sums: UNSET,
            ticket: UNSET,
            elements: elements as i64,
            sigma_data: self.sigma_data,
            unused: 0,
        };
        let read = [Some(x), Some(target), Some(log_variance), Some(sigma)];
        let written = [Some(loss), Some(squares), args.scratch, args.tickets];
        let grid = grid("edm_loss", elements, batch)?;
        let kernel = &EDM_LOSS_FWD_NHWC_F32;
        Ok(vec![kernel.launch(grid, [kernel.threads, 1, 1], 0, &params, &read, &written)])
    }
}

impl EdmLossGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (x, batch) = (&args.inputs[1], args.inputs[1].ty.shape[0]);
        let params = Backward {
            dloss: UNSET,
            denoised: UNSET,
            target: UNSET,
            log_variance: UNSET,
            sigma: UNSET,
            squares: UNSET,
            ddenoised: UNSET,
            dlog_variance: UNSET,
            elements: (x.ty.elements() / batch) as i64,
            batch: dimension("edm_loss_grad", batch)?,
            sigma_data: self.sigma_data,
        };
        let read = [0, 1, 2, 3, 4, 5].map(|index| args.inputs.get(index));
        let written = [0, 1].map(|index| args.outputs.get(index));
        let elements = x.ty.elements();
        Ok(vec![EDM_LOSS_DGRAD_NHWC_F32.over(elements, &params, &read, &written)])
    }
}
