//! How a convolution is cut into blocks of the kernels in kernels/conv2d_tiles.cu and conv2d_narrow.cu.

use crate::device::cpu::conv::Conv;
use crate::device::kernels::{
    CONV2D_ALONE_DGRAD_NHWC_F16, CONV2D_ALONE_FWD_NHWC_F16, CONV2D_ALONE80_FWD_NHWC_F16,
    CONV2D_LARGE_DGRAD_NHWC_F16, CONV2D_LARGE_DGRAD_NHWC_F32, CONV2D_LARGE_FWD_NHWC_F16,
    CONV2D_LARGE_FWD_NHWC_F32, CONV2D_NARROW32_FWD_NHWC_F16, CONV2D_NARROW48_FWD_NHWC_F16,
    CONV2D_SMALL_DGRAD_NHWC_F32, CONV2D_SMALL_FWD_NHWC_F32, CONV2D_SMALL16_DGRAD_NHWC_F16,
    CONV2D_SMALL16_FWD_NHWC_F16, CONV2D_SMALL32_DGRAD_NHWC_F16, CONV2D_SMALL32_FWD_NHWC_F16,
    CONV2D_SMALL64_DGRAD_NHWC_F16, CONV2D_SMALL64_FWD_NHWC_F16, Kernel,
};
use crate::device::{CodePath, DType, Target};
use crate::ops::conv2d::geometry::{PIECE, piece};

/// Most pieces of input channels that a block of large tiles, or of tiles in float32, holds at a time, as
/// the kernels have it.
fn most_pieces(target: &Target, dtype: DType) -> usize {
    // With fewer two large blocks of float16 fit a multiprocessor of Volta.
    if target.code_path == CodePath::Sm70 && dtype == DType::F16 { 4 } else { 8 }
}

/// The same of small tiles in float16, and of those for a block alone.
const MOST_SMALL_PIECES: usize = 4;
const MOST_ALONE_PIECES: usize = 8;
/// The same of blocks of few outputs.
const MOST_NARROW_PIECES: usize = 16;
/// Columns of a block of packed weights.
pub(super) const WEIGHT_BLOCK: usize = 64;
/// Pixels and (most) channels of a small tile, and the fewest channels of one in float16.
const SMALL: usize = 64;
const LEAST_CHANNELS: usize = 16;
/// Height and width of a larger small tile in float16, for a block alone.
const WIDE: [usize; 2] = [5, 16];
/// Bytes of shared memory that a small tile in float16 has beside those of a launch: what pixels get added, and
/// tickets that it drew.
const OWN: usize = 4 * (SMALL + 4);
/// Most parts that the input channels of a small image are split into: the last block to arrive
/// reads the sums of all.
const MOST_SLICES: usize = 8;
/// Channels of parts that a tile's width is chosen by: with more of them tiles should be narrower instead.
const MOST_JOINED: usize = 256;
/// Pixels of a tile that moments are of, or of its halves: 8 × 8, or 64 in a row; but all of a wide tile.
const MOMENT_PIXELS: usize = 64;

/// Pieces that `channels` take: an even number.
pub(super) fn pieces(channels: usize, dtype: DType) -> usize {
    2 * channels.div_ceil(2 * piece(dtype))
}

/// Sizes as the kernel sees them: without taps beyond the first, and stride, the pixels of an image
/// form a row, and those of all images one row where nothing belongs to single images.
pub(super) struct Shape {
    pub conv: Conv,
    /// Pixels of an image, where one row has those of all images.
    pub sample_pixels: usize,
    /// Tiles are parts of rows.
    row: bool,
    /// Channels of the shortcut's sources.
    shortcut: usize,
    /// Convolutions of the same sources.
    siblings: usize,
    /// Columns of a product, of few outputs that have all taps there.
    narrow: Option<usize>,
    /// The block normalises its sources, and keeps the coefficients.
    affine: bool,
    /// Channels of a slice whose moments are taken together; 0 for none.
    moments: usize,
    dtype: DType,
}

/// What of a convolution is not in its sizes.
pub(super) struct Traits {
    pub affine: bool,
    /// Channels of a slice whose moments are taken together; 0 for none.
    pub moments: usize,
    pub shortcut: usize,
    /// 1 for a convolution alone.
    pub siblings: usize,
    /// Columns of a product, of few outputs that have all taps there.
    pub narrow: Option<usize>,
    pub dtype: DType,
}

