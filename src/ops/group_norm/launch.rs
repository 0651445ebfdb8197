//! Kernel launches of group normalisation; kernels/group_norm.cu and group_norm_grad.cu say how work is split.

use super::{GroupNorm, GroupNormAffine, GroupNormGrad};
use crate::device::kernels::{
    self, GROUP_NORM_AFFINE_FWD_NHWC_F32, GROUP_NORM_DGRAD_NHWC_F16, GROUP_NORM_DGRAD_NHWC_F32,
    GROUP_NORM_FWD_NHWC_F16, GROUP_NORM_FWD_NHWC_F32, GROUP_NORM_MOMENTS_FWD_NHWC_F16,
    GROUP_NORM_MOMENTS_FWD_NHWC_F32, GROUP_NORM_SILU_DGRAD_NHWC_F16,
    GROUP_NORM_SILU_DGRAD_NHWC_F32, GROUP_NORM_SILU_FWD_NHWC_F16, GROUP_NORM_SILU_FWD_NHWC_F32,
    GROUP_NORM_SILU_MOMENTS_FWD_NHWC_F16, GROUP_NORM_SILU_MOMENTS_FWD_NHWC_F32,
    GROUP_NORM_STATS_FWD_NHWC_F16, GROUP_NORM_STATS_FWD_NHWC_F32, UNSET, of_type,
};
use crate::device::{DType, KernelWork, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::conv2d::{PIECE, in_pieces, piece};
use crate::ops::shape::{Extent, moments_logs};

/// Threads of a block, each with a piece of a pixel's channels at a time; twice as many where the forward
/// kernel keeps more.
const THREADS: usize = 256;
/// Threads of a block of the gradient at least.
const LEAST_THREADS: usize = 64;
/// Pieces that a thread of the forward kernel keeps (`HELD` in kernels/group_norm.cu).
const HELD: usize = 16;
/// Bytes of a source that a block has, where others have the rest of the sample.
const SHARE: usize = 32 << 10;
/// Most blocks of a grid beside each other, of all dimensions but the first.
const MOST_BLOCKS: usize = 65_535;

kernels::params! {
    /// `GroupNormStats`.
    struct Stats for GROUP_NORM_STATS_FWD_NHWC_F32, GROUP_NORM_STATS_FWD_NHWC_F16
    {
        source: [u64; 2], stats: u64, parts: u64, tickets: u64,
        pixels: i32, c1: i32, c2: i32, groups: i32, slab: i32, share: i32, wide: i32, eps: f32,
    }
}

kernels::params! {
    /// `GroupNormForward`.
    struct Forward for GROUP_NORM_FWD_NHWC_F32, GROUP_NORM_FWD_NHWC_F16, GROUP_NORM_SILU_FWD_NHWC_F32, GROUP_NORM_SILU_FWD_NHWC_F16, GROUP_NORM_MOMENTS_FWD_NHWC_F32, GROUP_NORM_MOMENTS_FWD_NHWC_F16, GROUP_NORM_SILU_MOMENTS_FWD_NHWC_F32, GROUP_NORM_SILU_MOMENTS_FWD_NHWC_F16
    {
        source: [u64; 2], moments: [u64; 2], gamma: u64, beta: u64, y: u64, stats: u64,
        pixels: i32, c1: i32, c2: i32, groups: i32, affine_stride: i32, slab: i32, share: i32,
        wide: i32, slice_log1: i32, slice_log2: i32, parts_log1: i32, parts_log2: i32,
        eps: f32, unused: i32,
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
    struct Backward for GROUP_NORM_DGRAD_NHWC_F32, GROUP_NORM_DGRAD_NHWC_F16, GROUP_NORM_SILU_DGRAD_NHWC_F32, GROUP_NORM_SILU_DGRAD_NHWC_F16
    {
        dy: u64, source: [u64; 2], gamma: u64, beta: u64, stats: u64, residual: [u64; 2],
        dx: u64, dx2: u64, dgamma: u64, dbeta: u64, rows: u64, sums: u64, tickets: u64,
        pixels: i32, c1: i32, c2: i32, groups: i32, affine_stride: i32, batch: i32, slab: i32,
        wide: i32, kept: i32, kept_at: i32,
    }
}

/// Channels of a block: whole groups, pieces and two of them, if there are as many.
fn slab(channels: usize, groups: usize, dtype: DType) -> usize {
    let (width, piece) = (channels / groups, piece(dtype));
    let unit = (1..=piece).map(|n| n * width).find(|unit| unit.is_multiple_of(piece));
    let unit = unit.expect("a piece of groups is whole pieces");
    (unit * (2 * piece).div_ceil(unit)).min(channels)
}

/// Pixels of a block, where others have the rest of the sample.
fn share(pixels: usize, slab: usize, dtype: DType) -> usize {
    let share = (SHARE / (slab * dtype.size())).max(pixels.div_ceil(MOST_BLOCKS));
    share.clamp(1, pixels)
}

/// Threads of a block that keeps all pixels of a slab in registers; `None` where it can't.
fn keepers(pixels: usize, slab: usize, dtype: DType) -> Option<usize> {
    let columns = slab.div_ceil(piece(dtype));
    [THREADS, 2 * THREADS]
        .into_iter()
        .find(|threads| columns <= *threads && pixels.div_ceil(threads / columns) <= HELD)
}

/// Elements of working memory and tickets of launches that find mean and variance of a sample in several
/// blocks: two numbers a group and block, and a ticket a sample and slab. Asked for even where registers may hold a
/// sample's slab, since that depends on where views lie, too. `inputs` are (`x`, \[`x2`\], `gamma`,
/// `beta`).
pub(super) fn stats_room(inputs: &[&TensorType], groups: usize) -> [usize; 2] {
    let (sources, x) = (&inputs[..inputs.len() - 2], inputs[0]);
    let channels = sources.iter().map(|ty| Extent::of(&ty.shape).channels).sum();
    let Extent { batch, pixels, .. } = Extent::of(&x.shape);
    let slab = slab(channels, groups, x.dtype);
    let blocks = pixels.div_ceil(share(pixels, slab, x.dtype));
    [2 * batch * blocks * groups, batch * channels.div_ceil(slab)]
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

    /// Channels of a block, and blocks that have all channels.
    fn slab(&self) -> (usize, u32) {
        let (channels, groups) = (self.channels() as usize, self.groups as usize);
        let slab = slab(channels, groups, self.x.ty.dtype);
        (slab, channels.div_ceil(slab) as u32)
    }

    /// Whether sources and these tensors of all channels can be moved a piece at a time.
    fn wide(&self, like_y: &[&View], like_x2: Option<&View>) -> bool {
        let dtype = self.x.ty.dtype;
        let [c1, c2] = [self.c1, self.c2].map(|channels| channels as usize);
        in_pieces(Some(self.x), c1, dtype)
            && in_pieces(self.x2, c2, dtype)
            && in_pieces(like_x2, c2, dtype)
            && like_y.iter().all(|&view| in_pieces(Some(view), c1 + c2, dtype))
    }

    /// Blocks that share a sample's pixels, and how many each has.
    fn shares(&self) -> [usize; 2] {
        let pixels = self.pixels as usize;
        let share = share(pixels, self.slab().0, self.x.ty.dtype);
        [pixels.div_ceil(share), share]
    }

    /// Mean and 1 / deviation of each group to `stats`, with working memory of [`stats_room`].
    fn stats(&self, eps: f32, stats: &View, parts: &View, tickets: &View) -> Result<KernelWork> {
        let int = |size| kernels::dimension("group_norm", size);
        let ((slab, slabs), [blocks, share]) = (self.slab(), self.shares());
        let wide = self.wide(&[], None);
        let params = Stats {
            source: [UNSET; 2],
            stats: UNSET,
            parts: UNSET,
            tickets: UNSET,
            pixels: self.pixels,
            c1: self.c1,
            c2: self.c2,
            groups: self.groups,
            slab: int(slab)?,
            share: int(share)?,
            wide: i32::from(wide),
            eps,
        };
        let kernels = (&GROUP_NORM_STATS_FWD_NHWC_F32, &GROUP_NORM_STATS_FWD_NHWC_F16);
        let work = of_type(&self.x.ty, kernels.0, kernels.1).launch(
            [slabs, int(blocks)? as u32, self.batch as u32],
            [THREADS as u32, 1, 1],
            8 * slab as u32,
            &params,
            &[Some(self.x), self.x2],
            &[Some(stats), Some(parts), Some(tickets)],
        );
        Ok(work.with_general(!wide))
    }
}

impl GroupNorm {
    /// `inputs` are (`x`, \[`x2`\], `gamma`, `beta`); `moments` none, or those of each source.
    pub(super) fn launches(
        &self,
        args: &LaunchArgs,
        inputs: &[View],
        moments: &[View],
    ) -> Result<Vec<KernelWork>> {
        let name = "group_norm";
        let inputs = Inputs::new(name, inputs, self.groups)?;
        let [y, stats] = args.outputs else { unreachable!("outputs are checked") };
        let (slab, slabs) = inputs.slab();
        let (pixels, dtype) = (inputs.pixels as usize, y.ty.dtype);
        let wide = inputs.wide(&[y], None);
        let kept = keepers(pixels, slab, dtype).filter(|_| wide && moments.is_empty());
        let [blocks, share] = if kept.is_some() { [1, pixels] } else { inputs.shares() };
        let int = |size| kernels::dimension(name, size);
        let logs = |index: usize, channels: i32| {
            moments_logs(moments.get(index).map(|view| &view.ty), channels as usize)
        };
        let ([slice_log1, parts_log1], [slice_log2, parts_log2]) =
            (logs(0, inputs.c1), logs(1, inputs.c2));
        let params = Forward {
            source: [UNSET; 2],
            moments: [UNSET; 2],
            gamma: UNSET,
            beta: UNSET,
            y: UNSET,
            stats: UNSET,
            pixels: inputs.pixels,
            c1: inputs.c1,
            c2: inputs.c2,
            groups: inputs.groups,
            affine_stride: inputs.affine_stride,
            slab: int(slab)?,
            share: int(share)?,
            wide: i32::from(wide),
            slice_log1,
            slice_log2,
            parts_log1,
            parts_log2,
            eps: self.eps,
            unused: 0,
        };
        let (f32, f16) = match (self.silu, kept.is_some()) {
            (true, true) => (&GROUP_NORM_SILU_FWD_NHWC_F32, &GROUP_NORM_SILU_FWD_NHWC_F16),
            (false, true) => (&GROUP_NORM_FWD_NHWC_F32, &GROUP_NORM_FWD_NHWC_F16),
            (true, false) => {
                (&GROUP_NORM_SILU_MOMENTS_FWD_NHWC_F32, &GROUP_NORM_SILU_MOMENTS_FWD_NHWC_F16)
            }
            (false, false) => (&GROUP_NORM_MOMENTS_FWD_NHWC_F32, &GROUP_NORM_MOMENTS_FWD_NHWC_F16),
        };
        let kernel = of_type(&inputs.x.ty, f32, f16);
        let (gamma, beta) = (Some(inputs.gamma), Some(inputs.beta));
        let read = [Some(inputs.x), inputs.x2, moments.first(), moments.get(1), gamma, beta];
        let grid = [slabs, int(blocks)? as u32, inputs.batch as u32];
        let block = [kept.unwrap_or(THREADS) as u32, 1, 1];
        let written = [Some(y), Some(stats)];
        let normalise = kernel.launch(grid, block, 20 * slab as u32, &params, &read, &written);
        let normalise = normalise.with_general(!wide);
        if kept.is_some() || !moments.is_empty() {
            return Ok(vec![normalise]);
        }
        let (Some(parts), Some(tickets)) = (args.scratch, args.tickets) else {
            unreachable!("working memory and tickets were asked for")
        };
        Ok(vec![inputs.stats(self.eps, stats, parts, tickets)?, normalise])
    }
}

impl GroupNormAffine {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let inputs = Inputs::new("group_norm_affine", args.inputs, self.groups)?;
        let (Some(scratch), Some(tickets), [affine]) = (args.scratch, args.tickets, args.outputs)
        else {
            unreachable!("outputs are checked, working memory and tickets were asked for")
        };
        // The statistics, and behind them what blocks find.
        let stats = TensorType::f32([inputs.batch as usize, self.groups, 2]);
        let parts = TensorType::f32([scratch.ty.elements() - stats.elements()]);
        let parts = View { offset: scratch.offset + stats.bytes(), ty: parts, ..*scratch };
        let stats = View { ty: stats, ..*scratch };
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
        let read = [Some(inputs.gamma), Some(inputs.beta), Some(&stats)];
        let fold = GROUP_NORM_AFFINE_FWD_NHWC_F32.over(elements, &params, &read, &[Some(affine)]);
        Ok(vec![inputs.stats(self.eps, &stats, &parts, tickets)?, fold])
    }
}

impl GroupNormGrad {
    /// Elements of working memory: two sums a sample and channel, where the samples' are added.
    pub(super) fn kernel_scratch(&self, inputs: &[&TensorType]) -> usize {
        let Extent { batch, channels, .. } = Extent::of(&inputs[0].shape);
        if self.kernel_tickets(inputs) > 0 { 2 * batch * channels } else { 0 }
    }

    /// One a slab, where samples share gamma.
    pub(super) fn kernel_tickets(&self, inputs: &[&TensorType]) -> usize {
        let Extent { batch, channels, .. } = Extent::of(&inputs[0].shape);
        let (_, plain, ..) = self.split(inputs);
        let shared = plain[plain.len() - 1].elements() == channels;
        let slabs = channels.div_ceil(slab(channels, self.groups, inputs[0].dtype));
        if shared && batch > 1 { slabs } else { 0 }
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let name = "group_norm_grad";
        let (dy, inputs, stats, residuals) = self.split(args.inputs);
        let inputs = Inputs::new(name, inputs, self.groups)?;
        let (outputs, rows) = args.outputs.split_at(args.outputs.len() - usize::from(self.rows));
        let (dx, dx2, dgamma, dbeta) = match outputs {
            [dx, dgamma, dbeta] => (dx, None, dgamma, dbeta),
            [dx, dx2, dgamma, dbeta] => (dx, Some(dx2), dgamma, dbeta),
            _ => unreachable!("outputs are checked"),
        };
        let (slab, slabs) = inputs.slab();
        let like_y: Vec<&View> = residuals.iter().chain([dy]).collect();
        let aligned = in_pieces(Some(dx), inputs.c1 as usize, dx.ty.dtype);
        let wide = aligned && inputs.wide(&like_y, dx2);
        let int = |size| kernels::dimension(name, size);
        let (f32, f16) = match self.silu {
            true => (&GROUP_NORM_SILU_DGRAD_NHWC_F32, &GROUP_NORM_SILU_DGRAD_NHWC_F16),
            false => (&GROUP_NORM_DGRAD_NHWC_F32, &GROUP_NORM_DGRAD_NHWC_F16),
        };
        let kernel = of_type(&inputs.x.ty, f32, f16);
        // What the block's channels need of shared memory; in the rest of a half each thread keeps pieces of x and dy.
        let table = (20 * slab).next_multiple_of(PIECE);
        let (pixels, columns) = (inputs.pixels as usize, slab.div_ceil(piece(dx.ty.dtype)));
        // No more than have a piece.
        let threads = (pixels * columns).next_power_of_two().clamp(LEAST_THREADS, THREADS);
        let kept = if wide && columns <= threads {
            let half = args.target.most_shared(2);
            let room = half.saturating_sub(table + kernel.shared as usize) / (2 * PIECE * threads);
            room.min(pixels.div_ceil(threads / columns))
        } else {
            0
        };
        let params = Backward {
            dy: UNSET,
            source: [UNSET; 2],
            gamma: UNSET,
            beta: UNSET,
            stats: UNSET,
            residual: [UNSET; 2],
            dx: UNSET,
            dx2: UNSET,
            dgamma: UNSET,
            dbeta: UNSET,
            rows: UNSET,
            sums: UNSET,
            tickets: UNSET,
            pixels: inputs.pixels,
            c1: inputs.c1,
            c2: inputs.c2,
            groups: inputs.groups,
            affine_stride: inputs.affine_stride,
            batch: inputs.batch,
            slab: int(slab)?,
            wide: i32::from(wide),
            kept: int(kept)?,
            kept_at: int(table)?,
        };
        let read = [
            Some(dy),
            Some(inputs.x),
            inputs.x2,
            Some(inputs.gamma),
            Some(inputs.beta),
            Some(stats),
            residuals.first(),
            residuals.get(1),
        ];
        let gradients = [Some(dx), dx2, Some(dgamma), Some(dbeta)];
        let written: Vec<_> =
            gradients.into_iter().chain([rows.first(), args.scratch, args.tickets]).collect();
        let grid = [slabs, inputs.batch as u32, 1];
        let shared = (table + 2 * PIECE * threads * kept) as u32;
        let work = kernel.launch(grid, [threads as u32, 1, 1], shared, &params, &read, &written);
        Ok(vec![work.with_general(!wide)])
    }
}
