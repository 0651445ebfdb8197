//! One update for all samplers, which are tables of coefficients: one row a network evaluation.
//!
//! With x the state, o the network's output, h the history and z fresh noise, row r says
//! ```text
//! x̂₀ = clip(x0_from_x·x + x0_from_output·o)        to ±clip
//! ε  = eps_from_x·x + eps_from_output·o
//! x′ = x·x + x0·x̂₀ + eps·ε + history·h + sigma·z
//! h′ = next_x·x + next_x0·x̂₀ + next_eps·ε + next_history·h
//! ```
//! DDPM (Ho et al. 2020, eq. 7): x̂₀, x, sigma. DDIM (Song et al. 2021, arXiv:2010.02502, eq. 12): x̂₀,
//! ε, sigma. DPM-Solver++ 2M (Lu et al. 2022, arXiv:2211.01095, algorithm 2): h is the last x̂₀
//! (next_x0 = 1). Heun (Karras et al. 2022, arXiv:2206.00364, algorithm 1): h keeps x + half the
//! step along the first slope (next_x, next_x0), from which the second row goes on.
//!
//! States that lose too much in float32 are *pairs*: x and h are each two float32 whose sum is the
//! value, coefficients are too, and a row is computed in float64. A pair keeps 48 bits of float64's 53.

mod cpu;
mod launch;

use super::preconditioned::Preconditioned;
use super::{LaunchArgs, Op, shape, state};
use crate::device::{DType, KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use bytemuck::{Pod, Zeroable};

/// One row of the table, in this order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Pod, Zeroable)]
pub struct Row {
    pub x0_from_x: f32,
    pub x0_from_output: f32,
    pub eps_from_x: f32,
    pub eps_from_output: f32,
    /// Limit of |x̂₀|; infinity where x̂₀ isn't clipped.
    pub clip: f32,
    pub x: f32,
    pub x0: f32,
    pub eps: f32,
    pub history: f32,
    /// Standard deviation of the fresh noise; with 0 none is drawn.
    pub sigma: f32,
    pub next_x: f32,
    pub next_x0: f32,
    pub next_eps: f32,
    pub next_history: f32,
    /// 0.
    pub reserved: [f32; 2],
}

/// Numbers of a row.
pub const COLUMNS: usize = size_of::<Row>() / size_of::<f32>();

/// Where fresh noise comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noise {
    /// There is none; `sigma` must be 0 in all rows.
    None,
    /// Philox with each image's own seed: an input `seeds` u32 `[B, 2]`; step = row; see
    /// [`noise`](super::noise).
    Philox { purpose: u32 },
    /// An input `noise` `[N, B, …, C]`, one for each row, for replayed runs.
    Given,
}

/// In place on `x` `[B, …, C]`, if there is one `history` of the same shape, and the step state, from
/// (`output` `[B, …, C]`, `table` `[N, 16]` of [`Row`]s, if preconditioned `c_skip` and `c_out`, and what
/// `noise` asks for). The row is `ROW` of the state, which then counts on. With `pairs` each row of the
/// table is followed by what float32 left of it (`[N, 32]`), and what is updated is `x`, `x_rest`, then
/// `history` and `history_rest`, and the state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SamplerUpdate {
    pub history: bool,
    pub noise: Noise,
    pub pairs: bool,
    /// Whether `output` is that of the network inside, and the update's is what [`Preconditioned`] makes
    /// of it and `x`.
    pub preconditioned: bool,
}

/// A value as the nearest float32 and what that leaves.
#[inline(always)]
pub fn pair(value: f64) -> [f32; 2] {
    let high = value as f32;
    [high, (value - f64::from(high)) as f32]
}

impl SamplerUpdate {
    /// Columns of its table.
    pub fn columns(&self) -> usize {
        if self.pairs { 2 * COLUMNS } else { COLUMNS }
    }

    /// How many inputs precondition.
    fn factors(&self) -> usize {
        if self.preconditioned { 2 } else { 0 }
    }
}

impl Op for SamplerUpdate {
    fn name(&self) -> &'static str {
        "sampler_update"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let count = 2 + self.factors() + usize::from(self.noise != Noise::None);
        shape::halves(self.name(), &inputs[..2.min(inputs.len())], 2..=2, &[true])?;
        shape::arity(self.name(), inputs, count..=count)?;
        let (x, table) = (inputs[0].with_dtype(DType::F32), inputs[1]);
        let columns = self.columns();
        if table.shape.len() != 2 || table.shape[1] != columns {
            return Err(Error::operation(
                self.name(),
                format!("the table must be [N, {columns}], not {table:?}"),
            ));
        }
        if self.preconditioned {
            Preconditioned.infer(&[&x, inputs[0], inputs[2], inputs[3]])?;
        }
        let noise = inputs.last().expect("there are two at least");
        match self.noise {
            Noise::None => {}
            Noise::Philox { .. } => {
                let wanted = TensorType::u32([x.shape[0], 2]);
                shape::expect(self.name(), "seeds", noise, &wanted)?;
            }
            Noise::Given => {
                let shape: Vec<usize> = table.shape[..1].iter().chain(&x.shape).copied().collect();
                shape::expect(self.name(), "noise", noise, &TensorType::f32(shape))?;
            }
        }
        let tensors = (1 + usize::from(self.history)) * (1 + usize::from(self.pairs));
        let mut outputs = vec![x; tensors];
        outputs.push(state::ty());
        Ok(outputs)
    }

    fn in_place(&self) -> bool {
        true
    }

    fn bytes(&self, inputs: &[&TensorType], outputs: &[&TensorType]) -> u64 {
        // The network's output and given noise are read; x and history are read and written.
        let given = if self.noise == Noise::Given { 1 } else { 0 };
        let passes = given + 2 * (outputs.len() - 1);
        (inputs[0].bytes() + passes * outputs[0].bytes()) as u64
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let drawn = matches!(self.noise, Noise::Philox { .. });
        let images = usize::from(drawn) + usize::from(self.preconditioned);
        if target.is_cpu() { images * inputs[0].elements() } else { 0 }
    }

    fn tickets(&self, target: &Target, _: &[&TensorType], _: &[&TensorType]) -> usize {
        usize::from(!target.is_cpu())
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        shape::follow(inputs, &[true])
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests;
