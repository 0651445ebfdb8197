//! A training step as three programs on a device.
//!
//! `accumulate` takes a micro-batch through the network and back; `update` is the optimizer, two
//! launches over all parameters; `prepare` brings the weights into the target's forms and is the
//! tail of every update. For networks that keep their weights at unit magnitude a step begins with
//! `normalise`, and `prepare` behind it. What changes from step to step lies in the step state.

use super::loss_scale::LossScale;
use super::objective::{Denoising, Objective};
use crate::device::{Device, Precision, Target, TensorType};
use crate::diffusion::NoiseSchedule;
use crate::diffusion::scheduler_config::Prediction;
use crate::error::{Error, Result};
use crate::graph::hoist::{Hoisted, STATE, hoist};
use crate::graph::{Engine, Graph, Layout, Plan, Rate, Region, WHOLE, autodiff, fuse, lower};
use crate::models::{Network, Weights};
use crate::ops::accumulate::Accumulate;
use crate::ops::adamw::AdamW;
use crate::ops::grad_norm::GradNorm;
use crate::ops::state::{self, StepState};
use crate::ops::weight_norm::ForceUnitNorm;

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
    pub optimizer: AdamW,
    /// Averages of the weights beside the optimizer's own, which they replace: at most
    /// [`state::EMA_DECAYS`], each with a decay of its own.
    pub averages: usize,
}

impl Recipe {
    /// How many averages of the weights there are.
    pub fn averaged(&self) -> u8 {
        u8::from(self.optimizer.ema) + self.averages as u8
    }
}

/// The optimizer's part of the state that is set anew before each step.
#[derive(Clone, Copy, Debug)]
pub struct StepSettings {
    /// Optimizer steps begun before this one.
    pub step: u64,
    pub learning_rate: f64,
    /// Of the optimizer's average, or of each of several.
    pub ema_decays: [f64; 4],
}

/// The graphs of a training step.
pub struct Graphs {
    pub prepare: Graph,
    /// For a step's first micro-batch, whose gradients replace what was there.
    pub accumulate: Graph,
    /// For its other micro-batches, whose gradients are added; `None` where there is one only.
    pub accumulate_more: Option<Graph>,
    pub update: Graph,
    /// Forces weights back to unit magnitude before a step; `None` for networks that don't ask for it.
    pub normalise: Option<Graph>,
}

impl Graphs {
    /// With the names of their programs.
    pub fn named(&self) -> Vec<(&'static str, &Graph)> {
        let mut named = vec![("accumulate", &self.accumulate)];
        named.extend(self.accumulate_more.as_ref().map(|graph| ("accumulate_more", graph)));
        named.extend([("update", &self.update), ("prepare", &self.prepare)]);
        named.extend(self.normalise.as_ref().map(|graph| ("normalise", graph)));
        named
    }
}

/// Builds the graphs of a training step.
///
/// # Errors
/// Sizes that the network can't take.
pub fn graphs(objective: &dyn Objective, recipe: &Recipe, target: &Target) -> Result<Graphs> {
    let first = accumulate(objective, recipe, target, Region::Gradients)?;
    let more = match recipe.accumulate {
        1 => None,
        _ => {
            let region = Region::MicroGradients;
            Some(accumulate(objective, recipe, target, region)?.step)
        }
    };
    // The optimizer sees each region as one vector, whose length the layout of the others tells.
    let weights = Layout::new(&[&first.step])?.get(Region::Weights, WHOLE)?.ty;
    let update = update(weights, recipe)?;
    let (prepare, accumulate) = (first.prepare, first.step);
    let normalise = match objective.unit_weights() {
        true => Some(normalise(&accumulate)?),
        false => None,
    };
    Ok(Graphs { prepare, accumulate, accumulate_more: more, update, normalise })
}

/// Forces the rows of every weight of a network to unit magnitude; gains are scalars and stay.
fn normalise(network: &Graph) -> Result<Graph> {
    let mut g = Graph::new();
    for slot in network.slots.iter().filter(|slot| slot.region == Region::Weights) {
        let weight = g.slot(slot.region, &slot.name, slot.ty.clone(), Rate::Step)?;
        let shape = slot.ty.shape.clone();
        if shape.len() > 1 {
            g.scoped(&slot.name, |g| g.push_into(ForceUnitNorm { shape }, &[], &[weight]))?;
        }
    }
    Ok(g)
}

fn accumulate(
    objective: &dyn Objective,
    recipe: &Recipe,
    target: &Target,
    region: Region,
) -> Result<Hoisted> {
    let mut g = Graph::new();
    let loss = objective.loss(&mut g, recipe)?;
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
    if region == Region::MicroGradients {
        let whole = Layout::new(&[&hoisted.step])?.get(Region::Weights, WHOLE)?.ty;
        let step = &mut hoisted.step;
        let micro = step.slot(Region::MicroGradients, WHOLE, whole.clone(), Rate::Step)?;
        let sum = step.slot(Region::Gradients, WHOLE, whole, Rate::Step)?;
        step.push_into(Accumulate::Sum { scale: 1.0 }, &[micro], &[sum])?;
    }
    Ok(hoisted)
}

