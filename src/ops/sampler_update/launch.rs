//! Kernel launches of the samplers' update.

use super::{Noise, SamplerUpdate};
use crate::device::KernelWork;
use crate::device::kernels::{
    self, SAMPLER_UPDATE_FWD_NHWC_F16, SAMPLER_UPDATE_FWD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::error::Result;
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `SamplerUpdate` of kernels/diffusion.cu.
    struct Params for SAMPLER_UPDATE_FWD_NHWC_F32, SAMPLER_UPDATE_FWD_NHWC_F16 {
        output: u64, table: u64, c_skip: u64, c_out: u64, seeds: u64, given: u64, x: u64,
        history: u64, x_rest: u64, history_rest: u64, state: u64, ticket: u64,
        batch: i32, pixels: i32, channels: i32, rows: i32, purpose: u32, factor_rows: i32,
    }
}

impl SamplerUpdate {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([output, table, more @ ..], [x, others @ .., state]) = (args.inputs, args.outputs)
        else {
            unreachable!("inputs are checked")
        };
        let (factors, noise) = more.split_at(self.factors());
        let (x_rest, history) = match self.pairs {
            true => (others.first(), others.get(1)),
            false => (None, others.first()),
        };
        let extent = Extent::of(&x.ty.shape);
        let int = |size| dimension("sampler_update", size);
        int(extent.sample())?;
        let (purpose, seeds, given) = match self.noise {
            Noise::None => (0, None, None),
            Noise::Philox { purpose } => (purpose, noise.first(), None),
            Noise::Given => (0, None, noise.first()),
        };
        let params = Params {
            output: UNSET,
            table: UNSET,
            c_skip: UNSET,
            c_out: UNSET,
            seeds: UNSET,
            given: UNSET,
            x: UNSET,
            history: UNSET,
            x_rest: UNSET,
            history_rest: UNSET,
            state: UNSET,
            ticket: UNSET,
            batch: int(extent.batch)?,
            pixels: int(extent.pixels)?,
            channels: int(extent.channels)?,
            rows: int(table.ty.shape[0])?,
            purpose,
            factor_rows: int(factors.first().map_or(1, |rows| rows.ty.shape[0]))?,
        };
        let kernel =
            of_type(&output.ty, &SAMPLER_UPDATE_FWD_NHWC_F32, &SAMPLER_UPDATE_FWD_NHWC_F16);
        Ok(vec![kernel.over(
            x.ty.elements(),
            &params,
            &[Some(output), Some(table), factors.first(), factors.get(1), seeds, given],
            &[Some(x), history, x_rest, others.get(2), Some(state), args.tickets],
        )])
    }
}
