//! A training step as three programs on a device.
//!
//! `accumulate` takes a micro-batch through the network and back; `update` is the optimizer, two
//! launches over all parameters; `prepare` brings the weights into the target's forms and is the
//! tail of every update. What changes from step to step lies in the step state.

use crate::device::{Device, Target, TensorType};
use crate::diffusion::NoiseSchedule;
use crate::diffusion::scheduler_config::Prediction;
use crate::error::{Error, Result};
use crate::graph::hoist::{Hoisted, STATE, hoist};
use crate::graph::{
    Engine, Graph, Layout, Plan, Rate, Region, WHOLE, autodiff, compile, fuse, lower,
};
use crate::models::{Network, Weights};
use crate::ops::add_noise::AddNoise;
use crate::ops::mse_loss::MseLoss;
use crate::ops::noise::{Normal, philox};
use crate::ops::optimizer::{Accumulate, Adam, GradNorm};
use crate::ops::state::{self, StepState};
use std::sync::Arc;

/// Stream of the training noise.
const NOISE: u32 = philox::purpose("training.noise");

/// Where the noise of a training step comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseSource {
    /// Philox, from the run's seed, the step and the sample's number.
    Philox,
    /// Written by the host, for replayed runs.
    Given,
}

/// What a training step is compiled for.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// Images of one micro-batch.
    pub batch: usize,
    /// Micro-batches of one optimizer step.
    pub accumulate: usize,
    /// Height and width.
    pub size: [usize; 2],
    pub prediction: Prediction,
    pub noise: NoiseSource,
    pub adam: Adam,
}

/// The optimizer's part of the state that is set anew before each step.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings {
    /// Optimizer steps begun before this one.
    pub step: u64,
    pub learning_rate: f64,
    pub ema_decay: f64,
}

/// The graphs of a training step.
pub struct Graphs {
    pub prepare: Graph,
    pub accumulate: Graph,
    pub update: Graph,
}

/// Builds the graphs of a training step.
///
/// # Errors
/// Sizes that the network can't take.
pub fn graphs(
    network: &dyn Network,
    schedule_steps: usize,
    recipe: &Recipe,
    target: &Target,
) -> Result<Graphs> {
    let Hoisted { prepare, step, .. } = accumulate(network, schedule_steps, recipe, target)?;
    // The optimizer sees each region as one vector, whose length the layout of the others tells.
    let weights = Layout::new(&[&step])?.get(Region::Weights, WHOLE)?.ty;
    let update = update(weights, recipe)?;
    Ok(Graphs { prepare, accumulate: step, update })
}

fn accumulate(
    network: &dyn Network,
    schedule_steps: usize,
    recipe: &Recipe,
    target: &Target,
) -> Result<Hoisted> {
    let [height, width] = recipe.size;
    network.check_size(height, width)?;
    let [c_in, _] = network.channels();
    let mut g = Graph::new();
    let image = TensorType::f32([recipe.batch, height, width, c_in]);
    let x0 = g.input("x0", image.clone())?;
    let timesteps = g.input("timesteps", TensorType::f32([recipe.batch]))?;
    let shares = g.input("shares", TensorType::f32([schedule_steps, 2]))?;
    let state = g.input(STATE, state::ty())?;
    let noise = match recipe.noise {
        NoiseSource::Given => g.input("noise", image)?,
        NoiseSource::Philox => g.one(Normal { purpose: NOISE }, &[x0, state])?,
    };
    let velocity = recipe.prediction == Prediction::Velocity;
    let op = Arc::new(AddNoise { velocity });
    let noisy = g.push_labelled(op, &[x0, noise, shares, timesteps], "add_noise")?;
    let output = network.build(&mut g, noisy[0], timesteps)?;
    let wanted = match recipe.prediction {
        Prediction::Epsilon => noise,
        Prediction::Sample => x0,
        Prediction::Velocity => noisy[1],
    };
    let loss = g.one(MseLoss, &[output, wanted])?;
    let loss_slot = g.input("loss", TensorType::f32([1]))?;
    g.bind(loss, loss_slot)?;

    let upstream = g.input("loss_gradient", TensorType::f32([1]))?;
    let names: Vec<(String, TensorType)> = g
        .slots
        .iter()
        .filter(|slot| slot.region == Region::Weights)
        .map(|slot| (slot.name.clone(), slot.ty.clone()))
        .collect();
    let weights = names
        .iter()
        .map(|(name, ty)| g.slot(Region::Weights, name, ty.clone(), Rate::Weights))
        .collect::<Result<Vec<_>>>()?;
    let gradients = autodiff::gradients(&mut g, &[(loss, upstream)], &weights)?;
    // One micro-batch writes its gradients where the optimizer reads them; several are added up.
    let region =
        if recipe.accumulate == 1 { Region::Gradients } else { Region::MicroGradients };
    for ((name, ty), gradient) in names.iter().zip(gradients) {
        let slot = g.slot(region, name, ty.clone(), Rate::Step)?;
        if let Some(gradient) = gradient {
            g.bind(gradient, slot)?;
        }
    }
    fuse::fuse(&mut g)?;
    lower::lower(&mut g, target)?;
    g.prune(&[]);
    let mut hoisted = hoist(&g, 1)?;
    if recipe.accumulate > 1 {
        let whole = Layout::new(&[&hoisted.step])?.get(Region::Weights, WHOLE)?.ty;
        let step = &mut hoisted.step;
        let micro = step.slot(Region::MicroGradients, WHOLE, whole.clone(), Rate::Step)?;
        let sum = step.slot(Region::Gradients, WHOLE, whole, Rate::Step)?;
        step.push_into(Accumulate, &[micro], &[sum])?;
    }
    Ok(hoisted)
}

fn update(weights: TensorType, recipe: &Recipe) -> Result<Graph> {
    let mut g = Graph::new();
    let mut whole = |region| g.slot(region, WHOLE, weights.clone(), Rate::Step);
    let gradients = whole(Region::Gradients)?;
    let mut updated = vec![
        whole(Region::Weights)?,
        whole(Region::Moment1)?,
        whole(Region::Moment2)?,
    ];
    if recipe.adam.ema {
        updated.push(whole(Region::Ema)?);
    }
    let state = g.input(STATE, state::ty())?;
    let norm = g.one(GradNorm, &[gradients, state])?;
    let norm_slot = g.input("grad_norm", TensorType::f32([2]))?;
    g.bind(norm, norm_slot)?;
    updated.push(state);
    g.push_into(recipe.adam.clone(), &[gradients, norm], &updated)?;
    Ok(g)
}

/// Plans a training step without running it.
///
/// # Errors
/// As [`graphs`], and shapes that the target has no kernel for.
pub fn plan(
    network: &dyn Network,
    schedule_steps: usize,
    recipe: &Recipe,
    target: &Target,
) -> Result<Plan> {
    let Graphs { prepare, accumulate, update } =
        graphs(network, schedule_steps, recipe, target)?;
    Plan::new(
        &[("accumulate", &accumulate), ("update", &update), ("prepare", &prepare)],
        target,
    )
}
