//! Kernel launches of the weight's gradient; kernels/conv2d.cu says how work is split.

use super::grad::Conv2dWgrad;
use crate::device::KernelWork;
use crate::device::kernels::{
    self, CONV2D_WGRAD_NHWC_F16, CONV2D_WGRAD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::sum_pixels::sum_pixels;

/// Results of a block along either side.
const TILE: usize = 32;

kernels::params! {
    /// `Conv2dWeights`.
    struct WeightParams for CONV2D_WGRAD_NHWC_F32, CONV2D_WGRAD_NHWC_F16 {
        x: u64, dy: u64, dw: u64,
        batch: i32, height: i32, width: i32, c_in: i32,
        out_height: i32, out_width: i32, c_out: i32, kh: i32, kw: i32,
        stride_h: i32, stride_w: i32, pad_top: i32, pad_left: i32, unused: i32,
    }
}

/// Tiles of a result of `rows` × `columns`, as a grid.
fn tiles(name: &str, rows: usize, columns: usize) -> Result<[u32; 3]> {
    let (x, y) = (rows.div_ceil(TILE), columns.div_ceil(TILE));
    if x > i32::MAX as usize || y > 65_535 {
        let what = format!("a product of {rows} × {columns} is beyond the kernel's limits");
        return Err(Error::operation(name, what));
    }
    Ok([x as u32, y as u32, 1])
}

impl Conv2dWgrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([x, dy], [dw, dbias @ ..]) = (args.inputs, args.outputs) else {
            unreachable!("inputs are checked")
        };
        let name = "conv2d_wgrad";
        let conv = self.conv(&[&x.ty, &dy.ty])?;
        let int = |size| dimension(name, size);
        for axis in 0..2 {
            int(conv.output[axis] * conv.stride[axis] + conv.kernel[axis])?;
        }
        let params = WeightParams {
            x: UNSET,
            dy: UNSET,
            dw: UNSET,
            batch: int(conv.batch)?,
            height: int(conv.input[0])?,
            width: int(conv.input[1])?,
            c_in: int(conv.c_in())?,
            out_height: int(conv.output[0])?,
            out_width: int(conv.output[1])?,
            c_out: int(conv.c_out)?,
            kh: int(conv.kernel[0])?,
            kw: int(conv.kernel[1])?,
            stride_h: int(conv.stride[0])?,
            stride_w: int(conv.stride[1])?,
            pad_top: int(conv.padding[0])?,
            pad_left: int(conv.padding[1])?,
            unused: 0,
        };
        let grid = tiles(name, conv.c_out, conv.c_in() * conv.kernel[0] * conv.kernel[1])?;
        let kernel = of_type(&x.ty, &CONV2D_WGRAD_NHWC_F32, &CONV2D_WGRAD_NHWC_F16);
        let mut launches =
            vec![kernel.launch(grid, [64, 1, 1], 0, &params, &[Some(x), Some(dy)], &[Some(dw)])];
        if let [dbias] = dbias {
            launches.push(sum_pixels(dy, dbias, true)?);
        }
        Ok(launches)
    }
}
