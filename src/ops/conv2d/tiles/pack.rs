//! The image of a weight that blocks copy into shared memory as it stands, or from which the lanes of small tiles
//! load what they multiply.

use super::cut::{WEIGHT_BLOCK, pieces};
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::device::kernels::{
    self, CONV2D_PACK_FWD_NHWC_F16, CONV2D_PACK_FWD_NHWC_F32, UNSET, dimension,
};
use crate::device::{DType, KernelWork, TensorType, View};
use crate::error::{Error, Result};
use crate::ops::conv2d::geometry::piece;
use crate::ops::{LaunchArgs, Op};

/// Weights that one launch packs (`MOST_PACKS` in kernels/conv2d_pack.cu).
const MOST_PACKS: usize = 92;

/// `Conv2dPack`.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Pack {
    weight: [u64; 2],
    packed: u64,
    c_out: i32,
    c_in: i32,
    taps: i32,
    flags: i32,
}

/// Bits of `flags`.
const TRANSPOSED: i32 = 1;
const PATCHED: i32 = 2;
const NARROW: i32 = 4;

kernels::params! {
    /// `Conv2dPacks`.
    struct Params for CONV2D_PACK_FWD_NHWC_F32, CONV2D_PACK_FWD_NHWC_F16 {
        each: [Pack; 92], first_block: [i32; 92], count: i32, unused: i32,
    }
}

/// Weight \[out, in, kh, kw\] → \[c_out / 64, kh·kw, pieces of c_in, 64, 16 bytes\] of the type in
/// which the convolution computes, an even number of pieces, with zeros beyond the ends. Each 16 of the 64 lie
/// in the order of `ResultLayout` in `kernels/common/conv2d_result.cuh`. Depends on
/// weights only, so it runs in `prepare`. A `narrow` one is that of a 1×1 kernel with c_out·kh·kw outputs.
/// Of a pair of weights what the second reads lies behind what the first does, as if they were one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TilePack {
    pub(super) dims: [usize; 4],
    /// The weight's first dimension is what is read.
    pub(super) transposed: bool,
    pub(in crate::ops::conv2d) pair: bool,
    /// For patches: what is read of a pixel has all taps.
    pub(in crate::ops::conv2d) patched: bool,
    /// For few outputs: all taps of them are columns, a tap's together.
    pub(super) narrow: bool,
    pub(super) dtype: DType,
}

impl TilePack {
    /// Channels that are read, of patches with their zeros, and those that come out.
    pub(super) fn channels(&self) -> [usize; 2] {
        let [c_in, c_out] = self.own_channels();
        let [kh, kw] = [self.dims[2], self.dims[3]];
        match self.patched {
            true => [(c_in * kh * kw).next_multiple_of(piece(self.dtype)), c_out],
            false => [c_in, c_out],
        }
    }

    /// The same, without taps.
    fn own_channels(&self) -> [usize; 2] {
        let [first, second, ..] = self.dims;
        let [c_in, c_out] = if self.transposed { [first, second] } else { [second, first] };
        [c_in * self.weights(), c_out]
    }

    /// The kernel of the convolution that reads it.
    pub(super) fn kernel(&self) -> [usize; 2] {
        if self.patched { [1, 1] } else { [self.dims[2], self.dims[3]] }
    }

    /// Taps that have a part of the image each.
    fn taps(&self) -> usize {
        let [kh, kw] = self.kernel();
        if self.narrow { 1 } else { kh * kw }
    }

    /// Columns of the product with such a part.
    pub(super) fn columns(&self) -> usize {
        let [kh, kw] = self.kernel();
        self.channels()[1] * if self.narrow { kh * kw } else { 1 }
    }

    /// Terms of a sum.
    pub(super) fn terms(&self) -> usize {
        self.own_channels()[0] * self.dims[2] * self.dims[3]
    }

    /// Whether what it packs is read in float16.
    pub fn is_half(&self) -> bool {
        self.dtype == DType::F16
    }

    /// How many weights it takes.
    fn weights(&self) -> usize {
        1 + usize::from(self.pair)
    }

    pub(super) fn packed(&self) -> TensorType {
        let [c_in, _] = self.channels();
        let elements = self.columns().next_multiple_of(WEIGHT_BLOCK)
            * self.taps()
            * pieces(c_in, self.dtype)
            * piece(self.dtype);
        TensorType { shape: vec![elements], dtype: self.dtype }
    }
}

