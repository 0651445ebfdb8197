//! Layers as networks name them: each declares its parameters under the current scope, in
//! PyTorch's names and layouts, and appends its nodes. Plain on purpose; fusing is the graph's
//! work.

use crate::error::Result;
use crate::graph::hoist::STATE;
use crate::graph::{Build, Graph, TensorId};
use crate::ops::conv2d::{Conv2d, Operands};
use crate::ops::dropout::Dropout;
use crate::ops::group_norm::GroupNorm;
use crate::ops::linear;
use crate::ops::noise::philox;
use crate::ops::state;

/// Zero padding around a map, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
    pub right: usize,
}

impl Padding {
    /// The same on all sides.
    pub const fn all(size: usize) -> Padding {
        Padding { top: size, bottom: size, left: size, right: size }
    }

    /// One row below and one column on the right: how the DDPM's downsampling pads.
    pub const RIGHT_BOTTOM: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
}

/// What all blocks of a network are told.
#[derive(Clone, Copy, Debug)]
pub struct Conditions {
    /// Of time and label: [B, D], or [1, D] for all samples alike.
    pub embedding: TensorId,
    /// Whether activations are dropped.
    pub training: bool,
}

/// Drops a share of `x`'s elements in training; else `x` itself.
pub fn dropout(g: &mut Graph, x: TensorId, share: f64, told: Conditions) -> Result<TensorId> {
    if share == 0.0 || !told.training {
        return Ok(x);
    }
    let state = g.input(STATE, state::ty())?;
    let purpose = philox::purpose(&g.path("dropout"));
    g.one(Dropout { share, purpose }, &[x, state])
}

/// Convolution of [B, H, W, C] to `channels`, square `kernel`, with bias; parameters `weight`
/// [channels, C, kernel, kernel] and `bias`.
pub fn conv2d(
    g: &mut Graph,
    name: &str,
    x: TensorId,
    channels: usize,
    kernel: usize,
    stride: usize,
    padding: Padding,
) -> Result<TensorId> {
    g.module(name, |g| {
        let c_in = *g.ty(x).shape.last().unwrap_or(&0);
        let weight = g.parameter("weight", &[channels, c_in, kernel, kernel])?;
        let bias = g.parameter("bias", &[channels])?;
        let Padding { top, bottom, left, right } = padding;
        let op = Conv2d {
            stride: [stride, stride],
            padding: [top, bottom, left, right],
            operands: Operands { bias: true, ..Operands::default() },
        };
        g.one(op, &[x, weight, bias])
    })
}

/// Convolution that keeps height and width: odd `kernel`, stride 1.
pub fn conv2d_same(
    g: &mut Graph,
    name: &str,
    x: TensorId,
    channels: usize,
    kernel: usize,
) -> Result<TensorId> {
    conv2d(g, name, x, channels, kernel, 1, Padding::all(kernel / 2))
}

/// Linear layer over the last dimension, with bias; parameters `weight` [features, C], `bias`.
pub fn linear(g: &mut Graph, name: &str, x: TensorId, features: usize) -> Result<TensorId> {
    g.module(name, |g| {
        let c_in = *g.ty(x).shape.last().unwrap_or(&0);
        let weight = g.parameter("weight", &[features, c_in])?;
        let bias = g.parameter("bias", &[features])?;
        linear::linear(g, x, weight, Some(bias))
    })
}

/// Parameters `weight` and `bias` of a normalisation over `channels`.
pub fn norm_parameters(g: &mut Graph, name: &str, channels: usize) -> Result<[TensorId; 2]> {
    g.scoped(name, |g| Ok([g.parameter("weight", &[channels])?, g.parameter("bias", &[channels])?]))
}

/// Group normalisation of [B, …, C]; parameters `weight` and `bias` [C].
pub fn group_norm(
    g: &mut Graph,
    name: &str,
    x: TensorId,
    groups: usize,
    eps: f64,
) -> Result<TensorId> {
    let channels = *g.ty(x).shape.last().unwrap_or(&0);
    let [weight, bias] = norm_parameters(g, name, channels)?;
    g.module(name, |g| {
        g.one(GroupNorm { groups, eps: eps as f32, silu: false }, &[x, weight, bias])
    })
}
