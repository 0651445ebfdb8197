//! Group normalisation (Wu & He 2018, arXiv:1803.08494, eq. 1–2) over one activation or over two
//! read as if concatenated, with an optional SiLU behind it.
//!
//! Shapes: `x` `[B, …, C₁]`, optional `x2` `[B, …, C₂]`, C = C₁ + C₂; `gamma` and `beta` both
//! `[C]`, `[1, C]` or, where they differ from sample to sample, `[B, C]`.
//! μ and σ² are mean and (biased) variance over a group's C / groups channels and all pixels of one
//! sample; rstd = 1/√(σ² + eps); y = (x − μ)·rstd·gamma + beta.

mod backward;
mod cpu;
mod launch;
mod moments;

use super::shape::{self, Extent, Slices};
use super::{Build, GradArgs, LaunchArgs, Op, TensorId};
use crate::device::{KernelWork, Target, TensorType};
use crate::error::{Error, Result};
use launch::stats_room;
use std::sync::Arc;

/// (`x`, \[`x2`\], `gamma`, `beta`) → `y` `[B, …, C]`, `stats` `[B, groups, 2]` (mean, rstd).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    pub groups: usize,
    pub eps: f32,
    /// Whether y goes through SiLU.
    pub silu: bool,
}

/// [`GroupNorm`] where the convolutions that made the sources left moments of them (as
/// [`TiledConv2d`](super::conv2d::TiledConv2d) says), which follow beta, one of each source. On targets
/// with kernels alone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormOfMoments(pub GroupNorm);

/// (`dy`, `x`, \[`x2`\], `gamma`, `beta`, `stats`, residuals of the shape of `dy`) → `dx`, \[`dx2`\],
/// `dgamma`, `dbeta`, and with `rows` the sums of `dx` over pixels `[B, C]`.
///
/// With z = (x − μ)·rstd·gamma + beta, dz = dy (through SiLU: dy·SiLU′(z)), x̂ = (x − μ)·rstd and M
/// elements in a group: dx = rstd·(gamma·dz − (Σ gamma·dz + x̂·Σ gamma·dz·x̂)/M), sums over the
/// group; dgamma = Σ dz·x̂ and dbeta = Σ dz over pixels, and over samples where gamma is shared. The
/// residuals are what else flows back to x, and are added to dx.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormGrad {
    pub groups: usize,
    pub silu: bool,
    /// How many residuals there are.
    pub residuals: usize,
    /// With one source and no residual only.
    pub rows: bool,
}

/// Most residuals of a [`GroupNormGrad`].
pub const MOST_RESIDUALS: usize = 2;

impl GroupNormGrad {
    /// The gradient alone.
    pub fn new(groups: usize, silu: bool) -> GroupNormGrad {
        GroupNormGrad { groups, silu, residuals: 0, rows: false }
    }

    /// dy, (sources, gamma, beta), stats and residuals.
    fn split<'a, T>(&self, inputs: &'a [T]) -> (&'a T, &'a [T], &'a T, &'a [T]) {
        let (inputs, residuals) = inputs.split_at(inputs.len() - self.residuals);
        let [dy, inputs @ .., stats] = inputs else { unreachable!("inputs are checked") };
        (dy, inputs, stats, residuals)
    }
}

/// The same normalisation left to the consumer: (`x`, \[`x2`\], `gamma`, `beta`) → `affine`
/// `[B, 2, C]`, so that y = x·affine\[b, 0, c\] + affine\[b, 1, c\].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormAffine {
    pub groups: usize,
    pub eps: f32,
}

/// What the inputs of a normalisation amount to.
struct Normalised {
    extent: Extent,
    /// The type of `y`.
    y: TensorType,
}

/// Checks (`x`, \[`x2`\], `gamma`, `beta`).
fn normalised(name: &str, inputs: &[&TensorType], groups: usize) -> Result<Normalised> {
    shape::halves(name, inputs, 3..=4, &vec![true; inputs.len().saturating_sub(2)])?;
    let (sources, affine) = inputs.split_at(inputs.len() - 2);
    let refuse = |what: String| Err(Error::operation(name, what));
    let mut y = sources[0].clone();
    if y.shape.len() < 2 {
        return refuse(format!("x must be [B, …, C], not {y:?}"));
    }
    let last = y.shape.len() - 1;
    if let [x, x2] = sources {
        if x2.shape.len() != x.shape.len() || x2.shape[..last] != x.shape[..last] {
            return refuse(format!("x and x2 must agree but for the channels: {x:?} and {x2:?}"));
        }
        y.shape[last] += x2.shape[last];
    }
    let extent = Extent::of(&y.shape);
    let channels = extent.channels;
    if groups == 0 || !channels.is_multiple_of(groups) {
        return refuse(format!("{channels} channels can't be cut into {groups} groups"));
    }
    for ty in affine {
        let known = match ty.shape[..] {
            [c] => c == channels,
            [b, c] => c == channels && (b == 1 || b == extent.batch),
            _ => false,
        };
        if !known || affine[0].shape != ty.shape {
            let batch = extent.batch;
            return refuse(format!(
                "gamma and beta must both be [{channels}], [1, {channels}] or [{batch}, {channels}], not {ty:?}"
            ));
        }
    }
    Ok(Normalised { extent, y })
}

/// Elements of working memory for the moments of every slice and the coefficients of every channel.
fn forward_scratch(inputs: &[&TensorType]) -> usize {
    let channels = inputs[..inputs.len() - 2].iter().map(|ty| Extent::of(&ty.shape).channels).sum();
    let Extent { batch, pixels, .. } = Extent::of(&inputs[0].shape);
    batch * channels * (2 * Slices::new(pixels, channels).count + 3)
}

