//! Convolutions to few channels, all of whose taps are columns of one product (kernels/conv2d_narrow.cu).

use super::{Extras, TiledConv2d};
use crate::device::TensorType;

/// Most columns of the kernels.
const MOST_COLUMNS: usize = 48;
/// Fewest that they make, and what any kernel makes at least of each tap.
const LEAST_COLUMNS: usize = 32;
const TENSOR_COLUMNS: usize = 16;
/// Most source pixels of a block, which makes 8 × 8 results: its warps have 16 each.
const MOST_REACHED: usize = 128;
const TILE: usize = 8;
/// Most input channels: coefficients of all lie in shared memory beside a product of 20 KiB, on any target.
const MOST_CHANNELS: usize = 4096;

impl TiledConv2d {
    /// The same with all taps as columns; `None` where these are too many or not worth it, it doesn't read
    /// neighbours of each pixel, or it makes more than its result and what its normalisation came to.
    pub fn narrow(&self, inputs: &[&TensorType]) -> Option<TiledConv2d> {
        let conv = self.conv(inputs).ok()?;
        let Extras { siblings: 0, shortcut: None, moments: 0, .. } = self.extras else {
            return None;
        };
        let free = self.pack.is_half() && !self.pack.pair && !self.pack.narrow;
        let each = conv.stride == [1, 1] && !conv.transposed && !conv.upsample;
        let [kh, kw] = conv.kernel;
        let taps = kh.checked_mul(kw)?;
        let columns = taps.checked_mul(conv.c_out)?;
        // Regions overlap, so that half as many pixels again are multiplied.
        let worth = columns <= MOST_COLUMNS
            && 3 * columns.next_multiple_of(TENSOR_COLUMNS).max(LEAST_COLUMNS)
                <= taps * TENSOR_COLUMNS;
        let fits =
            conv.c_in() <= MOST_CHANNELS && (TILE + kh - 1) * (TILE + kw - 1) <= MOST_REACHED;
        if !(free && each && worth && fits) {
            return None;
        }
        let mut conv = self.clone();
        conv.pack.narrow = true;
        Some(conv)
    }
}
