//! Kernel launches of group normalisation; kernels/group_norm.cu says how work is split.

use super::{GroupNorm, GroupNormAffine, GroupNormGrad};
use crate::device::kernels::{
    self, GROUP_NORM_AFFINE_FWD_NHWC_F32, GROUP_NORM_DGRAD_NHWC_F16, GROUP_NORM_DGRAD_NHWC_F32,
    GROUP_NORM_FWD_NHWC_F16, GROUP_NORM_FWD_NHWC_F32, GROUP_NORM_SILU_DGRAD_NHWC_F16,
    GROUP_NORM_SILU_DGRAD_NHWC_F32, GROUP_NORM_SILU_FWD_NHWC_F16, GROUP_NORM_SILU_FWD_NHWC_F32,
    GROUP_NORM_SILU_SUMS_DGRAD_NHWC_F16, GROUP_NORM_SILU_SUMS_DGRAD_NHWC_F32,
    GROUP_NORM_STATS_FWD_NHWC_F16, GROUP_NORM_STATS_FWD_NHWC_F32, GROUP_NORM_SUMS_DGRAD_NHWC_F16,
    GROUP_NORM_SUMS_DGRAD_NHWC_F32, GROUP_NORM_WGRAD_NHWC_F32, UNSET, of_type,
};
use crate::device::{KernelWork, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::shape::Extent;

kernels::params! {
    /// `GroupNormStats`.
    struct Stats for GROUP_NORM_STATS_FWD_NHWC_F32, GROUP_NORM_STATS_FWD_NHWC_F16
    {
        source: [u64; 2], stats: u64,
        pixels: i32, c1: i32, c2: i32, groups: i32, eps: f32, unused: i32,
    }
}

kernels::params! {
    /// `GroupNormForward`.
    struct Forward for GROUP_NORM_FWD_NHWC_F32, GROUP_NORM_FWD_NHWC_F16, GROUP_NORM_SILU_FWD_NHWC_F32, GROUP_NORM_SILU_FWD_NHWC_F16
    {
        source: [u64; 2], gamma: u64, beta: u64, stats: u64, y: u64,
        pixels: i32, c1: i32, c2: i32, groups: i32, affine_stride: i32, batch: i32,
    }
}

kernels::params! {
    /// `GroupNormAffine`.
    struct Affine for GROUP_NORM_AFFINE_FWD_NHWC_F32 {
        gamma: u64, beta: u64, stats: u64, affine: u64,
        channels: i32, groups: i32, affine_stride: i32, batch: i32,
    }
}

kernels::params! {
    /// `GroupNormBackward`.
    struct Backward for GROUP_NORM_DGRAD_NHWC_F32, GROUP_NORM_DGRAD_NHWC_F16, GROUP_NORM_SILU_DGRAD_NHWC_F32, GROUP_NORM_SILU_DGRAD_NHWC_F16, GROUP_NORM_SUMS_DGRAD_NHWC_F32, GROUP_NORM_SUMS_DGRAD_NHWC_F16, GROUP_NORM_SILU_SUMS_DGRAD_NHWC_F32, GROUP_NORM_SILU_SUMS_DGRAD_NHWC_F16
    {
        dy: u64, source: [u64; 2], gamma: u64, beta: u64, stats: u64, sums: u64,
        dx: u64, dx2: u64,
        pixels: i32, c1: i32, c2: i32, groups: i32, affine_stride: i32, batch: i32,
    }
}

kernels::params! {
    /// `GroupNormWeights`.
    struct Weights for GROUP_NORM_WGRAD_NHWC_F32 {
        sums: u64, dgamma: u64, dbeta: u64,
        channels: i32, batch: i32, shared: i32, unused: i32,
    }
}

/// (`x`, \[`x2`\], `gamma`, `beta`) as kernels take them.
struct Inputs<'a> {
    x: &'a View,
    x2: Option<&'a View>,
    gamma: &'a View,
    beta: &'a View,
    batch: i32,
    pixels: i32,
    c1: i32,
    c2: i32,
    groups: i32,
    /// 0 where all samples share gamma and beta, else C.
    affine_stride: i32,
}

