//! Kernel launches of the forward process.

use super::AddNoise;
use crate::device::KernelWork;
use crate::device::kernels::{self, ADD_NOISE_FWD_NHWC_F32, UNSET, dimension};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `AddNoise` of kernels/diffusion.cu.
    struct Params for ADD_NOISE_FWD_NHWC_F32 {
        x0: u64, noise: u64, table: u64, times: u64, state: u64, x_t: u64, v: u64, drawn: u64,
        elements: i64, pixels: i32, channels: i32, rows: i32, purpose: u32,
    }
}

impl AddNoise {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x0, source, table @ .., times], [x_t, more @ ..]) = (args.inputs, args.outputs)
        else {
            unreachable!("inputs are checked")
        };
        let table = table.first();
        let elements = x0.ty.elements();
        let Extent { pixels, channels, .. } = Extent::of(&x0.ty.shape);
        let int = |size| dimension("add_noise", size);
        int(pixels * channels)?;
        let (v, drawn) = more.split_at(usize::from(self.more()[0]));
        let (noise, state) = match self.draws {
            None => (Some(source), None),
            Some(_) => (None, Some(source)),
        };
        let params = Params {
            x0: UNSET,
            noise: UNSET,
            table: UNSET,
            times: UNSET,
            state: UNSET,
            x_t: UNSET,
            v: UNSET,
            drawn: UNSET,
            elements: elements as i64,
            pixels: int(pixels)?,
            channels: int(channels)?,
            rows: int(table.map_or(0, |table| table.ty.shape[0]))?,
            purpose: self.draws.unwrap_or(0),
        };
        let read = [Some(x0), noise, table, Some(times), state];
        let written = [Some(x_t), v.first(), drawn.first()];
        Ok(vec![ADD_NOISE_FWD_NHWC_F32.over(elements, &params, &read, &written)])
    }
}
