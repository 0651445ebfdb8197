//! Convolutions in float16 on tensor cores; kernels/common/conv2d_tile.cuh says how work is split.

use super::form::{Form, Operand, flops, output_type};
use crate::device::cpu::conv::Conv;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::device::kernels::{
    self, CONV2D_LARGE_DGRAD_NHWC_F16, CONV2D_LARGE_FWD_NHWC_F16, CONV2D_PACK_FWD_NHWC_F16,
    CONV2D_SMALL_DGRAD_NHWC_F16, CONV2D_SMALL_FWD_NHWC_F16, Kernel, UNSET, dimension,
};
use crate::device::{DType, KernelWork, Target, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::{LaunchArgs, Lowered, Op};
use std::sync::Arc;

/// Input channels that a block holds at a time, and the width of a block of packed weights.
const CHUNK: usize = 64;
const WEIGHT_BLOCK: usize = 64;
/// Most parts that the input channels of a small image are split into: the last block to arrive
/// reads the sums of all.
const MOST_SLICES: usize = 8;

kernels::params! {
    /// `Conv2dPack`.
    struct PackParams for CONV2D_PACK_FWD_NHWC_F16 {
        weight: u64, packed: u64, c_out: i32, c_in: i32, taps: i32, transposed: i32,
    }
}

kernels::params! {
    /// `Conv2dHalf`.
    struct Params for CONV2D_SMALL_FWD_NHWC_F16, CONV2D_SMALL_DGRAD_NHWC_F16,
        CONV2D_LARGE_FWD_NHWC_F16, CONV2D_LARGE_DGRAD_NHWC_F16
    {
        x: [u64; 2], affine: u64, weight: u64, bias: u64, shift: u64, residual: u64,
        y: u64, partials: u64, tickets: u64,
        batch: i32, height: i32, width: i32, c1: i32, c2: i32,
        out_height: i32, out_width: i32, c_out: i32, kh: i32, kw: i32,
        stride_h: i32, stride_w: i32, pad_top: i32, pad_left: i32,
        upsample: i32, silu: i32, affine_stride: i32, shift_stride: i32,
        tile_width_log: i32, region_height: i32, region_width: i32, sample_pixels: i32,
        slices: i32, flags: i32,
    }
}

/// Weight \[out, in, kh, kw\] in float16 → the image \[c_out / 64, kh·kw, c_in / 8, 64, 8\] that
/// blocks copy into shared memory as it stands, c_in rounded up to 16, with zeros beyond the ends.
/// Depends on weights only, so it runs in `prepare`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HalfPack {
    dims: [usize; 4],
    /// The weight's first dimension is what is read.
    transposed: bool,
}

impl HalfPack {
    fn channels(&self) -> (usize, usize) {
        let [first, second, ..] = self.dims;
        if self.transposed { (first, second) } else { (second, first) }
    }

    fn elements(&self) -> usize {
        let (c_in, c_out) = self.channels();
        let taps = self.dims[2] * self.dims[3];
        c_out.next_multiple_of(WEIGHT_BLOCK) * taps * c_in.next_multiple_of(16)
    }
}

/// How an image is cut: tiles of pixels, of the width of a power of two, and of output channels.
struct Cut {
    kernels: [&'static Kernel; 2],
    pixels: usize,
    channels: usize,
    tile: [usize; 2],
    region: [usize; 2],
    /// Tiles of pixels and of channels.
    grid: [usize; 2],
    shared: usize,
}

/// Sizes as the kernel sees them: without taps beyond the first, and stride, all pixels form a row.
struct Shape {
    conv: Conv,
    sample_pixels: usize,
}

impl Shape {
    fn of(conv: &Conv) -> Shape {
        let mut conv = *conv;
        let plain = conv.kernel == [1, 1] && conv.stride == [1, 1] && conv.padding == [0, 0];
        if !plain || conv.upsample || conv.output != conv.input {
            return Shape { conv, sample_pixels: 0 };
        }
        let sample_pixels = conv.input[0] * conv.input[1];
        conv.input = [1, conv.batch * sample_pixels];
        conv.output = conv.input;
        conv.batch = 1;
        Shape { conv, sample_pixels }
    }