impl<'a> Inputs<'a> {
    fn new(operation: &str, inputs: &'a [View], groups: usize) -> Result<Inputs<'a>> {
        let (x, x2, gamma, beta) = match inputs {
            [x, gamma, beta] => (x, None, gamma, beta),
            [x, x2, gamma, beta] => (x, Some(x2), gamma, beta),
            _ => unreachable!("inputs are checked"),
        };
        let int = |size| kernels::dimension(operation, size);
        let extent = Extent::of(&x.ty.shape);
        let second = x2.map_or(0, |x2| Extent::of(&x2.ty.shape).channels);
        let channels = extent.channels + second;
        // The kernels count the elements of a sample and the batch's channels in 32 bits.
        int(channels * extent.pixels)?;
        int(channels * extent.batch * 2)?;
        if extent.batch > 65_535 {
            return Err(Error::operation(operation, "more than 65,535 samples in a batch"));
        }
        Ok(Inputs {
            x,
            x2,
            gamma,
            beta,
            batch: int(extent.batch)?,
            pixels: int(extent.pixels)?,
            c1: int(extent.channels)?,
            c2: int(second)?,
            groups: int(groups)?,
            affine_stride: if gamma.ty.elements() == channels { 0 } else { int(channels)? },
        })
    }

    fn channels(&self) -> i32 {
        self.c1 + self.c2
    }

    fn elements(&self) -> usize {
        self.batch as usize * self.pixels as usize * self.channels() as usize
    }

    fn stats(&self, eps: f32, stats: &View) -> KernelWork {
        let params = Stats {
            source: [UNSET; 2],
            stats: UNSET,
            pixels: self.pixels,
            c1: self.c1,
            c2: self.c2,
            groups: self.groups,
            eps,
            unused: 0,
        };
        let kernels = (&GROUP_NORM_STATS_FWD_NHWC_F32, &GROUP_NORM_STATS_FWD_NHWC_F16);
        of_type(&self.x.ty, kernels.0, kernels.1).launch(
            [self.groups as u32, self.batch as u32, 1],
            [256, 1, 1],
            0,
            &params,
            &[Some(self.x), self.x2],
            &[Some(stats)],
        )
    }
}

impl GroupNorm {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let inputs = Inputs::new("group_norm", args.inputs, self.groups)?;
        let [y, stats] = args.outputs else { unreachable!("outputs are checked") };
        let params = Forward {
            source: [UNSET; 2],
            gamma: UNSET,
            beta: UNSET,
            stats: UNSET,
            y: UNSET,
            pixels: inputs.pixels,
            c1: inputs.c1,
            c2: inputs.c2,
            groups: inputs.groups,
            affine_stride: inputs.affine_stride,
            batch: inputs.batch,
        };
        let (f32, f16) = match self.silu {
            true => (&GROUP_NORM_SILU_FWD_NHWC_F32, &GROUP_NORM_SILU_FWD_NHWC_F16),
            false => (&GROUP_NORM_FWD_NHWC_F32, &GROUP_NORM_FWD_NHWC_F16),
        };
        let kernel = of_type(&inputs.x.ty, f32, f16);
        let read = [Some(inputs.x), inputs.x2, Some(inputs.gamma), Some(inputs.beta), Some(stats)];
        let apply = kernel.over(inputs.elements(), &params, &read, &[Some(y)]);
        Ok(vec![inputs.stats(self.eps, stats), apply])
    }
}

