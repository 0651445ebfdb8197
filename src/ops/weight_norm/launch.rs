//! Kernel launches of the normalisation of weights: one block a row.

use super::{ForceUnitNorm, WeightNorm, WeightNormGrad};
use crate::device::kernels::{
    self, UNSET, WEIGHT_NORM_DGRAD_OIHW_F32, WEIGHT_NORM_FWD_OIHW_F32, dimension,
};
use crate::device::{KernelWork, TensorType};
use crate::error::Result;
use crate::ops::LaunchArgs;

kernels::params! {
    /// `WeightNorm` of kernels/magnitude.cu.
    struct Forward for WEIGHT_NORM_FWD_OIHW_F32 {
        w: u64, learned: u64, y: u64, rows: i32, length: i32, parts: i32, gain: f32,
    }
}

kernels::params! {
    /// `WeightNormBackward` of kernels/magnitude.cu.
    struct Backward for WEIGHT_NORM_DGRAD_OIHW_F32 {
        dy: u64, w: u64, learned: u64, dw: u64, shares: u64,
        rows: i32, length: i32, parts: i32, gain: f32,
    }
}

/// Rows, and elements of one.
fn rows(name: &str, w: &TensorType) -> Result<[i32; 2]> {
    let rows = w.shape[0];
    Ok([dimension(name, rows)?, dimension(name, w.elements() / rows)?])
}

const BLOCK: [u32; 3] = [256, 1, 1];

impl WeightNorm {
    fn params(&self, name: &str, w: &TensorType) -> Result<Forward> {
        let [rows, length] = rows(name, w)?;
        let (parts, gain) = (dimension(name, self.parts)?, self.gain);
        Ok(Forward { w: UNSET, learned: UNSET, y: UNSET, rows, length, parts, gain })
    }

    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (w, y) = (&args.inputs[0], &args.outputs[0]);
        let params = self.params("weight_norm", &w.ty)?;
        let grid = [params.rows as u32, 1, 1];
        let read = [Some(w), args.inputs.get(1)];
        Ok(vec![WEIGHT_NORM_FWD_OIHW_F32.launch(grid, BLOCK, 0, &params, &read, &[Some(y)])])
    }
}

impl ForceUnitNorm {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let w = &args.outputs[0];
        let params = WeightNorm::PLAIN.params("force_unit_norm", &w.ty)?;
        let params = Forward { gain: (params.length as f32).sqrt(), ..params };
        let grid = [params.rows as u32, 1, 1];
        let written = [Some(w)];
        Ok(vec![WEIGHT_NORM_FWD_OIHW_F32.launch(grid, BLOCK, 0, &params, &[None; 2], &written)])
    }
}

impl WeightNormGrad {
    pub(super) fn launches(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (dy, w) = (&args.inputs[0], &args.inputs[1]);
        let [rows, length] = rows("weight_norm_grad", &w.ty)?;
        let params = Backward {
            dy: UNSET,
            w: UNSET,
            learned: UNSET,
            dw: UNSET,
            shares: UNSET,
            rows,
            length,
            parts: dimension("weight_norm_grad", self.0.parts)?,
            gain: self.0.gain,
        };
        let read = [Some(dy), Some(w), args.inputs.get(2)];
        let written = [Some(&args.outputs[0]), args.outputs.get(1)];
        let grid = [rows as u32, 1, 1];
        Ok(vec![WEIGHT_NORM_DGRAD_OIHW_F32.launch(grid, BLOCK, 0, &params, &read, &written)])
    }
}