/// Tiles of pixels, of the width of a power of two, and of output channels.
pub(super) struct Cut {
    /// Forward and transposed.
    pub kernel: &'static Kernel,
    pub pixels: Pixels,
    pub channels: usize,
    /// Tiles of pixels and of channels.
    pub grid: [usize; 2],
    /// Pieces of input channels in shared memory at a time.
    pub chunk: usize,
    /// Of chunks, of the sources and with those of the shortcut, which small tiles in float16 have none of.
    pub chunks: [usize; 2],
    /// Parts that the channels are split into: each has its part of the sources' chunks, and of the shortcut.
    pub slices: usize,
    /// Chunks there is room for at a time.
    pub buffers: usize,
    /// Rows of what a tile reads have their even columns first.
    pub split: bool,
    /// In bytes.
    pub shared: usize,
}

impl Cut {
    /// Tiles of each sample that blocks leave moments of, or of their halves.
    pub fn moment_tiles(&self, conv: &Conv) -> usize {
        match self.pixels.of_tile().is_multiple_of(MOMENT_PIXELS) {
            true => moment_tiles(conv),
            false => self.pixels.tiles[0] * self.pixels.tiles[1],
        }
    }
}

/// Tiles of pixels of a convolution.
#[derive(Clone, Copy)]
pub(super) struct Pixels {
    pub tile: [usize; 2],
    /// What a tile reads.
    pub region: [usize; 2],
    /// Down and across an image, transposed a phase of it.
    pub tiles: [usize; 2],
    /// Tiles in all.
    all: usize,
}

impl Pixels {
    pub fn of_tile(&self) -> usize {
        self.tile[0] * self.tile[1]
    }

    /// Pixels that a tile reads.
    fn reached(&self) -> usize {
        self.region[0] * self.region[1]
    }
}

/// Whether an output pixel depends on the input pixel at its place only.
fn pointwise(conv: &Conv) -> bool {
    conv.kernel == [1, 1]
        && conv.stride == [1, 1]
        && conv.padding == [0, 0]
        && !conv.upsample
        && conv.output == conv.input
}

/// Tiles of 64 pixels of each sample, by which the parts are chosen that readers find moments of.
fn moment_tiles(conv: &Conv) -> usize {
    let [height, width] = conv.output;
    if pointwise(conv) {
        return (height * width).div_ceil(MOMENT_PIXELS);
    }
    height.div_ceil(8) * width.div_ceil(8)
}

/// Parts of each sample that readers find moments of: where its tiles are few, these, or their halves, so that no block
/// has to draw a ticket and merge them.
pub(super) fn moment_parts(conv: &Conv) -> usize {
    match moment_tiles(conv) {
        few @ (1 | 2 | 4 | 8) => 2 * few,
        16 => 16,
        _ => 1,
    }
}

/// Whether these parts are halves of tiles, of which the second one may be empty.
pub(super) fn moment_halves(conv: &Conv) -> bool {
    moment_parts(conv) == 2 * moment_tiles(conv)
}

impl Shape {
    pub fn of(conv: &Conv, traits: &Traits) -> Shape {
        let mut conv = *conv;
        let row = pointwise(&conv);
        let mut sample_pixels = 0;
        if row {
            let pixels = conv.input[0] * conv.input[1];
            conv.input = [1, pixels];
            if !traits.affine && traits.moments == 0 {
                sample_pixels = pixels;
                conv.input = [1, conv.batch * pixels];
                conv.batch = 1;
            }
            conv.output = conv.input;
        }
        Shape {
            conv,
            sample_pixels,
            row,
            shortcut: traits.shortcut,
            siblings: traits.siblings,
            narrow: traits.narrow,
            affine: traits.affine,
            moments: traits.moments,
            dtype: traits.dtype,
        }
    }

    /// Tiles of so many pixels, `width` of them in a row unless all are.
    fn pixels(&self, pixels: usize, width: usize) -> Pixels {
        let conv = &self.conv;
        let width = if self.row { pixels } else { width };
        let tile = [pixels / width, width];
        let steps = if conv.transposed { conv.stride } else { [1, 1] };
        let region = [0, 1].map(|axis| {
            let (kernel, stride) = (conv.kernel[axis], conv.stride[axis]);
            let reach = match conv.transposed {
                true => tile[axis] + (kernel - 1).div_ceil(stride),
                false => (tile[axis] - 1) * stride + kernel,
            };
            if conv.upsample { reach / 2 + 1 } else { reach }
        });
        let tiles = [0, 1].map(|axis| conv.output[axis].div_ceil(steps[axis]).div_ceil(tile[axis]));
        let all = conv.batch * steps[0] * tiles[0] * steps[1] * tiles[1];
        Pixels { tile, region, tiles, all }
    }

