//! Kernel launches that move channels: `concat`, `slice_channels`, `pad_channels`.

use super::{Concat, PadChannels, SliceChannels, channels};
use crate::device::kernels::{
    self, MOVE_CHANNELS_FWD_NHWC_F16, MOVE_CHANNELS_FWD_NHWC_F32, UNSET, dimension, of_type,
};
use crate::device::{KernelWork, View};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `MoveChannels` of kernels/elementwise.cu.
    struct Params for MOVE_CHANNELS_FWD_NHWC_F32, MOVE_CHANNELS_FWD_NHWC_F16 {
        x: u64, y: u64, pixels: i64,
        x_channels: i32, y_channels: i32, from: i32, to: i32, width: i32, fill: i32,
        scale: f32, value: f32,
    }
}

/// Which channels go where.
pub(in crate::ops) struct Move {
    pub from: usize,
    pub to: usize,
    pub width: usize,
    /// Factor of what is moved.
    pub scale: f32,
    /// What the other channels of the result become; `None`: they stay.
    pub fill: Option<f32>,
}

/// Moves channels of `x` to `y`.
pub(in crate::ops) fn move_channels(
    name: &str,
    x: &View,
    y: &View,
    plan: Move,
) -> Result<KernelWork> {
    let (x_channels, y_channels) = (channels(&x.ty), channels(&y.ty));
    let pixels = x.ty.elements() / x_channels;
    let int = |size| dimension(name, size);
    let params = Params {
        x: UNSET,
        y: UNSET,
        pixels: pixels as i64,
        x_channels: int(x_channels)?,
        y_channels: int(y_channels)?,
        from: int(plan.from)?,
        to: int(plan.to)?,
        width: int(plan.width)?,
        fill: i32::from(plan.fill.is_some()),
        scale: plan.scale,
        value: plan.fill.unwrap_or(0.0),
    };
    let elements = pixels * if plan.fill.is_some() { y_channels } else { plan.width };
    let kernel = of_type(&x.ty, &MOVE_CHANNELS_FWD_NHWC_F32, &MOVE_CHANNELS_FWD_NHWC_F16);
    Ok(kernel.over(elements, &params, &[Some(x)], &[Some(y)]))
}

impl Concat {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let ([a, b], [y]) = (args.inputs, args.outputs) else { unreachable!("inputs are checked") };
        let widths = [channels(&a.ty), channels(&b.ty)];
        let part = |x, to, index: usize| {
            let (width, scale) = (widths[index], self.scales[index]);
            move_channels("concat", x, y, Move { from: 0, to, width, scale, fill: None })
        };
        Ok(vec![part(a, 0, 0)?, part(b, widths[0], 1)?])
    }
}

impl SliceChannels {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (from, width, scale) = (self.start, self.channels, self.scale);
        let plan = Move { from, to: 0, width, scale, fill: None };
        Ok(vec![move_channels("slice_channels", &args.inputs[0], &args.outputs[0], plan)?])
    }
}

impl PadChannels {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let width = channels(&args.inputs[0].ty);
        let (to, scale, fill) = (self.before, self.scale, Some(self.value));
        let plan = Move { from: 0, to, width, scale, fill };
        Ok(vec![move_channels("pad_channels", &args.inputs[0], &args.outputs[0], plan)?])
    }
}