impl Op for GroupNorm {
    fn name(&self) -> &'static str {
        if self.silu { "group_norm_silu" } else { "group_norm" }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let Normalised { extent, y } = normalised(self.name(), inputs, self.groups)?;
        Ok(vec![y, TensorType::f32([extent.batch, self.groups, 2])])
    }

    fn grad(&self, graph: &mut dyn Build, args: &GradArgs) -> Result<Vec<Option<TensorId>>> {
        let Some(dy) = args.output_grads[0] else {
            return Ok(vec![None; args.inputs.len()]);
        };
        let op = GroupNormGrad::new(self.groups, self.silu);
        let mut inputs = vec![dy];
        inputs.extend(args.inputs);
        inputs.push(args.outputs[1]);
        let grads = graph.push(Arc::new(op), &inputs)?;
        Ok(grads.into_iter().zip(args.needs).map(|(id, &needed)| needed.then_some(id)).collect())
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { forward_scratch(inputs) } else { stats_room(inputs, self.groups)[0] }
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { 0 } else { stats_room(inputs, self.groups)[1] }
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        // The sources, neither gamma nor beta.
        vec![true; inputs.len().saturating_sub(2)]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args, args.inputs, &[])
    }
}

impl Op for GroupNormOfMoments {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let (name, groups) = (self.name(), self.0.groups);
        let refuse = |what: String| Err(Error::operation(name, what));
        let sources = inputs.len() / 2 - 1;
        if !matches!(inputs.len(), 4 | 6) {
            return refuse(format!("takes 4 or 6 inputs, not {}", inputs.len()));
        }
        let (plain, moments) = inputs.split_at(sources + 2);
        let Normalised { extent, .. } = normalised(name, plain, groups)?;
        let mut offset = 0;
        for (source, moments) in plain.iter().zip(moments) {
            let channels = Extent::of(&source.shape).channels;
            let width = extent.channels / groups;
            if !shape::are_moments(moments, extent.batch, channels, offset, width) {
                return refuse(format!(
                    "moments are {moments:?}; they must be [{}, parts, 3, slices] of {channels} \
                     channels, in slices of a power of two that divide groups of {width}",
                    extent.batch
                ));
            }
            offset += channels;
        }
        self.0.infer(plain)
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        let (plain, moments) = args.inputs.split_at(args.inputs.len() / 2 + 1);
        self.0.launches(args, plain, moments)
    }
}

impl Op for GroupNormGrad {
    fn name(&self) -> &'static str {
        if self.silu { "group_norm_silu_grad" } else { "group_norm_grad" }
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let count = 5 + self.residuals..=6 + self.residuals;
        shape::halves(self.name(), inputs, count, &self.half(inputs))?;
        let (&dy, inputs, &stats, residuals) = self.split(inputs);
        let Normalised { extent, y } = normalised(self.name(), inputs, self.groups)?;
        shape::expect(self.name(), "dy", dy, &y)?;
        let wanted = TensorType::f32([extent.batch, self.groups, 2]);
        shape::expect(self.name(), "stats", stats, &wanted)?;
        for residual in residuals {
            shape::expect(self.name(), "a residual", residual, &y)?;
        }
        let refuse = |what: &str| Err(Error::operation(self.name(), what));
        if self.residuals > MOST_RESIDUALS {
            return refuse(&format!("takes {MOST_RESIDUALS} residuals, not {}", self.residuals));
        }
        if self.rows && (inputs.len() > 3 || self.residuals > 0) {
            return refuse("sums dx over pixels where there is one source and no residual");
        }
        let mut outputs: Vec<TensorType> = inputs.iter().map(|&ty| ty.clone()).collect();
        if self.rows {
            outputs.push(TensorType::f32([extent.batch, extent.channels]));
        }
        Ok(outputs)
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let Extent { batch, pixels, channels } = Extent::of(&inputs[0].shape);
        if !target.is_cpu() {
            return self.kernel_scratch(inputs);
        }
        batch * channels * (2 * Slices::new(pixels, channels).count + 2 + backward::COEFFICIENTS)
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { 0 } else { self.kernel_tickets(inputs) }
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        // dy, the sources and the residuals.
        let affine = inputs.len().saturating_sub(3 + self.residuals);
        (0..inputs.len()).map(|index| index < affine || index >= affine + 3).collect()
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

impl Op for GroupNormAffine {
    fn name(&self) -> &'static str {
        "group_norm_affine"
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<Vec<TensorType>> {
        let Normalised { extent, .. } = normalised(self.name(), inputs, self.groups)?;
        Ok(vec![TensorType::f32([extent.batch, 2, extent.channels])])
    }

    fn scratch(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        let stats = 2 * Extent::of(&inputs[0].shape).batch * self.groups;
        let own = if target.is_cpu() {
            forward_scratch(inputs)
        } else {
            stats_room(inputs, self.groups)[0]
        };
        stats + own
    }

    fn tickets(&self, target: &Target, inputs: &[&TensorType], _: &[&TensorType]) -> usize {
        if target.is_cpu() { 0 } else { stats_room(inputs, self.groups)[1] }
    }

    fn half(&self, inputs: &[&TensorType]) -> Vec<bool> {
        vec![true; inputs.len().saturating_sub(2)]
    }

    fn launch(&self, args: &LaunchArgs) -> Result<Vec<KernelWork>> {
        self.launches(args)
    }
}

#[cfg(test)]
mod tests;
