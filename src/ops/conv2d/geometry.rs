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