    /// Tiles of `pixels` × `channels`; the kernels are for forward and transposed.
    fn cut(&self, kernels: [&'static Kernel; 2], pixels: usize, channels: usize) -> Cut {
        let conv = &self.conv;
        let width = if self.sample_pixels > 0 { pixels } else { 8 };
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
        // Two taps of weights, and the region in planes of an odd pitch; 16 bytes an octet.
        let octets = CHUNK.min(conv.c_in().next_multiple_of(16)) / 8;
        let shared = 2 * channels * CHUNK * 2 + octets * ((region[0] * region[1]) | 1) * 16;
        let grid = [conv.batch * tiles[0] * tiles[1], conv.c_out.div_ceil(channels)];
        Cut { kernels, pixels, channels, tile, region, grid, shared }
    }

    fn small(&self) -> Cut {
        let kernels = [&CONV2D_SMALL_FWD_NHWC_F16, &CONV2D_SMALL_DGRAD_NHWC_F16];
        self.cut(kernels, 64, 64)
    }

    /// Large tiles read less, where there are enough of them for the target. The order of sums is the
    /// same in both.
    fn best(&self, target: &Target) -> Cut {
        let kernels = [&CONV2D_LARGE_FWD_NHWC_F16, &CONV2D_LARGE_DGRAD_NHWC_F16];
        let large = self.cut(kernels, 128, 128);
        let enough = large.grid[0] * large.grid[1] >= target.multiprocessors as usize;
        if enough && self.conv.c_out > 64 && large.shared <= target.shared_bytes as usize {
            return large;
        }
        self.small()
    }

    /// Parts that the input channels are split into: as many as one sample of few tiles needs to
    /// occupy the target, whatever the batch, so that a sample's bits do not depend on it.
    fn slices(&self, target: &Target) -> usize {
        let tiles = match self.sample_pixels {
            0 => self.small().grid[0] / self.conv.batch,
            pixels => pixels.div_ceil(64),
        };
        let tiles = tiles * self.conv.c_out.div_ceil(64);
        let chunks = self.conv.c_in().div_ceil(CHUNK);
        (target.multiprocessors as usize / tiles).clamp(1, chunks.min(MOST_SLICES))
    }
}

/// A convolution in float16 whose weight is packed; otherwise the inputs of the operation it comes
/// from.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TensorConv2d {
    form: Form,
    pack: HalfPack,
}

impl Form {
    /// Float16 on a GPU goes to tensor cores where a tile's sources fit into shared memory. What
    /// does not fit stays as it stands, a launch of the general kernel by its own name.
    pub(super) fn lower_half(&self, target: &Target, inputs: &[&TensorType]) -> Option<Lowered> {
        let dims = self.dims(inputs).ok()?;
        let conv = self.describe(inputs, dims).ok()?;
        let fits = Shape::of(&conv).small().shared <= target.shared_bytes as usize;
        if inputs[0].dtype != DType::F16 || !fits {
            return None;
        }
        let pack = HalfPack { dims, transposed: conv.transposed };
        Some(Lowered {
            op: Arc::new(TensorConv2d { form: *self, pack: pack.clone() }),
            prepare: vec![(self.operands.weight_index(), Arc::new(pack))],
        })
    }
}

impl Op for HalfPack {
    fn name(&self) -> &'static str {
        "conv2d_pack"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        match inputs {
            [weight] if **weight == TensorType::f16(self.dims) => {
                Ok(vec![TensorType::f16([self.elements()])])
            }
            _ => Err(Error::operation(
                self.name(),
                format!("takes a float16 weight {:?}, not {inputs:?}", self.dims),
            )),
        }
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let int = |size| dimension(self.name(), size);
        let (c_in, c_out) = self.channels();
        let params = PackParams {
            weight: UNSET,
            packed: UNSET,
            c_out: int(c_out)?,
            c_in: int(c_in)?,
            taps: int(self.dims[2] * self.dims[3])?,
            transposed: i32::from(self.transposed),
        };
        let (read, written) = ([Some(&args.inputs[0])], [Some(&args.outputs[0])]);
        Ok(vec![CONV2D_PACK_FWD_NHWC_F16.over(self.elements(), &params, &read, &written)])
    }
}

impl TensorConv2d {
    fn conv(&self, inputs: &[&TensorType]) -> Result<Conv> {
        let conv = self.form.describe(inputs, self.pack.dims)?;
        let weight = inputs[self.form.operands.weight_index()];
        if *weight != TensorType::f16([self.pack.elements()]) {
            return Err(Error::operation(
                self.form.name,
                format!("the packed weight {weight:?} doesn't belong to inputs {inputs:?}"),
            ));
        }
        Ok(conv)
    }

