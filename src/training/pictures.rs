//! Pictures of what a model has learned: a grid of samples, and how they came out of the noise.

use super::config::Config;
use crate::device::Device;
use crate::diffusion::denoiser::{Denoiser, Shape};
use crate::diffusion::seeds::labels;
use crate::error::Result;
use crate::formats::image_grid::{
    evenly_spaced, write_grid, write_process_gif, write_process_grid,
};
use crate::formats::picture::Pictures;
use crate::models::{Network, Weights};
use std::path::Path;

/// States of the process that the grid and the animation show.
const GRID_STATES: usize = 10;
const GIF_STATES: usize = 40;
/// Images whose process is shown.
const PROCESS_IMAGES: usize = 8;
/// Milliseconds a frame.
const FRAME: u32 = 80;

/// Samples with the run's settings, and what is kept of them.
pub struct Gallery {
    denoiser: Denoiser,
    seeds: Vec<u64>,
    labels: Vec<Option<usize>>,
    /// [N, H, W, C]
    samples: Vec<f32>,
    /// States of the first images at some steps of the process, the noise first.
    states: Vec<Vec<f32>>,
}

impl Gallery {
    /// # Errors
    /// Sizes and devices that can't serve.
    pub fn new(
        config: &Config,
        network: &dyn Network,
        weights: &Weights,
        device: &dyn Device,
    ) -> Result<Gallery> {
        let table = config.sampler_table()?;
        let sampling = &config.sampling;
        let seeds = config.seeds()?;
        let shape = Shape {
            batch: sampling.batch.min(seeds.len()).max(1),
            size: [config.data.size.height, config.data.size.width],
        };
        let denoiser = Denoiser::new(network, weights, &table, shape, device)?;
        let labels = labels(&sampling.labels, network.classes(), seeds.len())?;
        Ok(Gallery { denoiser, seeds, labels, samples: Vec::new(), states: Vec::new() })
    }

    /// Samples one image for each seed; `observe` is told how many steps of all are done.
    ///
    /// # Errors
    /// Samples that are not finite, a device that fails, and what `observe` returns.
    pub fn sample(&mut self, observe: &mut dyn FnMut(usize, usize) -> Result<()>) -> Result<()> {
        let [batch, height, width, channels] = self.denoiser.shape();
        let size = height * width * channels;
        let steps = self.denoiser.steps();
        let shown = evenly_spaced(steps + 1, GIF_STATES);
        let kept = PROCESS_IMAGES.min(batch).min(self.seeds.len()) * size;
        let of = self.seeds.len().div_ceil(batch) * steps;
        self.samples.clear();
        self.states.clear();
        for (number, seeds) in self.seeds.chunks(batch).enumerate() {
            let mut padded = seeds.to_vec();
            // A short last batch is filled up; an image does not depend on its neighbours.
            padded.resize(batch, 0);
            let states = &mut self.states;
            let mut labels = self.labels[number * batch..][..seeds.len()].to_vec();
            labels.resize(batch, labels.last().copied().flatten());
            self.denoiser.set_labels(&labels)?;
            self.denoiser.start(&padded)?;
            if number == 0 {
                states.push(self.denoiser.read()?[..kept].to_vec());
            }
            let mut samples = self.denoiser.finish(&mut |denoiser, done| {
                if number == 0 && shown.contains(&done) {
                    states.push(denoiser.read()?[..kept].to_vec());
                }
                observe(number * steps + done, of)
            })?;
            samples.truncate(seeds.len() * size);
            self.samples.extend(samples);
        }
        Ok(())
    }

    /// Writes all samples as one grid.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write_grid(&self, path: &Path) -> Result<()> {
        let [_, height, width, channels] = self.denoiser.shape();
        let count = self.seeds.len();
        write_grid(path, &Pictures::from_values(&self.samples, count, height, width, channels)?)
    }

    /// Writes the reverse process of the first images: a row an image from noise to picture, and
    /// the same as an animation.
    ///
    /// # Errors
    /// When a file can't be written.
    pub fn write_process(&self, grid: &Path, gif: &Path) -> Result<()> {
        let [_, height, width, channels] = self.denoiser.shape();
        let count =
            self.states.first().map_or(0, |state| state.len() / (height * width * channels));
        let states = self
            .states
            .iter()
            .map(|state| Pictures::from_values(state, count, height, width, channels))
            .collect::<Result<Vec<_>>>()?;
        let few: Vec<Pictures> = evenly_spaced(states.len(), GRID_STATES)
            .into_iter()
            .map(|index| states[index].clone())
            .collect();
        write_process_grid(grid, &few)?;
        write_process_gif(gif, &states, FRAME)
    }
}
