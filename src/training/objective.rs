//! What a network is trained for: the part of a training step from clean images to the loss.

use super::trainer::{NoiseSource, Recipe};
use crate::data::counter;
use crate::device::TensorType;
use crate::diffusion::scheduler_config::Prediction;
use crate::diffusion::{EdmProcess, NoiseSchedule, Process};
use crate::error::Result;
use crate::graph::hoist::STATE;
use crate::graph::{Build, Engine, Graph, Region, TensorId};
use crate::models::{Edm2Unet, Given, Network, NetworkConfig, NoiseInput, write_tables};
use crate::ops::add_noise::{AddNoise, Shares};
use crate::ops::edm_loss::EdmLoss;
use crate::ops::mse_loss::MseLoss;
use crate::ops::noise::{normal, philox};
use crate::ops::state;
use std::ops::Range;
use std::sync::Arc;

/// Stream of the training noise.
const NOISE: u32 = philox::purpose("training.noise");
/// Stream of the noise levels.
const LEVELS: u32 = philox::purpose("training.levels");
/// Word that tells the timesteps of a run from its other random numbers.
const TIMESTEPS: u64 = 1;
/// And labels that are kept from the network.
const LABELS: u64 = 2;

/// See the module.
pub trait Objective {
    /// Appends network and loss [1]; reads the slots `x0` [B, H, W, C], `noise` of the same shape
    /// where the recipe says that it is given, and others that each kind names.
    ///
    /// # Errors
    /// Sizes that the network can't take.
    fn loss(&self, g: &mut Graph, recipe: &Recipe) -> Result<TensorId>;

    /// Writes what holds for the whole run.
    ///
    /// # Errors
    /// When the engine was made for another objective.
    fn prepare(&self, engine: &mut Engine) -> Result<()>;

    /// What is drawn for the samples of a run, as slots and their values: timesteps or noise levels.
    fn draw(&self, seed: u64, samples: Range<u64>) -> Vec<(&'static str, Vec<f32>)>;

    /// Elements of a sample that the loss adds up; 1 for a mean. Gradients are as much larger, so that
    /// a loss scale begins as much smaller.
    fn summed(&self, recipe: &Recipe) -> usize {
        let _ = recipe;
        1
    }

    /// Whether weights are forced back to unit magnitude at each step ([`Network::unit_weights`]).
    fn unit_weights(&self) -> bool;
}

/// Predicting noise, image or v from a noisy image and its timestep (Ho et al. 2020, eq. 14): also
/// reads the slot `timesteps` [B].
pub struct Denoising<'a> {
    pub network: &'a dyn Network,
    pub schedule: &'a NoiseSchedule,
}

/// EDM2's own loss under a learned uncertainty (Karras et al. 2024, arXiv:2312.02696, eq. 21): also
/// reads the slot `sigma` [B].
pub struct EdmDenoising<'a> {
    pub network: &'a Edm2Unet,
    pub process: EdmProcess,
}

/// Takes away the labels of about `share` of the samples of a run that begin at `first`; guidance by the
/// same model without its label needs one that has seen images without.
pub fn drop_labels(labels: &mut [Option<usize>], share: f64, seed: u64, first: u64) {
    for (sample, label) in (first..).zip(labels) {
        let dropped = counter::Stream::new(&[seed, LABELS, sample]).chance(share as f32);
        *label = label.filter(|_| !dropped);
    }
}

/// What a run trains, and for which process.
pub enum Task {
    Ddpm { network: Box<dyn Network>, schedule: NoiseSchedule },
    Edm { network: Edm2Unet, process: EdmProcess },
}

impl Task {
    /// # Errors
    /// Settings out of range, or a network that is not made for the process.
    pub fn new(network: &NetworkConfig, process: &Process) -> Result<Task> {
        process.validate()?;
        Ok(match process {
            Process::Ddpm(config) => {
                let schedule = NoiseSchedule::new(config)?;
                let network = network.network(NoiseInput::Timesteps(&schedule.steps()))?;
                Task::Ddpm { network, schedule }
            }
            &Process::Edm(process) => {
                Task::Edm { network: Edm2Unet::new(network.of_levels()?.clone())?, process }
            }
        })
    }

    pub fn network(&self) -> &dyn Network {
        match self {
            Task::Ddpm { network, .. } => network.as_ref(),
            Task::Edm { network, .. } => network,
        }
    }

    pub fn objective(&self) -> Box<dyn Objective + '_> {
        match self {
            Task::Ddpm { network, schedule } => {
                Box::new(Denoising { network: network.as_ref(), schedule })
            }
            Task::Edm { network, process } => Box::new(EdmDenoising { network, process: *process }),
        }
    }
}

/// Clean images, and what noise for them comes from: itself where it is given, else the state of the run.
fn images(g: &mut Graph, recipe: &Recipe, channels: usize) -> Result<[TensorId; 2]> {
    let [height, width] = recipe.size;
    let ty = TensorType::f32([recipe.batch, height, width, channels]);
    let x0 = g.input("x0", ty.clone())?;
    let state = g.input(STATE, state::ty())?;
    let source = match recipe.noise {
        NoiseSource::Given => g.input("noise", ty)?,
        NoiseSource::Philox => state,
    };
    Ok([x0, source])
}