impl Op for TilePack {
    fn name(&self) -> &'static str {
        "conv2d_pack"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let fits = inputs.iter().all(|&weight| *weight == TensorType::f32(self.dims));
        if !fits || inputs.len() != self.weights() {
            return Err(Error::operation(
                self.name(),
                format!("takes {} float32 {:?}, not {inputs:?}", self.weights(), self.dims),
            ));
        }
        Ok(vec![self.packed()])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        launches(std::slice::from_ref(self), args)
    }
}

/// Many [`TilePack`]s, of their inputs in order: one launch for all weights of a network.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TilePacks(pub Vec<TilePack>);

impl Op for TilePacks {
    fn name(&self) -> &'static str {
        "conv2d_pack"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let count: usize = self.0.iter().map(TilePack::weights).sum();
        if inputs.len() != count {
            return Err(Error::operation(
                self.name(),
                format!("takes {count} weights, not {}", inputs.len()),
            ));
        }
        let mut rest = inputs;
        let each = self.0.iter().map(|pack| pack.infer(split_off(&mut rest, pack.weights())));
        Ok(each.collect::<Result<Vec<_>>>()?.concat())
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        launches(&self.0, args)
    }
}

/// Takes the first of what is left.
fn split_off<'a, T>(rest: &mut &'a [T], count: usize) -> &'a [T] {
    let (first, others) = rest.split_at(count);
    *rest = others;
    first
}

fn launches(packs: &[TilePack], args: &LaunchArgs) -> Result<Vec<KernelWork>> {
    let int = |size| dimension("conv2d_pack", size);
    let (mut launches, mut inputs, mut outputs) = (Vec::new(), args.inputs, args.outputs);
    let alike = packs.chunk_by(|one, other| one.dtype == other.dtype);
    for packs in alike.flat_map(|packs| packs.chunks(MOST_PACKS)) {
        let weights = packs.iter().map(|pack| split_off(&mut inputs, pack.weights()));
        let weights: Vec<&[View]> = weights.collect();
        let packed = split_off(&mut outputs, packs.len());
        let mut params: Params = bytemuck::Zeroable::zeroed();
        params.count = int(packs.len())?;
        let kernel =
            kernels::of_type(&packed[0].ty, &CONV2D_PACK_FWD_NHWC_F32, &CONV2D_PACK_FWD_NHWC_F16);
        let mut blocks = 0;
        for (index, pack) in packs.iter().enumerate() {
            let [c_in, c_out] = pack.own_channels();
            params.each[index] = Pack {
                weight: [UNSET; 2],
                packed: UNSET,
                c_out: int(c_out)?,
                c_in: int(c_in)?,
                taps: int(pack.dims[2] * pack.dims[3])?,
                flags: (TRANSPOSED * i32::from(pack.transposed))
                    | (PATCHED * i32::from(pack.patched))
                    | (NARROW * i32::from(pack.narrow)),
            };
            params.first_block[index] = int(blocks)?;
            // A thread has a piece of all taps.
            let items = packed[index].ty.elements() / (pack.taps() * piece(pack.dtype));
            // The kernel counts them in 32 bits.
            int(items)?;
            blocks += items.div_ceil(kernel.threads as usize);
        }
        // Pointers lie in each of the structs, not at the front.
        let at = |index: usize, field: usize| index * size_of::<Pack>() + 8 * field;
        let fields = weights.iter().enumerate().flat_map(|(index, views)| {
            views.iter().enumerate().map(move |(field, view)| (at(index, field), view.clone()))
        });
        let written = packed.iter().enumerate().map(|(index, view)| (at(index, 2), view.clone()));
        launches.push(KernelWork {
            kernel: kernel.name,
            grid: [int(blocks)? as u32, 1, 1],
            block: [kernel.threads, 1, 1],
            shared_bytes: 0,
            params: bytemuck::bytes_of(&params).to_vec(),
            pointers: fields.chain(written).collect(),
            written: packed.len(),
            general: false,
        });
    }
    Ok(launches)
}

/// [`Form::lower`](super::super::Form::lower) makes these for GPU targets alone.
impl CpuKernel for TilePack {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a form for kernels on the CPU")
    }
}

/// As above.
impl CpuKernel for TilePacks {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a form for kernels on the CPU")
    }
}