    fn columns(&self, channels: usize) -> usize {
        self.siblings * self.conv.c_out.div_ceil(channels)
    }

    /// Pieces of the sources, and the more of these and of the shortcut's.
    fn pieces(&self) -> [usize; 2] {
        let own = pieces(self.conv.c_in(), self.dtype);
        [own, own.max(pieces(self.shortcut, self.dtype))]
    }

    /// Blocks that keep weights of a tap in shared memory, twice: of as many pieces as fit.
    fn cut(&self, kernel: &'static Kernel, size: usize, channels: usize, target: &Target) -> Cut {
        let pixels = self.pixels(size, 8);
        let most_pieces = most_pieces(target, self.dtype);
        // The region in planes of an odd pitch; coefficients of all channels.
        let weights = 2 * channels * most_pieces * PIECE;
        let plane = (pixels.reached() | 1) * PIECE;
        let [own, needed] = self.pieces();
        let affine = if self.affine { 8 * own * piece(self.dtype) } else { 0 };
        let room =
            |blocks| target.most_shared(blocks).saturating_sub(weights + affine) / plane / 2 * 2;
        // Small tiles have few warps: a second block, if that leaves a chunk at all.
        let room = if size == SMALL && room(2) >= 2 { room(2) } else { room(1) };
        let chunk = needed.min(most_pieces).min(room.max(2));
        // Results that are stored one by one pass through the same memory, 16 rows of each warp at a time.
        let warps = kernel.threads as usize / 32;
        let results = warps * 16 * (2 * channels / warps + 4) * 4;
        let chunks = self.chunks(chunk);
        let grid = [pixels.all, self.columns(channels)];
        Cut {
            kernel,
            pixels,
            channels,
            grid,
            chunk,
            chunks,
            // Large tiles occupy the target without.
            slices: if size == SMALL { self.slices(target, grid, chunks[0], 2) } else { 1 },
            buffers: 1,
            split: false,
            shared: (weights + chunk * plane + affine).max(results),
        }
    }

    /// Blocks of small tiles in float16, whose weights stay in registers: of so few channels that half of
    /// the target's multiprocessors have one, of few parts each, as far as slices of moments allow.
    fn small_half(&self, target: &Target) -> Cut {
        let pixels = self.pixels(SMALL, 8);
        let [needed, _] = self.pieces();
        let [chunks, _] = self.chunks(needed.min(MOST_SMALL_PIECES));
        let mut channels = SMALL;
        while channels > LEAST_CHANNELS {
            let half = channels / 2;
            let slices = chunks.min(MOST_SLICES).min(MOST_JOINED / channels);
            let grid = [pixels.all, self.columns(channels)];
            let blocks = self.alone(target, grid, SMALL) * slices;
            let idle = 2 * blocks <= target.multiprocessors as usize && self.moments <= half;
            if self.conv.c_out > half && !idle {
                break;
            }
            channels = half;
        }
        let kernel = match (self.conv.transposed, channels) {
            (false, 64) => &CONV2D_SMALL64_FWD_NHWC_F16,
            (false, 32) => &CONV2D_SMALL32_FWD_NHWC_F16,
            (false, _) => &CONV2D_SMALL16_FWD_NHWC_F16,
            (true, 64) => &CONV2D_SMALL64_DGRAD_NHWC_F16,
            (true, 32) => &CONV2D_SMALL32_DGRAD_NHWC_F16,
            (true, _) => &CONV2D_SMALL16_DGRAD_NHWC_F16,
        };
        let fits = |cut: &Cut| cut.shared + OWN <= target.shared_bytes as usize;
        let alone = match channels == SMALL && needed >= MOST_ALONE_PIECES {
            true => self.cut_alone(target, pixels).filter(fits),
            false => None,
        };
        let most = needed.min(MOST_SMALL_PIECES);
        let small = |chunk, most_buffers| {
            self.small_cut(kernel, pixels, channels, chunk, most_buffers, target)
        };
        alone
            .or_else(|| Some(small(most, 2)).filter(fits))
            .or_else(|| Some(small(most, 1)).filter(fits))
            .unwrap_or_else(|| small(2, 1))
    }