    /// Tickets and elements of partial sums, both 0 where channels are not split.
    fn parts(&self, target: &Target, inputs: &[&TensorType]) -> [usize; 2] {
        let Ok(conv) = self.conv(inputs) else { return [0; 2] };
        let shape = Shape::of(&conv);
        let (cut, slices) = (shape.best(target), shape.slices(target));
        if slices == 1 {
            return [0; 2];
        }
        let places = cut.grid[0] * cut.grid[1];
        [places, places * slices * cut.pixels * cut.channels]
    }
}

impl Op for TensorConv2d {
    fn name(&self) -> &'static str {
        self.form.name
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        Ok(vec![output_type(&self.conv(inputs)?, DType::F16)])
    }

    fn flops(&self, inputs: &[&TensorType], _: &[&TensorType]) -> u64 {
        self.conv(inputs).map_or(0, |conv| flops(&conv))
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        self.parts(target, inputs)[1]
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        self.parts(target, inputs)[0]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let types: Vec<&TensorType> = args.inputs.iter().map(|view| &view.ty).collect();
        let original = self.conv(&types)?;
        let shape = Shape::of(&original);
        let (cut, slices) = (shape.best(args.target), shape.slices(args.target));
        let conv = &shape.conv;
        let name = self.form.name;
        let int = |size| dimension(name, size);
        // The kernel counts places of an axis, and the octets of a region, in 32 bits.
        for axis in 0..2 {
            int(
                conv.output[axis].max(2 * conv.input[axis]) * conv.stride[axis] + conv.kernel[axis]
            )?;
        }
        int(conv.kernel[0] * conv.kernel[1])?;
        if cut.grid[1] > 65_535 {
            return Err(Error::operation(name, format!("{} channels are too many", conv.c_out)));
        }
        let operand = |which| self.form.operands.index(which).map(|index| &args.inputs[index]);
        let stride = |view: Option<&View>, row: usize| match view {
            Some(view) if view.ty.shape[0] > 1 => int(row),
            _ => Ok(0),
        };
        let [x, x2] = [Operand::X, Operand::X2].map(operand);
        let (affine, shift) = (operand(Operand::Affine), operand(Operand::Shift));
        let (residual, y) = (operand(Operand::Residual), &args.outputs[0]);
        let octets = |(view, channels): (Option<&View>, usize)| {
            view.is_none_or(|view| view.offset % 16 == 0) && channels % 8 == 0
        };
        let wide = [x, x2].into_iter().zip(conv.channels).all(octets);
        let aligned = |view: Option<&View>| view.is_none_or(|view| view.offset % 4 == 0);
        let pairs = conv.c_out.is_multiple_of(2) && aligned(residual) && aligned(Some(y));
        let params = Params {
            x: [UNSET; 2],
            affine: UNSET,
            weight: UNSET,
            bias: UNSET,
            shift: UNSET,
            residual: UNSET,
            y: UNSET,
            partials: UNSET,
            tickets: UNSET,
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
            silu: i32::from(self.form.operands.silu),
            affine_stride: stride(affine, 2 * conv.c_in())?,
            shift_stride: stride(shift, conv.c_out)?,
            tile_width_log: cut.tile[1].trailing_zeros() as i32,
            region_height: int(cut.region[0])?,
            region_width: int(cut.region[1])?,
            sample_pixels: int(shape.sample_pixels)?,
            slices: int(slices)?,
            flags: i32::from(wide) | (2 * i32::from(pairs)),
        };
        let weight = operand(Operand::Weight);
        let read = [x, x2, affine, weight, operand(Operand::Bias), shift, residual];
        let kernel = cut.kernels[usize::from(conv.transposed)];
        let grid = [int(cut.grid[0])? as u32, cut.grid[1] as u32, slices as u32];
        let block = [kernel.threads, 1, 1];
        let written = [Some(y), args.scratch, args.tickets];
        Ok(vec![kernel.launch(grid, block, cut.shared as u32, &params, &read, &written)])
    }
}

/// [`Form::lower`] makes these for GPU targets alone.
impl CpuKernel for HalfPack {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a float16 form on the CPU")
    }
}

/// As above.
impl CpuKernel for TensorConv2d {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a float16 form on the CPU")
    }
}
