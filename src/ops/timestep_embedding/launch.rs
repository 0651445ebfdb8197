//! Kernel launches of the timestep embedding.

use super::TimestepEmbedding;
use crate::device::KernelWork;
use crate::device::kernels::{self, TIMESTEP_EMBEDDING_FWD_NHWC_F32, UNSET, dimension};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `TimestepEmbedding` of kernels/diffusion.cu.
    struct Params for TIMESTEP_EMBEDDING_FWD_NHWC_F32 {
        t: u64, y: u64,
        batch: i32, width: i32, cosine_first: i32, rate: f32, span: f32, unused: i32,
    }
}

impl TimestepEmbedding {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([t], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let int = |size| dimension("timestep_embedding", size);
        let elements = y.ty.elements();
        int(elements + 255)?;
        let params = Params {
            t: UNSET,
            y: UNSET,
            batch: int(t.ty.shape[0])?,
            width: int(self.dim)?,
            cosine_first: i32::from(self.flip_sin_to_cos),
            rate: -self.max_period.ln() as f32,
            span: ((self.dim / 2) as f64 - self.freq_shift) as f32,
            unused: 0,
        };
        let kernel = &TIMESTEP_EMBEDDING_FWD_NHWC_F32;
        Ok(vec![kernel.over(elements, &params, &[Some(t)], &[Some(y)])])
    }
}
