//! Kernel launches of convolutions; kernels/conv2d.cu says how work is split.

use super::form::{Form, Operand};
use super::grad::Conv2dWgrad;
use crate::device::kernels::{
    self, CONV2D_DGRAD_NHWC_F16, CONV2D_DGRAD_NHWC_F32, CONV2D_FWD_NHWC_F16, CONV2D_FWD_NHWC_F32,
    CONV2D_WGRAD_NHWC_F16, CONV2D_WGRAD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::device::{KernelWork, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::LaunchArgs;
use crate::ops::sum_pixels::sum_pixels;

/// Results of a block along either side.
const TILE: usize = 32;

kernels::params! {
    /// `Conv2d`.
    struct Params for CONV2D_FWD_NHWC_F32, CONV2D_FWD_NHWC_F16, CONV2D_DGRAD_NHWC_F32,
        CONV2D_DGRAD_NHWC_F16
    {
        source: [u64; 2], affine: u64, weight: u64, bias: u64, shift: u64, residual: u64, y: u64,
        batch: i32, height: i32, width: i32, c1: i32, c2: i32,
        out_height: i32, out_width: i32, c_out: i32, kh: i32, kw: i32,
        stride_h: i32, stride_w: i32, pad_top: i32, pad_left: i32,
        upsample: i32, silu: i32, affine_stride: i32, shift_stride: i32,
    }
}

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

/// A convolution or a transposed one, with a canonical weight.
pub(crate) fn convolution(form: &Form, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
    let types: Vec<&TensorType> = args.inputs.iter().map(|view| &view.ty).collect();
    let conv = form.conv(&types)?;
    let int = |size| dimension(form.name, size);
    // The kernel counts the terms of a sum, and places of an axis, in 32 bits.
    int(conv.c_in() * conv.kernel[0] * conv.kernel[1])?;
    for axis in 0..2 {
        int(conv.output[axis].max(2 * conv.input[axis]) * conv.stride[axis] + conv.kernel[axis])?;
    }
    let operand = |which| form.operands.index(which).map(|index| &args.inputs[index]);
    // One row serves all samples, or each has its own.
    let stride = |view: Option<&View>, row: usize| match view {
        Some(view) if view.ty.shape[0] > 1 => int(row),
        _ => Ok(0),
    };
    let (affine, shift) = (operand(Operand::Affine), operand(Operand::Shift));
    let params = Params {
        source: [UNSET; 2],
        affine: UNSET,
        weight: UNSET,
        bias: UNSET,
        shift: UNSET,
        residual: UNSET,
        y: UNSET,
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
        silu: i32::from(form.operands.silu),
        affine_stride: stride(affine, 2 * conv.c_in())?,
        shift_stride: stride(shift, conv.c_out)?,
    };
    let x = &args.inputs[0].ty;
    let kernel = match conv.transposed {
        true => of_type(x, &CONV2D_DGRAD_NHWC_F32, &CONV2D_DGRAD_NHWC_F16),
        false => of_type(x, &CONV2D_FWD_NHWC_F32, &CONV2D_FWD_NHWC_F16),
    };
    let pixels = conv.batch * conv.output[0] * conv.output[1];
    let read = [
        operand(Operand::X),
        operand(Operand::X2),
        affine,
        operand(Operand::Weight),
        operand(Operand::Bias),
        shift,
        operand(Operand::Residual),
    ];
    let grid = tiles(form.name, pixels, conv.c_out)?;
    Ok(vec![kernel.launch(grid, [64, 1, 1], 0, &params, &read, &[Some(&args.outputs[0])])])
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