fn update(weights: TensorType, recipe: &Recipe) -> Result<Graph> {
    let mut g = Graph::new();
    let mut whole = |region| g.slot(region, WHOLE, weights.clone(), Rate::Step);
    let gradients = whole(Region::Gradients)?;
    let mut updated =
        vec![whole(Region::Weights)?, whole(Region::Moment1)?, whole(Region::Moment2)?];
    if recipe.optimizer.ema {
        updated.push(whole(Region::Ema(0))?);
    }
    let averages = (0..recipe.averages as u8)
        .map(|number| whole(Region::Ema(number)))
        .collect::<Result<Vec<_>>>()?;
    let state = g.input(STATE, state::ty())?;
    let norm = g.one(GradNorm, &[gradients])?;
    let norm_slot = g.input("grad_norm", TensorType::f32([2]))?;
    g.bind(norm, norm_slot)?;
    let new = updated[0];
    updated.push(state);
    g.push_into(recipe.optimizer, &[gradients, norm], &updated)?;
    for (average, decay) in averages.into_iter().zip(state::EMA_DECAYS) {
        g.push_into(Accumulate::Average { decay }, &[new, state], &[average])?;
    }
    Ok(g)
}

/// Plans a training step without running it.
///
/// # Errors
/// As [`graphs`], and shapes that the target has no kernel for.
pub fn plan(objective: &dyn Objective, recipe: &Recipe, target: &Target) -> Result<Plan> {
    Plan::new(&graphs(objective, recipe, target)?.named(), target)
}

/// What an optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Updated {
    /// Global norm of the gradients, before clipping and without the loss scale.
    pub grad_norm: f32,
    /// Whether it, and with it all gradients, is finite.
    pub finite: bool,
    /// Whether the step was skipped because a gradient was not finite. In float16 that is part of
    /// finding the loss scale, as long as the scale can still shrink.
    pub skipped: bool,
}

/// A training run's memory on a device: weights, moments, average, and the programs of a step.
pub struct Trainer {
    engine: Engine,
    recipe: Recipe,
    state: StepState,
    /// Whether weights are forced to unit magnitude before each step.
    normalises: bool,
    /// In float16 alone.
    loss_scale: Option<LossScale>,
}

impl Trainer {
    /// Compiles, allocates and loads the weights; the average starts as the weights.
    ///
    /// # Errors
    /// Sizes and devices that can't serve, and weights that are not the network's.
    pub fn new(
        network: &dyn Network,
        weights: &Weights,
        schedule: &NoiseSchedule,
        recipe: Recipe,
        seed: u64,
        device: &dyn Device,
    ) -> Result<Trainer> {
        let objective = Denoising { network, schedule };
        Trainer::with_objective(&objective, weights, recipe, seed, device)
    }

