//! How a convolution is cut into blocks of the kernels in kernels/conv2d_tiles.cu.

use crate::device::cpu::conv::Conv;
use crate::device::kernels::{
    CONV2D_LARGE_DGRAD_NHWC_F16, CONV2D_LARGE_DGRAD_NHWC_F32, CONV2D_LARGE_FWD_NHWC_F16,
    CONV2D_LARGE_FWD_NHWC_F32, CONV2D_SMALL_DGRAD_NHWC_F16, CONV2D_SMALL_DGRAD_NHWC_F32,
    CONV2D_SMALL_FWD_NHWC_F16, CONV2D_SMALL_FWD_NHWC_F32, Kernel,
};
use crate::device::{CodePath, DType, Target};
use crate::ops::conv2d::geometry::{PIECE, piece};

/// Most pieces of input channels that a block holds at a time, as the kernels have it.
fn most_pieces(target: &Target, dtype: DType) -> usize {
    // With fewer two large blocks of float16 fit a multiprocessor of Volta.
    if target.code_path == CodePath::Sm70 && dtype == DType::F16 { 4 } else { 8 }
}

/// Most taps of a row whose weights a block of small tiles holds at a time, as the kernels have it.
fn most_taps(dtype: DType) -> usize {
    if dtype == DType::F16 { 3 } else { 1 }
}

/// Columns of a block of packed weights.
pub(super) const WEIGHT_BLOCK: usize = 64;
/// Pixels and channels of a small tile.
const SMALL: usize = 64;
/// Most parts that the input channels of a small image are split into: the last block to arrive
/// reads the sums of all.
const MOST_SLICES: usize = 8;
/// Pixels whose moments are taken together: 8 × 8, or 64 in a row.
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
    /// The block normalises its sources, and keeps the coefficients.
    affine: bool,
    dtype: DType,
}

/// What of a convolution is not in its sizes.
pub(super) struct Traits {
    pub affine: bool,
    /// Rows or moments belong to single images.
    pub by_sample: bool,
    pub shortcut: usize,
    /// 1 for a convolution alone.
    pub siblings: usize,
    pub dtype: DType,
}

/// Tiles of pixels, of the width of a power of two, and of output channels.
pub(super) struct Cut {
    /// Forward and transposed.
    pub kernel: &'static Kernel,
    pub pixels: usize,
    pub channels: usize,
    pub tile: [usize; 2],
    pub region: [usize; 2],
    /// Tiles of pixels and of channels.
    pub grid: [usize; 2],
    /// Pieces of input channels in shared memory at a time.
    pub chunk: usize,
    /// Taps of a row whose weights are there at a time.
    pub run: usize,
    /// In bytes.
    pub shared: usize,
}

/// Whether an output pixel depends on the input pixel at its place only.
fn pointwise(conv: &Conv) -> bool {
    conv.kernel == [1, 1]
        && conv.stride == [1, 1]
        && conv.padding == [0, 0]
        && !conv.upsample
        && conv.output == conv.input
}

/// Whether so many blocks have this much shared memory on a multiprocessor, of which the driver takes 1 KiB
/// each.
fn fit(target: &Target, blocks: usize, shared: usize) -> bool {
    blocks * (shared + 1024) <= target.shared_bytes as usize + 1024
}

/// Tiles that the moments of a convolution's output are of, for each sample.
pub(super) fn moment_tiles(conv: &Conv) -> usize {
    let [height, width] = conv.output;
    if pointwise(conv) {
        return (height * width).div_ceil(MOMENT_PIXELS);
    }
    height.div_ceil(8) * width.div_ceil(8)
}

impl Cut {
    /// Blocks, but for a split of the input channels.
    fn tiles(&self) -> usize {
        self.grid[0] * self.grid[1]
    }
}