/// Purpose of the noise that the network's input is drawn with, if it is.
fn draws(recipe: &Recipe) -> Option<u32> {
    matches!(recipe.noise, NoiseSource::Philox).then_some(NOISE)
}

/// Times and labels of a batch: the latter from the slot `labels` [B, classes].
fn given(g: &mut Graph, times: TensorId, classes: usize, recipe: &Recipe) -> Result<Given> {
    let labels = match classes {
        0 => None,
        _ => Some(g.input("labels", TensorType::f32([recipe.batch, classes]))?),
    };
    Ok(Given { times, labels, training: true })
}

impl Objective for Denoising<'_> {
    fn loss(&self, g: &mut Graph, recipe: &Recipe) -> Result<TensorId> {
        let [height, width] = recipe.size;
        self.network.check_size(height, width)?;
        let [x0, source] = images(g, recipe, self.network.channels()[0])?;
        let timesteps = g.input("timesteps", TensorType::f32([recipe.batch]))?;
        let shares = g.input("shares", TensorType::f32([self.schedule.timesteps(), 2]))?;
        let velocity = recipe.prediction == Prediction::Velocity;
        let draws = draws(recipe);
        let op = Arc::new(AddNoise { shares: Shares::Timesteps { velocity }, draws });
        let noisy = g.push_labelled(op, &[x0, source, shares, timesteps], "add_noise")?;
        let noise = if draws.is_some() { noisy[noisy.len() - 1] } else { source };
        let given = given(g, timesteps, self.network.classes(), recipe)?;
        let output = self.network.build(g, noisy[0], given)?;
        let wanted = match recipe.prediction {
            Prediction::Epsilon => noise,
            Prediction::Sample => x0,
            Prediction::Velocity => noisy[1],
        };
        g.one(MseLoss, &[output, wanted])
    }

    fn prepare(&self, engine: &mut Engine) -> Result<()> {
        write_tables(self.network, engine)?;
        let schedule = self.schedule;
        let mut shares = Vec::with_capacity(2 * schedule.timesteps());
        for t in 0..schedule.timesteps() {
            let (image, noise) = schedule.shares(t)?;
            shares.extend([image, noise]);
        }
        engine.write(Region::State, "shares", &shares)
    }

    fn draw(&self, seed: u64, samples: Range<u64>) -> Vec<(&'static str, Vec<f32>)> {
        let timestep = |sample| {
            let bits = counter::hash(&[seed, TIMESTEPS, sample]);
            counter::below(bits, self.schedule.timesteps() as u64) as f32
        };
        vec![("timesteps", samples.map(timestep).collect())]
    }

    fn unit_weights(&self) -> bool {
        self.network.unit_weights()
    }
}

impl Objective for EdmDenoising<'_> {
    fn loss(&self, g: &mut Graph, recipe: &Recipe) -> Result<TensorId> {
        let channels = self.network.config().img_channels;
        let [x0, source] = images(g, recipe, channels)?;
        let sigma = g.input("sigma", TensorType::f32([recipe.batch]))?;
        let op = AddNoise { shares: Shares::Sigma, draws: draws(recipe) };
        let noisy = g.one(op, &[x0, source, sigma])?;
        let given = given(g, sigma, self.network.classes(), recipe)?;
        let denoised = self.network.denoise(g, noisy, given)?;
        let sigma_data = self.network.config().sigma_data as f32;
        let inputs = [denoised.image, x0, denoised.log_variance, sigma];
        Ok(g.push(Arc::new(EdmLoss { sigma_data }), &inputs)?[0])
    }

    fn prepare(&self, _: &mut Engine) -> Result<()> {
        Ok(())
    }

    fn draw(&self, seed: u64, samples: Range<u64>) -> Vec<(&'static str, Vec<f32>)> {
        let key = [seed as u32, (seed >> 32) as u32];
        let level = |sample: u64| {
            let (step, sample) = ((sample >> 32) as u32, sample as u32);
            let stream = normal::Stream { key, purpose: LEVELS, step, sample };
            self.process.level(f64::from(stream.quad(0)[0]))
        };
        vec![("sigma", samples.map(level).collect())]
    }

    fn summed(&self, recipe: &Recipe) -> usize {
        recipe.size[0] * recipe.size[1] * self.network.config().img_channels
    }

    fn unit_weights(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_dropped_for_their_share_of_samples_wherever_a_batch_begins() {
        let labels = |first, count, share| {
            let mut labels = vec![Some(7); count];
            drop_labels(&mut labels, share, 3, first);
            labels
        };
        let all = labels(100, 4000, 0.25);
        let dropped = all.iter().filter(|label| label.is_none()).count();
        assert!((900..1100).contains(&dropped), "{dropped}");
        assert_eq!(labels(110, 50, 0.25), all[10..60]);
        assert_eq!(labels(100, 4000, 0.0), vec![Some(7); 4000]);
    }
}
