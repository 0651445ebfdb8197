//! Kernel launches of preconditioning: one thread a sample.

use super::{Preconditioning, PreconditioningGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, PRECONDITIONING_DGRAD_NHWC_F32, PRECONDITIONING_FWD_NHWC_F32, UNSET, dimension,
};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `Preconditioning` of kernels/diffusion.cu.
    struct Params for PRECONDITIONING_FWD_NHWC_F32, PRECONDITIONING_DGRAD_NHWC_F32 {
        sigma: u64, values: [u64; 4], dsigma: u64, batch: i32, channels: i32, sigma_data: f32,
        unused: i32,
    }
}

impl Preconditioning {
    fn params(&self, batch: usize) -> Result<Params> {
        let int = |size| dimension("preconditioning", size);
        let (batch, channels, sigma_data) = (int(batch)?, int(self.channels)?, self.sigma_data);
        let [sigma, dsigma] = [UNSET; 2];
        Ok(Params { sigma, values: [UNSET; 4], dsigma, batch, channels, sigma_data, unused: 0 })
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let sigma = &args.inputs[0];
        let batch = sigma.ty.shape[0];
        let [a, b, c, d] = [0, 1, 2, 3].map(|index| args.outputs.get(index));
        let (read, written) = ([Some(sigma)], [a, b, c, d, None]);
        let params = self.params(batch)?;
        Ok(vec![PRECONDITIONING_FWD_NHWC_F32.over(batch, &params, &read, &written)])
    }
}

impl PreconditioningGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (grads, sigma) = args.inputs.split_at(args.inputs.len() - 1);
        let batch = sigma[0].ty.shape[0];
        let mut grads = grads.iter();
        let [a, b, c, d] = self.given.map(|given| if given { grads.next() } else { None });
        let (read, written) = ([Some(&sigma[0]), a, b, c, d], [Some(&args.outputs[0])]);
        let params = self.of.params(batch)?;
        Ok(vec![PRECONDITIONING_DGRAD_NHWC_F32.over(batch, &params, &read, &written)])
    }
}