impl Shape {
    pub fn of(conv: &Conv, traits: &Traits) -> Shape {
        let mut conv = *conv;
        let row = pointwise(&conv);
        let mut sample_pixels = 0;
        if row {
            let pixels = conv.input[0] * conv.input[1];
            conv.input = [1, pixels];
            if !traits.affine && !traits.by_sample {
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
            affine: traits.affine,
            dtype: traits.dtype,
        }
    }

    fn cut(&self, kernel: &'static Kernel, pixels: usize, channels: usize, target: &Target) -> Cut {
        let conv = &self.conv;
        let (most, most_pieces) = (target.shared_bytes as usize, most_pieces(target, self.dtype));
        let width = if self.row { pixels } else { 8 };
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
        let tiles = [0, 1]
            .map(|axis| steps[axis] * conv.output[axis].div_ceil(steps[axis]).div_ceil(tile[axis]));
        // Weights of some taps twice; the region in planes of an odd pitch; coefficients of all channels.
        let weights = |run: usize| 2 * run * channels * most_pieces * PIECE;
        let plane = ((region[0] * region[1]) | 1) * PIECE;
        let own = pieces(conv.c_in(), self.dtype);
        let affine = if self.affine { 8 * own * piece(self.dtype) } else { 0 };
        let needed = own.max(pieces(self.shortcut, self.dtype));
        // As many pieces as fit.
        let room = most.saturating_sub(weights(1) + affine) / plane / 2 * 2;
        let chunk = needed.min(most_pieces).min(room.max(2));
        let columns = self.siblings * conv.c_out.div_ceil(channels);
        let grid = [conv.batch * tiles[0] * tiles[1], columns];
        // In the end 16 rows of each warp's sums pass through the same memory.
        let warps = kernel.threads as usize / 32;
        let results = warps * 16 * (2 * channels / warps + 8) * 4;
        let shared = |run| (weights(run) + chunk * plane + affine).max(results);
        let most_taps = if pixels == SMALL { most_taps(self.dtype) } else { 1 };
        let mut runs = (2..=most_taps.min(conv.kernel[1])).rev();
        let run = runs.find(|&run| fit(target, 2, shared(run))).unwrap_or(1);
        Cut { kernel, pixels, channels, tile, region, grid, chunk, run, shared: shared(run) }
    }

    pub fn small(&self, target: &Target) -> Cut {
        let kernel = match (self.conv.transposed, self.dtype) {
            (false, DType::F16) => &CONV2D_SMALL_FWD_NHWC_F16,
            (true, DType::F16) => &CONV2D_SMALL_DGRAD_NHWC_F16,
            (false, _) => &CONV2D_SMALL_FWD_NHWC_F32,
            (true, _) => &CONV2D_SMALL_DGRAD_NHWC_F32,
        };
        self.cut(kernel, SMALL, SMALL, target)
    }

    /// Large tiles read less, where there are enough of them for the target, batch-invariant those of one
    /// sample. The order of sums is the same in both, that of moments is not.
    pub fn best(&self, target: &Target) -> Cut {
        let kernel = match (self.conv.transposed, self.dtype) {
            (false, DType::F16) => &CONV2D_LARGE_FWD_NHWC_F16,
            (true, DType::F16) => &CONV2D_LARGE_DGRAD_NHWC_F16,
            (false, _) => &CONV2D_LARGE_FWD_NHWC_F32,
            (true, _) => &CONV2D_LARGE_DGRAD_NHWC_F32,
        };
        let small = self.small(target);
        let large = self.cut(kernel, 2 * SMALL, 2 * SMALL, target);
        let samples =
            if target.batch_invariant && self.sample_pixels == 0 { self.conv.batch } else { 1 };
        let enough = large.tiles() / samples >= target.multiprocessors as usize;
        let filled = self.conv.c_out > 64 && self.conv.output[0] * self.conv.output[1] >= 128;
        // Eight warps a multiprocessor.
        let fits = fit(target, (256 / kernel.threads as usize).max(1), large.shared);
        if enough && filled && large.chunk == small.chunk && fits {
            return large;
        }
        small
    }

    /// Pieces of channels that a block holds one after another: of the sources, and with those of the
    /// shortcut.
    pub fn chunks(&self, cut: &Cut) -> [usize; 2] {
        let chunks = |channels| pieces(channels, self.dtype).div_ceil(cut.chunk);
        let own = chunks(self.conv.c_in());
        [own, own + chunks(self.shortcut)]
    }

    /// Parts that the input channels are split into: as many as few tiles need to occupy the target,
    /// those of the batch or, batch-invariant, of one sample, so that its bits do not depend on the
    /// batch. Tiles that are too many for that, but leave multiprocessors with one block, are split for
    /// two each as far as a part has two chunks: a block alone waits at each of its barriers.
    pub fn slices(&self, target: &Target) -> usize {
        let small = self.small(target);
        let tiles = match (target.batch_invariant, self.sample_pixels) {
            (false, _) => self.best(target).tiles(),
            (true, 0) => small.tiles() / self.conv.batch,
            (true, pixels) => pixels.div_ceil(small.pixels) * small.grid[1],
        };
        let [_, chunks] = self.chunks(&small);
        let parts = |blocks: usize, most: usize| {
            (blocks * target.multiprocessors as usize / tiles).clamp(1, most.clamp(1, MOST_SLICES))
        };
        match parts(1, chunks) {
            1 => parts(2, chunks / 2),
            parts => parts,
        }
    }
}
