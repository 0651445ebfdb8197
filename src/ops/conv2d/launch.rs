//! Kernel launches of the weight's and the bias's gradient; kernels/common/conv2d_wgrad_tile.cuh says how
//! work is split.

use super::form::Operand;
use super::geometry::{Divisor, Geometry, PIECE, in_pieces, piece, row_stride};
use super::grad::{Conv2dWgrad, MOST_SIBLINGS, Patched};
use crate::device::cpu::conv::Conv;
use crate::device::kernels::{
    self, CONV2D_COLUMNS_WGRAD_NHWC_F16, CONV2D_COLUMNS_WGRAD_NHWC_F32,
    CONV2D_POINTWISE_NORM_WGRAD_NHWC_F16, CONV2D_POINTWISE_WGRAD_NHWC_F16,
    CONV2D_TAPS_GENERAL_WGRAD_NHWC_F16, CONV2D_TAPS_GENERAL_WGRAD_NHWC_F32,
    CONV2D_TAPS_NORM_WGRAD_NHWC_F16, CONV2D_TAPS_NORM_WGRAD_NHWC_F32,
    CONV2D_TAPS_STRIDED_WGRAD_NHWC_F16, CONV2D_TAPS_WGRAD_NHWC_F16, CONV2D_TAPS_WGRAD_NHWC_F32,
    Kernel, UNSET, dimension, of_type,
};
use crate::device::{DType, KernelWork, Target, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;

/// Threads of a block that multiply.
const THREADS: usize = 256;
/// Most slices that are joined at once.
const FAN: usize = 6;
/// Bytes of shared memory that a kernel has beside those of a launch, as the manifest counts the ticket that it drew.
const OWN: usize = 64;
/// The least pixels of a tile: those of one product.
const LEAST_PIXELS: usize = 16;
/// Tiles of pixels that make a slice of the sums worth its part of the joining.
const LEAST_TILES: usize = 2;

kernels::params! {
    /// `Conv2dWeights`.
    struct Params for CONV2D_TAPS_WGRAD_NHWC_F32, CONV2D_TAPS_WGRAD_NHWC_F16,
        CONV2D_TAPS_NORM_WGRAD_NHWC_F32, CONV2D_TAPS_NORM_WGRAD_NHWC_F16,
        CONV2D_TAPS_STRIDED_WGRAD_NHWC_F16,
        CONV2D_TAPS_GENERAL_WGRAD_NHWC_F32, CONV2D_TAPS_GENERAL_WGRAD_NHWC_F16,
        CONV2D_COLUMNS_WGRAD_NHWC_F32, CONV2D_COLUMNS_WGRAD_NHWC_F16, CONV2D_POINTWISE_WGRAD_NHWC_F16,
        CONV2D_POINTWISE_NORM_WGRAD_NHWC_F16
    {
        x: [u64; 2], affine: u64, dy: [u64; 3], dw: [u64; 3], dbias: [u64; 3],
        partials: u64, tickets: u64,
        geometry: Geometry, sample_pixels: i32,
        pixels: i32, samples: i32, tile_width_log: i32, tile_height_log: i32,
        tiles: i32, tiles_y: i32, tiles_x: i32,
        region: i32, region_height: i32, region_width: i32, sub_width: i32, second_tap: i32, third_tap: i32,
        row_factor: i32, sample_factor: i32,
        row_tiles: i32, slices: i32, fan: i32, parts: i32, groups: i32, flags: i32,
        rows: i32, columns: i32, row_taps: Divisor, bias_tap: i32, unused: i32,
    }
}

/// The results of a block, of which a multiprocessor has one at a time.
struct Body {
    rows: usize,
    columns: usize,
    taps: usize,
    /// In float16, for 1×1 kernels, where x and dy are read 16 bytes at a time.
    pointwise: bool,
    /// Most pixels of a tile.
    pixels: usize,
    /// Of a tile.
    least_width: usize,
}

impl Body {
    /// For 3×3 kernels.
    fn taps(dtype: DType) -> Body {
        let pixels = if dtype == DType::F16 { 128 } else { 64 };
        Body { rows: 64, columns: 64, taps: 9, pointwise: false, pixels, least_width: 8 }
    }

    /// For all kernels: a column is an input channel and a tap.
    fn columns() -> Body {
        Body { rows: 128, columns: 128, taps: 1, pointwise: false, pixels: 64, least_width: 1 }
    }

    /// For 1×1 kernels in float16, of whole pieces of channels.
    fn pointwise() -> Body {
        Body { pointwise: true, pixels: 128, ..Body::columns() }
    }

    /// `wide`: x and dy are read 16 bytes at a time. `stride`: in rows. `normalised`: x is not used as it is. Also
    /// whether that is the general path, which is slower.
    fn kernel(
        &self,
        x: &TensorType,
        wide: bool,
        stride: usize,
        normalised: bool,
    ) -> (&'static Kernel, bool) {
        let half = x.dtype == DType::F16;
        let [f32, f16] = match (self.taps, wide, stride, normalised) {
            (1, true, 1, false) if self.pointwise => {
                return (&CONV2D_POINTWISE_WGRAD_NHWC_F16, false);
            }
            (1, true, 1, true) if self.pointwise => {
                return (&CONV2D_POINTWISE_NORM_WGRAD_NHWC_F16, false);
            }
            (1, ..) => [&CONV2D_COLUMNS_WGRAD_NHWC_F32, &CONV2D_COLUMNS_WGRAD_NHWC_F16],
            (_, true, 1, false) => [&CONV2D_TAPS_WGRAD_NHWC_F32, &CONV2D_TAPS_WGRAD_NHWC_F16],
            (_, true, 1, true) => {
                [&CONV2D_TAPS_NORM_WGRAD_NHWC_F32, &CONV2D_TAPS_NORM_WGRAD_NHWC_F16]
            }
            (_, true, 2, false) if half => return (&CONV2D_TAPS_STRIDED_WGRAD_NHWC_F16, false),
            _ => {
                let [f32, f16] =
                    [&CONV2D_TAPS_GENERAL_WGRAD_NHWC_F32, &CONV2D_TAPS_GENERAL_WGRAD_NHWC_F16];
                return (of_type(x, f32, f16), true);
            }
        };
        (of_type(x, f32, f16), !wide)
    }
}

/// Pixels that blocks work on at a time: samples × height × width, powers of two.
#[derive(Clone, Copy)]
struct Tile {
    samples: usize,
    size: [usize; 2],
    /// Of x, for one sample: height, and width rounded up to a multiple of the stride.
    region: [usize; 2],
    /// Tiles of the whole batch.
    count: usize,
    /// Bytes of shared memory.
    shared: usize,
}

/// How the work is cut.
struct Plan {
    body: Body,
    /// As the kernel sees it: without taps beyond the first, and stride, all pixels form a row.
    conv: Conv,
    sample_pixels: usize,
    tile: Tile,
    siblings: usize,
    /// Of each of them.
    row_tiles: usize,
    column_tiles: usize,
    slices: usize,
}

impl Plan {
    /// `normalised`: what x goes through may differ from sample to sample.
    fn of(conv: &Conv, normalised: bool, siblings: usize, dtype: DType, target: &Target) -> Plan {
        let rows = |alike| match conv.in_rows(alike) {
            Some(rows) if rows.batch == 1 => (rows, conv.input[0] * conv.input[1]),
            Some(rows) => (rows, 0),
            None => (*conv, 0),
        };
        let pointwise = || {
            let whole = |channels: usize| channels.is_multiple_of(piece(dtype));
            let whole = conv.channels.into_iter().all(whole) && whole(conv.c_out);
            if !whole || dtype != DType::F16 || conv.in_rows(true).is_none() {
                return None;
            }
            let (body, (flat, sample_pixels)) = (Body::pointwise(), rows(!normalised));
            Some((body.tile(&flat, dtype, target)?, body, flat.c_in(), flat, sample_pixels))
        };
        let (flat, sample_pixels) = rows(true);
        let columns = flat.c_in() * flat.kernel[0] * flat.kernel[1];
        let taps = || {
            // Few channels fill more of a block as columns.
            let wanted = flat.kernel == [3, 3] && columns > Body::columns().columns;
            let body = wanted.then(|| Body::taps(dtype))?;
            Some((body.tile(&flat, dtype, target)?, body, flat.c_in(), flat, sample_pixels))
        };
        let general = || {
            let body = Body::columns();
            let Some(tile) = body.tile(&flat, dtype, target) else {
                unreachable!("without taps the least tile has one size")
            };
            (tile, body, columns, flat, sample_pixels)
        };
        let cut = pointwise().or_else(taps).unwrap_or_else(general);
        let (tile, body, columns, flat, sample_pixels) = cut;
        let row_tiles = flat.c_out.div_ceil(body.rows);
        let column_tiles = columns.div_ceil(body.columns);
        let slices = target.multiprocessors as usize / (siblings * row_tiles * column_tiles);
        let slices = slices.clamp(1, tile.count.div_ceil(LEAST_TILES));
        Plan { body, conv: flat, sample_pixels, tile, siblings, row_tiles, column_tiles, slices }
    }

    fn blocks(&self) -> usize {
        self.siblings * self.row_tiles * self.column_tiles
    }

    /// Slices that are joined at once: all, or as many as there are groups of them.
    fn fan(&self) -> usize {
        match self.slices {
            slices if slices <= FAN => slices,
            slices => (1..).find(|fan| fan * fan >= slices).unwrap_or(slices),
        }
    }

    /// Parts of each sum in working memory and tickets, of a block's results.
    fn joins(&self) -> [usize; 2] {
        match self.slices.div_ceil(self.fan()) {
            1 => [self.slices, 1],
            groups => [self.slices + groups, groups + 1],
        }
    }

    /// Elements of working memory. A thread has its share of the block's results, and one sum for the
    /// bias.
    fn scratch(&self) -> usize {
        let sums = self.body.rows * self.body.columns * self.body.taps + THREADS;
        self.blocks() * self.joins()[0] * sums
    }
}

impl Body {
    /// The tile that reads least, of the most pixels that fit into shared memory; `None` if none fits.
    fn tile(&self, conv: &Conv, dtype: DType, target: &Target) -> Option<Tile> {
        let [batch, height, width] =
            [conv.batch, conv.output[0], conv.output[1]].map(usize::next_power_of_two);
        let all = height.saturating_mul(width).saturating_mul(batch);
        let mut pixels = all.clamp(LEAST_PIXELS, self.pixels);
        while pixels >= LEAST_PIXELS {
            let widths = (0..=pixels.ilog2())
                .map(|log| 1 << log)
                .filter(|&w| w >= self.least_width && w <= width.max(self.least_width));
            let tiles = widths.filter_map(|w| {
                let tile_height = (pixels / w).min(height);
                self.sized(conv, dtype, pixels / w / tile_height, [tile_height, w])
            });
            let fits = tiles.filter(|tile| tile.shared + OWN <= target.shared_bytes as usize);
            let best = fits.min_by_key(|tile| {
                // Wide rows where there is nothing else to choose by.
                (tile.count * (pixels + self.region(tile)), std::cmp::Reverse(tile.size[1]))
            });
            if best.is_some() {
                return best;
            }
            pixels /= 2;
        }
        None
    }

    /// Pixels of x in shared memory.
    fn region(&self, tile: &Tile) -> usize {
        match self.taps {
            1 => tile.samples * tile.size[0] * tile.size[1],
            _ => tile.samples * tile.region[0] * tile.region[1],
        }
    }

    fn sized(&self, conv: &Conv, dtype: DType, samples: usize, size: [usize; 2]) -> Option<Tile> {
        let region = [0, 1].map(|axis| (size[axis] - 1) * conv.stride[axis] + conv.kernel[axis]);
        let region = [region[0], region[1].next_multiple_of(conv.stride[1])];
        let count = conv.batch.div_ceil(samples)
            * conv.output[0].div_ceil(size[0])
            * conv.output[1].div_ceil(size[1]);
        let mut tile = Tile { samples, size, region, count, shared: 0 };
        let pixels = self.region(&tile);
        // The kernel divides places of a region by its width, and their rows by its height, in 20 bits.
        if self.taps > 1 && (pixels * region[1]).max(samples * region[0] * region[0]) >= 1 << 20 {
            return None;
        }
        let units = |channels: usize| channels / piece(dtype);
        let x = units(self.columns) * (pixels | 1);
        let dy = units(self.rows) * ((samples * size[0] * size[1]) | 1);
        // Sums of dy for the bias take the same place: a thread has those of a word, in float32. So do those that two
        // groups of warps exchange.
        let bias = THREADS * piece(dtype);
        let exchanged = if self.pointwise { self.rows * self.columns * 4 } else { 0 };
        tile.shared = (2 * (x + dy) * PIECE).max(bias).max(exchanged);
        Some(tile)
    }
}

impl Conv2dWgrad {
    fn plan(&self, target: &Target, inputs: &[&TensorType]) -> Option<Plan> {
        Some(self.plan_of(&self.conv(inputs).ok()?, inputs[0].dtype, target))
    }

    fn plan_of(&self, conv: &Conv, dtype: DType, target: &Target) -> Plan {
        Plan::of(conv, self.normalises(), 1 + self.siblings, dtype, target)
    }

    /// Whether x isn't used as it is.
    fn normalises(&self) -> bool {
        self.operands.affine || self.operands.silu
    }

    pub(super) fn gpu_scratch(&self, target: &Target, inputs: &[&TensorType]) -> usize {
        self.plan(target, inputs).map_or(0, |plan| plan.scratch())
    }

    pub(super) fn gpu_tickets(&self, target: &Target, inputs: &[&TensorType]) -> usize {
        self.plan(target, inputs).map_or(0, |plan| plan.blocks() * plan.joins()[1])
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let types: Vec<&TensorType> = args.inputs.iter().map(|view| &view.ty).collect();
        let dtype = types[0].dtype;
        let plan = self.plan_of(&self.conv(&types)?, dtype, args.target);
        let Plan { body, conv, tile, .. } = &plan;
        let name = "conv2d_wgrad";
        let int = |size| dimension(name, size);
        let [weight_rows, c_in, kh, kw] = self.weight(conv);
        let (row_taps, bias_tap) = match self.patched {
            Patched::Gradient { bias_tap, .. } => (kh * kw, bias_tap),
            _ => (1, 0),
        };
        // Patches of dy have taps in their rows, and bodies with taps in neither.
        let columns = if row_taps > 1 || body.taps > 1 { c_in } else { c_in * kh * kw };
        // The kernel counts columns, tiles and pixels in 32 bits.
        int(conv.c_in() * conv.kernel[0] * conv.kernel[1])?;
        int(tile.count * (plan.slices + 1))?;
        let [parts, groups] = plan.joins();
        int(plan.blocks() * groups.max(1))?;
        let operand = |which| self.operands.index(which).map(|index| &args.inputs[index]);
        let (x, x2, affine) = (operand(Operand::X), operand(Operand::X2), operand(Operand::Affine));
        let first = self.operands.weight_index();
        let dy = |sibling: usize| args.inputs.get(first + sibling);
        let affine_stride = row_stride(name, affine, 2 * conv.c_in())?;
        let wide = |view, channels| in_pieces(view, channels, dtype);
        let x_wide = wide(x, conv.channels[0]) && wide(x2, conv.channels[1]);
        let dy_wide = (0..=self.siblings).all(|sibling| wide(dy(sibling), conv.c_out));
        // Columns of pixels of x are sorted by their place modulo the stride.
        let (stride, sub_width) = (conv.stride[1], tile.region[1] / conv.stride[1]);
        let tap = |kx: usize| kx % stride * sub_width + kx / stride;
        let params = Params {
            x: [UNSET; 2],
            affine: UNSET,
            dy: [UNSET; 3],
            dw: [UNSET; 3],
            dbias: [UNSET; 3],
            partials: UNSET,
            tickets: UNSET,
            geometry: Geometry::of(name, conv, self.operands.silu, affine_stride)?,
            sample_pixels: int(plan.sample_pixels)?,
            pixels: int(tile.samples * tile.size[0] * tile.size[1])?,
            samples: int(tile.samples)?,
            tile_width_log: tile.size[1].ilog2() as i32,
            tile_height_log: tile.size[0].ilog2() as i32,
            tiles: int(tile.count)?,
            tiles_y: int(conv.output[0].div_ceil(tile.size[0]))?,
            tiles_x: int(conv.output[1].div_ceil(tile.size[1]))?,
            region: int(body.region(tile))?,
            region_height: int(tile.region[0])?,
            region_width: int(tile.region[1])?,
            sub_width: int(sub_width)?,
            second_tap: int(tap(1))?,
            third_tap: int(tap(2))?,
            row_factor: int((1usize << 20).div_ceil(tile.region[1]))?,
            sample_factor: int((1usize << 20).div_ceil(tile.region[0]))?,
            row_tiles: int(plan.row_tiles)?,
            slices: int(plan.slices)?,
            fan: int(plan.fan())?,
            parts: int(parts)?,
            groups: int(groups)?,
            flags: i32::from(x_wide) | (2 * i32::from(dy_wide)),
            rows: int(weight_rows * row_taps)?,
            columns: int(columns)?,
            row_taps: Divisor::of(name, row_taps)?,
            bias_tap: int(bias_tap)?,
            unused: 0,
        };
        let rows = plan.siblings * plan.row_tiles;
        if rows > 65_535 {
            return Err(Error::operation(name, format!("{} channels are too many", conv.c_out)));
        }
        let grid = [plan.column_tiles as u32, plan.slices as u32, rows as u32];
        let (kernel, general) =
            body.kernel(types[0], x_wide && dy_wide, conv.stride[1], self.normalises());
        let block = [kernel.block_threads(args.target.code_path), 1, 1];
        // Of each convolution its weight's gradient, and its bias's.
        let each = |which: usize| {
            let stride = 1 + usize::from(self.bias);
            (0..MOST_SIBLINGS)
                .map(move |sibling| (which < stride).then_some(stride * sibling + which))
        };
        let outputs = each(0).chain(each(1)).map(|at| at.and_then(|at| args.outputs.get(at)));
        let written: Vec<Option<&View>> = outputs.chain([args.scratch, args.tickets]).collect();
        let read = [x, x2, affine, dy(0), dy(1), dy(2)];
        let shared = int(tile.shared)? as u32;
        let work = kernel.launch(grid, block, shared, &params, &read, &written);
        Ok(vec![work.with_general(general)])
    }
}
