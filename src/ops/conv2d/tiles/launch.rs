//! Launches of the kernels in kernels/conv2d_tiles.cu and conv2d_narrow.cu.

use super::cut::{Shape, moment_halves, moment_parts};
use super::{Extras, Norm, TiledConv2d};
use crate::device::cpu::conv::Conv;
use crate::device::kernels::{self, UNSET, dimension};
use crate::device::{KernelWork, Target, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::conv2d::Operand;
use crate::ops::conv2d::geometry::{Divisor, Geometry, in_pieces, row_stride};
use crate::ops::shape::moments_logs;

kernels::params! {
    /// `Conv2d`.
    struct Params for CONV2D_SMALL_FWD_NHWC_F32, CONV2D_SMALL_DGRAD_NHWC_F32,
        CONV2D_LARGE_FWD_NHWC_F32, CONV2D_LARGE_DGRAD_NHWC_F32, CONV2D_SMALL16_FWD_NHWC_F16,
        CONV2D_SMALL16_DGRAD_NHWC_F16, CONV2D_SMALL32_FWD_NHWC_F16, CONV2D_SMALL32_DGRAD_NHWC_F16,
        CONV2D_SMALL64_FWD_NHWC_F16, CONV2D_SMALL64_DGRAD_NHWC_F16, CONV2D_ALONE_FWD_NHWC_F16,
        CONV2D_ALONE80_FWD_NHWC_F16, CONV2D_ALONE_DGRAD_NHWC_F16, CONV2D_LARGE_FWD_NHWC_F16,
        CONV2D_LARGE_DGRAD_NHWC_F16, CONV2D_NARROW32_FWD_NHWC_F16, CONV2D_NARROW48_FWD_NHWC_F16
    {
        x: [u64; 2], affine: u64, moments: [u64; 2], gamma: u64, beta: u64,
        weight: [u64; 3], bias: [u64; 3],
        shortcut: [u64; 2], shortcut_weight: u64, shortcut_bias: u64,
        shift: u64, residual: u64,
        y: [u64; 3], own_moments: u64, own_affine: u64, own_stats: u64, partials: u64, tickets: u64,
        geometry: Geometry, shift_stride: i32,
        shortcut1: i32, shortcut2: i32, groups: i32, group_width: i32, group_reciprocal: u32,
        slice_log1: i32, slice_log2: i32, own_slice_log: i32, parts_log1: i32, parts_log2: i32,
        tile_moments: i32, moment_tickets: i32,
        tile_width_log: i32, region_height: i32, region_width: i32, region_reciprocal: u32,
        split: i32, even_columns: i32, sample_pixels: i32, slices: i32, slices_reciprocal: u32,
        chunk: i32, main_chunks: i32, chunks: i32, flags: i32, buffers: i32, eps: f32, residual_scale: f32, limit: f32,
        tiles_x: Divisor, tiles_y: Divisor, group_lanes_log: i32,
    }
}

/// Bits of `flags`.
const WIDE: i32 = 1;
const WIDE_SHORTCUT: i32 = 2;
const QUADS: i32 = 4;
const HALVES: i32 = 8;

/// log2 of the most lanes that share what is left of a group, as the kernel has it.
const MOST_LANES_LOG: u32 = 4;

/// What blocks share: elements of partial sums, none where channels are not split, then of the moments of
/// tiles before they are merged, none where readers do that; and tickets for each.
pub(super) struct Shared {
    partials: usize,
    moments: usize,
    join_tickets: usize,
    moment_tickets: usize,
}

impl Shared {
    pub fn elements(&self) -> usize {
        self.partials + self.moments
    }

    pub fn tickets(&self) -> usize {
        self.join_tickets + self.moment_tickets
    }
}

/// By which the kernels divide numbers x with x `divisor` below 2^32; 0 for a divisor of 1.
fn reciprocal(divisor: usize) -> u32 {
    u32::try_from((1u64 << 32).div_ceil(divisor as u64)).unwrap_or(0)
}

impl TiledConv2d {
    /// `conv` is the convolution as it stands in the graph.
    pub(super) fn shared(&self, conv: &Conv, shape: &Shape, target: &Target) -> Shared {
        let cut = shape.best(target);
        let places = if cut.slices > 1 { cut.grid[0] * cut.grid[1] } else { 0 };
        let Extras { moments: slice, .. } = self.extras;
        let tiles = if slice > 0 { cut.moment_tiles(conv) } else { 0 };
        let samples = if tiles > 1 && moment_parts(conv) == 1 { conv.batch } else { 0 };
        Shared {
            partials: places * cut.slices * cut.pixels.of_tile() * cut.channels,
            moments: samples * tiles * 3 * (conv.c_out / slice.max(1)),
            join_tickets: places,
            moment_tickets: samples * cut.grid[1],
        }
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let types: Vec<&TensorType> = args.inputs.iter().map(|view| &view.ty).collect();
        let original = self.conv(&types)?;
        let shape = self.shape(&original, &types);
        let cut = shape.best(args.target);
        let conv = &shape.conv;
        let name = self.form.name;
        let int = |size| dimension(name, size);
        // The kernel counts taps in 32 bits.
        int(conv.kernel[0] * conv.kernel[1])?;
        if cut.grid[1] > 65_535 {
            return Err(Error::operation(name, format!("{} channels are too many", conv.c_out)));
        }
        if cut.shared > args.target.shared_bytes as usize {
            return Err(Error::operation(
                name,
                format!(
                    "a kernel of {:?} needs {} bytes of shared memory; {} has {}",
                    conv.kernel, cut.shared, args.target.name, args.target.shared_bytes
                ),
            ));
        }
        let operand = |which| self.form.operands.index(which).map(|index| &args.inputs[index]);
        let places = self.places();
        let input = |place: Option<usize>| place.map(|index| &args.inputs[index]);
        let [x, x2] = [Operand::X, Operand::X2].map(operand);
        let (affine, shift) = (operand(Operand::Affine), operand(Operand::Shift));
        let residual = operand(Operand::Residual);
        let moments = places.moments.map(input);
        let gamma = input(places.gamma);
        let affine_stride = match self.extras.norm {
            Some(_) => row_stride(name, gamma, conv.c_in())?,
            None => row_stride(name, affine, 2 * conv.c_in())?,
        };
        let shortcut = places.shortcut.map(input);
        let shortcut_channels = self.shortcut_channels(&types);
        let pieces = |(view, channels)| in_pieces(view, channels, self.pack.dtype);
        let wide = [x, x2].into_iter().zip(conv.channels).all(pieces);
        let wide_shortcut = shortcut.into_iter().zip(shortcut_channels).all(pieces);
        let (results, own) = args.outputs.split_at(1 + self.extras.siblings);
        let (own_moments, kept) = own.split_at(usize::from(self.extras.moments > 0));
        let whole = results.iter().chain(residual).all(|view| pieces((Some(view), conv.c_out)));
        // In a row of the pixels of all samples neighbours may have different time rows.
        let stored = whole && (shape.sample_pixels == 0 || shift.is_none());
        let [[slice_log1, parts_log1], [slice_log2, parts_log2]] =
            [0, 1].map(|at| moments_logs(moments[at].map(|view| &view.ty), conv.channels[at]));
        let Norm { groups, eps } = self.extras.norm.unwrap_or(Norm { groups: 0, eps: 0.0 });
        let flag = |bit: i32, set: bool| if set { bit } else { 0 };
        let shared = self.shared(&original, &shape, args.target);
        let [main_chunks, chunks] = cut.chunks;
        let group_width = conv.c_in().checked_div(groups).unwrap_or(1);
        // The kernel divides channels by it, in 32 bits.
        if conv.c_in() * group_width > u32::MAX as usize {
            return Err(Error::operation(
                name,
                format!("{} channels in groups of {group_width} are too many", conv.c_in()),
            ));
        }
        let params = Params {
            x: [UNSET; 2],
            affine: UNSET,
            moments: [UNSET; 2],
            gamma: UNSET,
            beta: UNSET,
            weight: [UNSET; 3],
            bias: [UNSET; 3],
            shortcut: [UNSET; 2],
            shortcut_weight: UNSET,
            shortcut_bias: UNSET,
            shift: UNSET,
            residual: UNSET,
            y: [UNSET; 3],
            own_moments: UNSET,
            own_affine: UNSET,
            own_stats: UNSET,
            partials: UNSET,
            tickets: UNSET,
            geometry: Geometry::of(name, conv, self.form.operands.silu, affine_stride)?,
            shift_stride: row_stride(name, shift, conv.c_out)?,
            shortcut1: int(shortcut_channels[0])?,
            shortcut2: int(shortcut_channels[1])?,
            groups: int(groups)?,
            group_width: int(group_width)?,
            group_reciprocal: reciprocal(group_width),
            slice_log1,
            slice_log2,
            own_slice_log: self.extras.moments.checked_ilog2().map_or(-1, |log| log as i32),
            parts_log1,
            parts_log2,
            tile_moments: if shared.moments > 0 { int(shared.partials)? } else { -1 },
            moment_tickets: int(shared.join_tickets)?,
            tile_width_log: cut.pixels.tile[1].trailing_zeros() as i32,
            region_height: int(cut.pixels.region[0])?,
            region_width: int(cut.pixels.region[1])?,
            region_reciprocal: reciprocal(cut.pixels.region[1]),
            split: i32::from(cut.split),
            even_columns: int(match cut.split {
                true => cut.pixels.region[1].div_ceil(2),
                false => cut.pixels.region[1],
            })?,
            sample_pixels: int(shape.sample_pixels)?,
            slices: int(cut.slices)?,
            slices_reciprocal: reciprocal(cut.slices),
            chunk: int(cut.chunk)?,
            main_chunks: int(main_chunks)?,
            chunks: int(chunks)?,
            flags: flag(WIDE, wide)
                | flag(WIDE_SHORTCUT, wide_shortcut)
                | flag(QUADS, stored)
                | flag(HALVES, self.extras.moments > 0 && moment_halves(&original)),
            buffers: int(cut.buffers)?,
            eps,
            residual_scale: self.extras.finish.residual_scale,
            limit: self.extras.finish.limit,
            tiles_x: Divisor::of(name, cut.pixels.tiles[1])?,
            tiles_y: Divisor::of(name, cut.pixels.tiles[0])?,
            group_lanes_log: group_width.trailing_zeros().min(MOST_LANES_LOG) as i32,
        };
        let mut read = vec![x, x2, affine, moments[0], moments[1], gamma, input(places.beta)];
        read.extend(places.weights.into_iter().chain(places.biases).map(input));
        read.extend(shortcut);
        read.extend([places.shortcut_weight, places.shortcut_bias].map(input));
        read.extend([shift, residual]);
        let mut written: Vec<Option<&View>> = (0..3).map(|sibling| results.get(sibling)).collect();
        written.extend([
            own_moments.first(),
            kept.first(),
            kept.get(1),
            args.scratch,
            args.tickets,
        ]);
        let grid = [int(cut.grid[0])? as u32, cut.grid[1] as u32, cut.slices as u32];
        let block = [cut.kernel.threads, 1, 1];
        let work = cut.kernel.launch(grid, block, cut.shared as u32, &params, &read, &written);
        // Of narrow ones elements are all that there is to store.
        let fast = wide && wide_shortcut && (stored || self.pack.narrow);
        Ok(vec![work.with_general(!fast)])
    }
}