    /// As [`Trainer::new`], for any objective.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    pub fn with_objective(
        objective: &dyn Objective,
        weights: &Weights,
        recipe: Recipe,
        seed: u64,
        device: &dyn Device,
    ) -> Result<Trainer> {
        let graphs = graphs(objective, &recipe, device.target())?;
        let mut engine = Engine::open(&graphs.named(), device)?;
        objective.prepare(&mut engine)?;
        let loss_scale = match device.target().precision {
            Precision::Fp32 => None,
            Precision::Fp16 => Some(LossScale::for_sum_of(objective.summed(&recipe))),
        };
        let (state, normalises) = (StepState::new(seed), objective.unit_weights());
        let mut trainer = Trainer { engine, recipe, state, normalises, loss_scale };
        trainer.write_loss_scale()?;
        trainer.set(Region::Weights, weights)?;
        for number in 0..trainer.recipe.averaged() {
            trainer.set(Region::Ema(number), weights)?;
        }
        trainer.engine.run("prepare")?;
        Ok(trainer)
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// The loss scale; `None` in float32.
    pub fn loss_scale(&self) -> Option<LossScale> {
        self.loss_scale
    }

    /// Sets the loss scale, at the beginning or where another run left off.
    ///
    /// # Errors
    /// In float32, or a factor that is not a finite number of at least 1.
    pub fn set_loss_scale(&mut self, scale: LossScale) -> Result<()> {
        if self.loss_scale.is_none() {
            return Err(Error::operation("train", "has a loss scale in float16 only"));
        }
        if !(scale.factor.is_finite() && scale.factor >= 1.0) {
            let what = format!("a loss scale of {} can't be; at least 1 is needed", scale.factor);
            return Err(Error::operation("train", what));
        }
        self.loss_scale = Some(scale);
        self.write_loss_scale()
    }

    /// The gradient that differentiation starts from, and the word that the optimizer divides by.
    fn write_loss_scale(&mut self) -> Result<()> {
        let factor = self.loss_scale.map_or(1.0, |scale| scale.factor);
        self.state.set_float(state::LOSS_SCALE, factor);
        let seed = factor / self.recipe.accumulate as f32;
        self.engine.write(Region::State, "loss_gradient", &[seed])
    }

    /// Runs one micro-batch, number `index` of this step: `x0` [B, H, W, C], one timestep an image,
    /// and `noise` like `x0` where the recipe says that it is given. Returns its loss.
    ///
    /// # Errors
    /// Sizes that do not fit, or a device that fails.
    pub fn micro_batch(
        &mut self,
        settings: &StepSettings,
        index: usize,
        x0: &[f32],
        timesteps: &[usize],
        noise: Option<&[f32]>,
    ) -> Result<f32> {
        let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
        let mut inputs = vec![("x0", x0), ("timesteps", &timesteps[..])];
        match (self.recipe.noise, noise) {
            (NoiseSource::Given, Some(noise)) => inputs.push(("noise", noise)),
            (NoiseSource::Philox, None) => {}
            _ => return Err(Error::operation("train", "noise is given, or it is not")),
        }
        self.micro_batch_of(settings, index, &inputs)
    }

    /// As [`Trainer::micro_batch`], with the slots that the objective reads.
    ///
    /// # Errors
    /// As [`Trainer::micro_batch`], and names that the objective does not have.
    pub fn micro_batch_of(
        &mut self,
        settings: &StepSettings,
        index: usize,
        inputs: &[(&str, &[f32])],
    ) -> Result<f32> {
        self.state.words[state::STEP] = settings.step as u32;
        self.state.words[state::SAMPLE] = (index * self.recipe.batch) as u32;
        self.engine.write(Region::State, STATE, &self.state.words)?;
        for (name, values) in inputs {
            self.engine.write(Region::State, name, values)?;
        }
        if index == 0 && self.normalises {
            // Weights are kept as the optimizer left them until they are used, as in the reference.
            self.engine.run("normalise")?;
            self.engine.run("prepare")?;
        }
        self.engine.run(if index == 0 { "accumulate" } else { "accumulate_more" })?;
        Ok(self.engine.read::<f32>(Region::State, "loss")?[0])
    }

    /// The optimizer's part of a step, after its micro-batches.
    ///
    /// # Errors
    /// A device that fails.
    pub fn update(&mut self, settings: &StepSettings) -> Result<Updated> {
        let skipped = self.state.words[state::SKIPPED];
        // Skipped steps do not count for the moments.
        let taken = (settings.step + 1).saturating_sub(u64::from(skipped)).max(1) as f64;
        let AdamW { beta1, beta2, .. } = self.recipe.optimizer;
        let mut set = |word, value: f64| self.state.set_float(word, value as f32);
        set(state::LEARNING_RATE, settings.learning_rate);
        for (word, decay) in state::EMA_DECAYS.into_iter().zip(settings.ema_decays) {
            set(word, decay);
        }
        set(state::BIAS1, 1.0 - beta1.powf(taken));
        set(state::BIAS2, 1.0 - beta2.powf(taken));
        self.engine.write(Region::State, STATE, &self.state.words)?;
        self.engine.run("update")?;
        if !self.normalises {
            self.engine.run("prepare")?;
        }
        let words: Vec<u32> = self.engine.read(Region::State, STATE)?;
        self.state.words.copy_from_slice(&words);
        let norm: Vec<f32> = self.engine.read(Region::State, "grad_norm")?;
        let skipped = self.state.words[state::SKIPPED] != skipped;
        let grad_norm = norm[0] / self.state.float(state::LOSS_SCALE);
        let finite = norm[1] == 1.0;
        if self.loss_scale.as_mut().is_some_and(|scale| scale.after(!finite)) {
            self.write_loss_scale()?;
        }
        Ok(Updated { grad_norm, finite, skipped })
    }

    /// Optimizer steps skipped so far.
    pub fn skipped(&self) -> u32 {
        self.state.words[state::SKIPPED]
    }

    /// Reads the weights, or what mirrors them: moments, average.
    ///
    /// # Errors
    /// A region that this recipe does not have.
    pub fn get(&mut self, region: Region) -> Result<Weights> {
        Weights::read(&mut self.engine, region)
    }

    /// Writes the weights, or what mirrors them.
    ///
    /// # Errors
    /// Names or sizes that are not the network's.
    pub fn set(&mut self, region: Region, values: &Weights) -> Result<()> {
        values.write_to(&mut self.engine, region)
    }

    /// Takes up a run where another left off: weights, moments and average, and how many of its
    /// steps were skipped.
    ///
    /// # Errors
    /// Names or sizes that are not the network's.
    pub fn restore(&mut self, parts: &[(Region, Weights)], skipped: u32) -> Result<()> {
        for (region, values) in parts {
            self.set(*region, values)?;
        }
        self.state.words[state::SKIPPED] = skipped;
        self.engine.run("prepare")
    }

    /// The regions that a checkpoint keeps.
    pub fn regions(&self) -> Vec<Region> {
        let mut regions = vec![Region::Weights, Region::Moment1, Region::Moment2];
        regions.extend((0..self.recipe.averaged()).map(Region::Ema));
        regions
    }
}
