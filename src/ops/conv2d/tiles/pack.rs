//! The image of a weight that blocks copy into shared memory as it stands.

use super::cut::{WEIGHT_BLOCK, piece, pieces};
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::device::kernels::{
    self, CONV2D_PACK_FWD_NHWC_F16, CONV2D_PACK_FWD_NHWC_F32, UNSET, dimension,
};
use crate::device::{DType, KernelWork, TensorType};
use crate::error::{Error, Result};
use crate::ops::{LaunchArgs, Op};

kernels::params! {
    /// `Conv2dPack`.
    struct Params for CONV2D_PACK_FWD_NHWC_F32, CONV2D_PACK_FWD_NHWC_F16 {
        weight: u64, packed: u64, c_out: i32, c_in: i32, taps: i32, transposed: i32,
    }
}

/// Weight \[out, in, kh, kw\] → \[c_out / 64, kh·kw, pieces of c_in, 64, 16 bytes\] of the type in
/// which the convolution computes, an even number of pieces, with zeros beyond the ends. Depends on
/// weights only, so it runs in `prepare`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TilePack {
    pub(super) dims: [usize; 4],
    /// The weight's first dimension is what is read.
    pub(super) transposed: bool,
    pub(super) dtype: DType,
}

impl TilePack {
    /// Channels that are read, and those that come out.
    pub(super) fn channels(&self) -> [usize; 2] {
        let [first, second, ..] = self.dims;
        if self.transposed { [first, second] } else { [second, first] }
    }

    pub(super) fn packed(&self) -> TensorType {
        let [c_in, c_out] = self.channels();
        let taps = self.dims[2] * self.dims[3];
        let elements = c_out.next_multiple_of(WEIGHT_BLOCK)
            * taps
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
        match inputs {
            [weight] if **weight == TensorType::f32(self.dims) => Ok(vec![self.packed()]),
            _ => Err(Error::operation(
                self.name(),
                format!("takes a float32 weight {:?}, not {inputs:?}", self.dims),
            )),
        }
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let int = |size| dimension(self.name(), size);
        let [c_in, c_out] = self.channels();
        let params = Params {
            weight: UNSET,
            packed: UNSET,
            c_out: int(c_out)?,
            c_in: int(c_in)?,
            taps: int(self.dims[2] * self.dims[3])?,
            transposed: i32::from(self.transposed),
        };
        let packed = &args.outputs[0];
        let kernel =
            kernels::of_type(&packed.ty, &CONV2D_PACK_FWD_NHWC_F32, &CONV2D_PACK_FWD_NHWC_F16);
        let (read, written) = ([Some(&args.inputs[0])], [Some(packed)]);
        Ok(vec![kernel.over(packed.ty.elements(), &params, &read, &written)])
    }
}

/// [`Form::lower`](super::super::Form::lower) makes these for GPU targets alone.
impl CpuKernel for TilePack {
    fn run(&self, _: &Cpu, _: Io<'_, '_>) {
        unreachable!("a form for kernels on the CPU")
    }
}
