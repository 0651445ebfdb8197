//! Kernel launches of Fourier features and their gradients.

use super::{FourierFeatures, FourierFeaturesGrad};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, FOURIER_FEATURES_DGRAD_NHWC_F32, FOURIER_FEATURES_FWD_NHWC_F32,
    FOURIER_FEATURES_WGRAD_NHWC_F32, UNSET, dimension,
};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `FourierFeatures` of kernels/diffusion.cu.
    struct Params for FOURIER_FEATURES_FWD_NHWC_F32, FOURIER_FEATURES_DGRAD_NHWC_F32,
        FOURIER_FEATURES_WGRAD_NHWC_F32
    {
        x: u64, freqs: u64, phases: u64, dy: u64, y: u64, second: u64, batch: i32, channels: i32,
    }
}

fn params(batch: usize, channels: usize) -> Result<Params> {
    let int = |size| dimension("fourier_features", size);
    int(batch * channels + 255)?;
    let (batch, channels) = (int(batch)?, int(channels)?);
    let [x, freqs, phases, dy, y, second] = [UNSET; 6];
    Ok(Params { x, freqs, phases, dy, y, second, batch, channels })
}

impl FourierFeatures {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let y = &args.outputs[0];
        let params = params(y.ty.shape[0], y.ty.shape[1])?;
        let [x, freqs, phases] = [0, 1, 2].map(|index| args.inputs.get(index));
        let read = [x, freqs, phases, None];
        let kernel = &FOURIER_FEATURES_FWD_NHWC_F32;
        Ok(vec![kernel.over(y.ty.elements(), &params, &read, &[Some(y), None])])
    }
}

impl FourierFeaturesGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let [dx, dfreqs, dphases] = [0, 1, 2].map(|index| args.outputs.get(index));
        let [batch, channels] = [0, 1].map(|axis| args.inputs[0].ty.shape[axis]);
        let params = params(batch, channels)?;
        let [dy, x, freqs, phases] = [0, 1, 2, 3].map(|index| args.inputs.get(index));
        let read = [x, freqs, phases, dy];
        let grid = [batch as u32, 1, 1];
        let of_x = &FOURIER_FEATURES_DGRAD_NHWC_F32;
        Ok(vec![
            of_x.launch(grid, [256, 1, 1], 0, &params, &read, &[dx, None]),
            FOURIER_FEATURES_WGRAD_NHWC_F32.over(channels, &params, &read, &[dfreqs, dphases]),
        ])
    }
}