    /// Small tiles of 64 channels, where their blocks have a multiprocessor each: of `pixels`, or, where those tiles are
    /// more than multiprocessors, of 80. None for a target where the batch may not matter.
    fn cut_alone(&self, target: &Target, pixels: Pixels) -> Option<Cut> {
        let (conv, all) = (&self.conv, target.multiprocessors as usize);
        if target.batch_invariant {
            return None;
        }
        let tiles = |pixels: Pixels| pixels.all * self.columns(SMALL);
        let cut =
            |kernel, pixels| self.small_cut(kernel, pixels, SMALL, MOST_ALONE_PIECES, 2, target);
        // Few multiprocessors are left without a block.
        let occupy = |pixels| (3 * all..=4 * all).contains(&(4 * tiles(pixels)));
        // So few tiles are split.
        if 2 * tiles(pixels) <= all || occupy(pixels) {
            return Some(match conv.transposed {
                false => cut(&CONV2D_ALONE_FWD_NHWC_F16, pixels),
                true => cut(&CONV2D_ALONE_DGRAD_NHWC_F16, pixels),
            });
        }
        let wide = self.pixels(WIDE[0] * WIDE[1], WIDE[1]);
        // Of upsampled sources rows that are 16 wide don't lie at a fixed distance. Moments that are left to readers are of
        // 64 pixels.
        let possible = !conv.transposed && !self.row && !conv.upsample;
        let merged = self.moments == 0 || moment_parts(conv) == 1;
        let takes = tiles(pixels) > all && occupy(wide) && possible && merged;
        takes.then(|| cut(&CONV2D_ALONE80_FWD_NHWC_F16, wide))
    }

    /// Blocks of `kernel`, for small tiles in float16: with `chunk` pieces in shared memory, of `most_buffers` chunks at
    /// most.
    fn small_cut(
        &self,
        kernel: &'static Kernel,
        pixels: Pixels,
        channels: usize,
        chunk: usize,
        most_buffers: usize,
        target: &Target,
    ) -> Cut {
        let grid = [pixels.all, self.columns(channels)];
        let (size, warps) = (pixels.of_tile(), kernel.threads as usize / 32);
        let alone = warps == 8;
        // Pieces between two planes, so that threads store without bank conflicts.
        let reached = pixels.reached();
        let plane = PIECE * if alone { reached | 1 } else { (reached + 1) / 4 * 4 + 2 };
        let chunks = self.chunks(chunk);
        let [own, _] = chunks;
        // The kernel doesn't join parts of wide tiles: these occupy the target without.
        let slices = match size {
            SMALL => self.slices(target, grid, own, if alone { 1 } else { 2 }),
            _ => 1,
        };
        // Most chunks of a block, one after another.
        let own = own.div_ceil(slices);
        let buffers = most_buffers.min(own);
        let affine = if self.affine { 8 * own * chunk * piece(self.dtype) } else { 0 };
        let regions = buffers * chunk * plane + affine;
        // Sums that warps exchange take the place of the regions. Where there are eight, which do that twice, they lie in
        // front; then either half of the warps has room for half of the pixels, rounded up to 16.
        let exchanged = 4 * channels * size;
        let again = 4 * channels * size.next_multiple_of(32);
        let results = warps * 16 * (16 + 4) * 4;
        let shared = match alone {
            true => 2 * exchanged + again + regions,
            false => regions.max(exchanged).max(results),
        };
        // Lanes read every second column.
        let conv = &self.conv;
        let split = !conv.transposed && conv.stride[1] == 2 && !conv.upsample;
        Cut { kernel, pixels, channels, grid, chunk, chunks, slices, buffers, split, shared }
    }

    pub fn small(&self, target: &Target) -> Cut {
        if self.dtype == DType::F16 {
            return self.small_half(target);
        }
        let kernel = match self.conv.transposed {
            false => &CONV2D_SMALL_FWD_NHWC_F32,
            true => &CONV2D_SMALL_DGRAD_NHWC_F32,
        };
        self.cut(kernel, SMALL, SMALL, target)
    }