impl GroupNormAffine {
    /// Elements of working memory: the statistics.
    pub(super) fn kernel_scratch(&self, batch: usize) -> usize {
        2 * batch * self.groups
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let inputs = Inputs::new("group_norm_affine", args.inputs, self.groups)?;
        let (Some(stats), [affine]) = (args.scratch, args.outputs) else {
            unreachable!("outputs are checked and working memory was asked for")
        };
        let params = Affine {
            gamma: UNSET,
            beta: UNSET,
            stats: UNSET,
            affine: UNSET,
            channels: inputs.channels(),
            groups: inputs.groups,
            affine_stride: inputs.affine_stride,
            batch: inputs.batch,
        };
        let elements = inputs.batch as usize * inputs.channels() as usize;
        let read = [Some(inputs.gamma), Some(inputs.beta), Some(stats)];
        let fold = GROUP_NORM_AFFINE_FWD_NHWC_F32.over(elements, &params, &read, &[Some(affine)]);
        Ok(vec![inputs.stats(self.eps, stats), fold])
    }
}

impl GroupNormGrad {
    /// Elements of working memory: two sums a sample and channel.
    pub(super) fn kernel_scratch(batch: usize, channels: usize) -> usize {
        2 * batch * channels
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let [dy, inputs @ .., stats] = args.inputs else { unreachable!("inputs are checked") };
        let inputs = Inputs::new("group_norm_grad", inputs, self.groups)?;
        let (dx, dx2, dgamma, dbeta) = match args.outputs {
            [dx, dgamma, dbeta] => (dx, None, dgamma, dbeta),
            [dx, dx2, dgamma, dbeta] => (dx, Some(dx2), dgamma, dbeta),
            _ => unreachable!("outputs are checked"),
        };
        let Some(sums) = args.scratch else { unreachable!("working memory was asked for") };
        let channels = inputs.channels();
        let params = Backward {
            dy: UNSET,
            source: [UNSET; 2],
            gamma: UNSET,
            beta: UNSET,
            stats: UNSET,
            sums: UNSET,
            dx: UNSET,
            dx2: UNSET,
            pixels: inputs.pixels,
            c1: inputs.c1,
            c2: inputs.c2,
            groups: inputs.groups,
            affine_stride: inputs.affine_stride,
            batch: inputs.batch,
        };
        let weights = Weights {
            sums: UNSET,
            dgamma: UNSET,
            dbeta: UNSET,
            channels,
            batch: inputs.batch,
            shared: i32::from(inputs.affine_stride == 0),
            unused: 0,
        };
        let of = |f32, f16| of_type(&inputs.x.ty, f32, f16);
        let (sum, dgrad) = match self.silu {
            true => (
                of(&GROUP_NORM_SILU_SUMS_DGRAD_NHWC_F32, &GROUP_NORM_SILU_SUMS_DGRAD_NHWC_F16),
                of(&GROUP_NORM_SILU_DGRAD_NHWC_F32, &GROUP_NORM_SILU_DGRAD_NHWC_F16),
            ),
            false => (
                of(&GROUP_NORM_SUMS_DGRAD_NHWC_F32, &GROUP_NORM_SUMS_DGRAD_NHWC_F16),
                of(&GROUP_NORM_DGRAD_NHWC_F32, &GROUP_NORM_DGRAD_NHWC_F16),
            ),
        };
        let read = [
            Some(dy),
            Some(inputs.x),
            inputs.x2,
            Some(inputs.gamma),
            Some(inputs.beta),
            Some(stats),
        ];
        let [first, groups] = [(channels as u32).div_ceil(32), inputs.groups as u32];
        let batch = inputs.batch as u32;
        let threads = [256, 1, 1];
        let without_sums: Vec<_> = read.into_iter().chain([None]).collect();
        let with_sums: Vec<_> = read.into_iter().chain([Some(sums)]).collect();
        Ok(vec![
            sum.launch([first, batch, 1], threads, 0, &params, &without_sums, &[Some(sums), None]),
            dgrad.launch([groups, batch, 1], threads, 0, &params, &with_sums, &[Some(dx), dx2]),
            GROUP_NORM_WGRAD_NHWC_F32.over(
                dgamma.ty.elements(),
                &weights,
                &[Some(sums)],
                &[Some(dgamma), Some(dbeta)],
            ),
        ])
    }
}
