//! What all kernels of convolutions are told in the same words: sizes, and how sources are read.

use crate::device::cpu::conv::Conv;
use crate::device::kernels::dimension;
use crate::device::{DType, View};
use crate::error::Result;

/// Bytes of neighbouring channels that are loaded at once; `Piece` of kernels/common/piece.cuh.
pub(in crate::ops) const PIECE: usize = 16;

/// Channels of a piece.
pub(in crate::ops) fn piece(dtype: DType) -> usize {
    PIECE / dtype.size()
}

/// Whether a source of so many channels can be read a piece at a time.
pub(in crate::ops) fn in_pieces(view: Option<&View>, channels: usize, dtype: DType) -> bool {
    view.is_none_or(|view| view.offset.is_multiple_of(PIECE))
        && channels.is_multiple_of(piece(dtype))
}

/// From one sample's row to the next: 0 where one row of `elements` serves all samples.
///
/// # Errors
/// A row that a kernel can't count.
pub(super) fn row_stride(name: &str, view: Option<&View>, elements: usize) -> Result<i32> {
    match view {
        Some(view) if view.ty.elements() > elements => dimension(name, elements),
        _ => Ok(0),
    }
}

/// The fields of these names, in this order, of `Conv2d` and of `Conv2dWeights`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Geometry {
    batch: i32,
    height: i32,
    width: i32,
    c1: i32,
    c2: i32,
    out_height: i32,
    out_width: i32,
    c_out: i32,
    kh: i32,
    kw: i32,
    stride_h: i32,
    stride_w: i32,
    pad_top: i32,
    pad_left: i32,
    upsample: i32,
    silu: i32,
    affine_stride: i32,
}

impl Geometry {
    /// Of a convolution whose sources go through SiLU, and through the affine of this stride.
    ///
    /// # Errors
    /// Sizes beyond the kernels, which count places of an axis in 32 bits.
    pub fn of(name: &str, conv: &Conv, silu: bool, affine_stride: i32) -> Result<Geometry> {
        let int = |size| dimension(name, size);
        for axis in 0..2 {
            int(
                conv.output[axis].max(2 * conv.input[axis]) * conv.stride[axis] + conv.kernel[axis]
            )?;
        }
        Ok(Geometry {
            batch: int(conv.batch)?,
            height: int(conv.input[0])?,
            width: int(conv.input[1])?,
            c1: int(conv.channels[0])?,
            c2: int(conv.channels[1])?,
            out_height: int(conv.output[0])?,
            out_width: int(conv.output[1])?,
            c_out: int(conv.c_out)?,
            kh: int(conv.kernel[0])?,
            kw: int(conv.kernel[1])?,
            stride_h: int(conv.stride[0])?,
            stride_w: int(conv.stride[1])?,
            pad_top: int(conv.padding[0])?,
            pad_left: int(conv.padding[1])?,
            upsample: i32::from(conv.upsample),
            silu: i32::from(silu),
            affine_stride,
        })
    }
}

/// A number that a kernel divides others below 2^31 by, as a product and a shift (Granlund & Montgomery 1994,
/// theorem 4.2).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Divisor {
    divisor: i32,
    /// 2^(31 + b) / `divisor`, rounded up, where `divisor` is at most 2^b.
    multiplier: u32,
    /// b - 1; a divisor of 1 has none, and is treated apart.
    shift: i32,
}

impl Divisor {
    /// # Errors
    /// A divisor that a kernel can't count.
    pub fn of(name: &str, divisor: usize) -> Result<Divisor> {
        let counted = dimension(name, divisor)?;
        let bits = divisor.next_power_of_two().ilog2();
        let multiplier = (1u64 << (31 + bits)).div_ceil(divisor as u64) as u32;
        Ok(Divisor { divisor: counted, multiplier, shift: bits.saturating_sub(1) as i32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What kernels make of it.
    fn quotient(Divisor { divisor, multiplier, shift }: Divisor, x: u32) -> u32 {
        let high = ((u64::from(x) * u64::from(multiplier)) >> 32) as u32;
        if divisor == 1 { x } else { high >> shift }
    }

    #[test]
    fn divisors_divide_all_that_kernels_count() {
        let mut sizes: Vec<u32> = (1..70).collect();
        for bit in 7..31 {
            sizes.extend([(1 << bit) - 1, 1 << bit, (1 << bit) + 1]);
        }
        sizes.push(i32::MAX as u32);
        for &size in &sizes {
            let divisor = Divisor::of("a test", size as usize).unwrap();
            let most = i32::MAX as u32;
            let multiples =
                sizes.iter().map(|&factor| (u64::from(size) * u64::from(factor)) as u32 & most);
            for x in multiples.chain(sizes.iter().copied()).chain([0, most / size * size, most]) {
                for x in [x.saturating_sub(1), x, (x + 1).min(most)] {
                    assert_eq!(quotient(divisor, x), x / size, "{x} / {size}");
                }
            }
        }
        assert!(Divisor::of("a test", 1 << 31).is_err());
    }
}