    /// Blocks of kernels/conv2d_narrow.cu: what they hold of sources and weights gives way to the product.
    fn narrow(&self, columns: usize, target: &Target) -> Cut {
        let pixels = self.pixels(SMALL, 8);
        let (kernel, columns) = match columns {
            ..=32 => (&CONV2D_NARROW32_FWD_NHWC_F16, 32),
            _ => (&CONV2D_NARROW48_FWD_NHWC_F16, 48),
        };
        let [needed, _] = self.pieces();
        let reached = pixels.reached();
        let shared = |chunk: usize| {
            let channels = self.chunks(chunk)[0] * chunk * piece(self.dtype);
            let affine = if self.affine { 8 * channels } else { 0 };
            let product = 4 * reached * (columns + 4);
            affine + (chunk * (columns + (reached | 1)) * PIECE).max(product)
        };
        let mut chunk = needed.min(MOST_NARROW_PIECES);
        while chunk > 2 && shared(chunk) + OWN > target.shared_bytes as usize {
            chunk -= 2;
        }
        Cut {
            kernel,
            pixels,
            channels: columns,
            grid: [pixels.all, 1],
            chunk,
            chunks: self.chunks(chunk),
            slices: 1,
            buffers: 1,
            split: false,
            shared: shared(chunk),
        }
    }

    /// Large tiles read less, where there are enough of them for the target, batch-invariant those of one
    /// sample, since orders of sums differ.
    pub fn best(&self, target: &Target) -> Cut {
        if let Some(columns) = self.narrow {
            return self.narrow(columns, target);
        }
        let kernel = match (self.conv.transposed, self.dtype) {
            (false, DType::F16) => &CONV2D_LARGE_FWD_NHWC_F16,
            (true, DType::F16) => &CONV2D_LARGE_DGRAD_NHWC_F16,
            (false, _) => &CONV2D_LARGE_FWD_NHWC_F32,
            (true, _) => &CONV2D_LARGE_DGRAD_NHWC_F32,
        };
        let large = self.cut(kernel, 2 * SMALL, 2 * SMALL, target);
        let enough = self.alone(target, large.grid, large.pixels.of_tile())
            >= target.multiprocessors as usize;
        let pixels = match (target.batch_invariant, self.sample_pixels) {
            (true, own) if own > 0 => own,
            _ => self.conv.output[0] * self.conv.output[1],
        };
        let filled = self.conv.c_out > 64 && pixels >= 128;
        let whole = large.chunk == self.pieces()[1].min(most_pieces(target, self.dtype));
        // Eight warps a multiprocessor.
        let fits = large.shared <= target.most_shared((256 / kernel.threads as usize).max(1));
        if enough && filled && whole && fits {
            return large;
        }
        self.small(target)
    }

    /// Chunks of so many pieces that a block holds one after another: of the sources, and with those of the
    /// shortcut.
    fn chunks(&self, chunk: usize) -> [usize; 2] {
        let chunks = |channels| pieces(channels, self.dtype).div_ceil(chunk);
        let own = chunks(self.conv.c_in());
        [own, own + chunks(self.shortcut)]
    }

    /// Tiles of so many pixels in such a grid that count where the batch may matter: all, or
    /// batch-invariant those of one sample.
    fn alone(&self, target: &Target, [tiles, columns]: [usize; 2], pixels: usize) -> usize {
        match (target.batch_invariant, self.sample_pixels) {
            (false, _) => tiles * columns,
            (true, 0) => tiles / self.conv.batch * columns,
            (true, own) => own.div_ceil(pixels) * columns,
        }
    }

    /// Parts that the sources' chunks of small tiles, and with them the shortcut's, are split into, none without one of the
    /// sources': as many as few tiles need to occupy the target. Tiles that are too many for that, but leave
    /// multiprocessors with one block, are split for two each, if a multiprocessor takes so many blocks, as far as a part
    /// has two chunks: a block alone waits for whatever it does. The fewest parts of which none has more chunks.
    fn slices(&self, target: &Target, grid: [usize; 2], chunks: usize, blocks: usize) -> usize {
        let tiles = self.alone(target, grid, SMALL);
        let parts = |blocks: usize, most: usize| {
            (blocks * target.multiprocessors as usize / tiles).clamp(1, most.clamp(1, MOST_SLICES))
        };
        let slices = match parts(1, chunks) {
            1 if blocks > 1 => parts(blocks, chunks / 2),
            parts => parts,
        };
        chunks.div_ceil(chunks.div_ceil(slices))
    }
}
