//! The figure by which runs are compared: how well the noise of held-out images is predicted.

use super::objective::Task;
use crate::data::dataset::Dataset;
use crate::device::{Device, TensorType};
use crate::diffusion::NoiseSchedule;
use crate::error::{Error, Result};
use crate::formats::layout::nhwc_to_nchw;
use crate::formats::tensors::{Tensor, Tensors};
use crate::graph::{Engine, Graph, Plan, Rate, Region, fuse, hoist, lower};
use crate::models::{Given, Network, Weights, one_hot, write_tables};
use crate::ops::noise::{normal::Stream, philox};
use std::path::Path;

/// Images that a loss is computed on.
pub const COUNT: usize = 64;

/// Images of one evaluation of the network.
const BATCH: usize = 16;

const NOISE: u32 = philox::purpose("held_out.noise");

/// Fixed images, timesteps and noise.
#[derive(Clone, Debug)]
pub struct HeldOut {
    /// [COUNT, H, W, C] in −1…1.
    x0: Vec<f32>,
    /// Of the same shape.
    noise: Vec<f32>,
    levels: Vec<Level>,
    labels: Vec<Option<usize>>,
    /// Name of what the network is told, in the file.
    told: &'static str,
    /// Height, width, channels.
    shape: [usize; 3],
}

/// How noisy a sample is, and what its error is.
#[derive(Clone, Copy, Debug)]
struct Level {
    /// What the network is told: a timestep, or σ.
    time: f32,
    /// Shares of image and noise in the sample.
    image: f32,
    noise: f32,
    /// Shares of sample, prediction, image and noise in the error.
    error: [f32; 4],
}

/// Noise levels reach so many standard deviations of training's to either side.
const SPREAD: f64 = 2.0;

impl Level {
    /// At timestep `t`: the error of the predicted noise, whatever the network predicts.
    fn of_timestep(schedule: &NoiseSchedule, t: usize) -> Result<Level> {
        let (image, noise) = schedule.shares(t)?;
        let (from_x, from_output) = schedule.noise_shares(t)?;
        let error = [from_x, from_output, 0.0, -1.0];
        Ok(Level { time: t as f32, image, noise, error })
    }

    /// At the level `sigma`: the error of the predicted image under the weight of EDM's loss (Karras
    /// et al. 2022, arXiv:2206.00364, table 1), √(σ² + σ_data²)/(σ·σ_data).
    fn of_sigma(sigma: f32, sigma_data: f64) -> Level {
        let wide = f64::from(sigma);
        let weight = ((wide * wide + sigma_data * sigma_data).sqrt() / (wide * sigma_data)) as f32;
        Level { time: sigma, image: 1.0, noise: sigma, error: [0.0, weight, -weight, 0.0] }
    }
}

impl HeldOut {
    /// [`COUNT`] images of a data set, in its order and from the front again where it has fewer.
    ///
    /// # Errors
    /// An empty data set.
    pub fn new(images: &Dataset, seed: u64, task: &Task) -> Result<HeldOut> {
        if images.is_empty() {
            return Err(Error::invalid(
                "no image is held out; set data.held_out to at least 1 or add images",
            ));
        }
        let shape = [images.height(), images.width(), 3];
        let size = images.sample_len();
        let mut x0 = vec![0.0; COUNT * size];
        let mut noise = vec![0.0; COUNT * size];
        for index in 0..COUNT {
            images.read(index % images.len(), &mut x0[index * size..][..size]);
            let key = [seed as u32, (seed >> 32) as u32];
            let stream = Stream { key, purpose: NOISE, step: 0, sample: index as u32 };
            for (quad, four) in noise[index * size..][..size].chunks_mut(4).enumerate() {
                four.copy_from_slice(&stream.quad(quad as u32)[..four.len()]);
            }
        }
        // Evenly spread, first and last included.
        let share = |index: usize| index as f64 / (COUNT - 1) as f64;
        let (levels, told) = match task {
            Task::Ddpm { schedule, .. } => {
                let last = (schedule.timesteps() - 1) as f64;
                let timesteps = (0..COUNT).map(|index| (share(index) * last).round() as usize);
                (timesteps.map(|t| Level::of_timestep(schedule, t)).collect(), "timesteps")
            }
            Task::Edm { network, process } => {
                let normals = (0..COUNT).map(|index| SPREAD * (2.0 * share(index) - 1.0));
                let sigma_data = network.config().sigma_data;
                let level = |normal| Ok(Level::of_sigma(process.level(normal), sigma_data));
                (normals.map(level).collect(), "sigma")
            }
        };
        let levels: Result<Vec<Level>> = levels;
        let labels = (0..COUNT).map(|index| images.label(index % images.len())).collect();
        Ok(HeldOut { x0, noise, levels: levels?, labels, told, shape })
    }

    /// Writes `x0`, `noise` (float32, NCHW) and `timesteps` (int64) or `sigma` (float32), so that anyone
    /// can compute the loss again.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let [h, w, c] = self.shape;
        let nchw = [COUNT, c, h, w];
        let mut tensors = Tensors::new();
        tensors.insert("x0", Tensor::f32(nchw, nhwc_to_nchw(&self.x0, nchw)));
        tensors.insert("noise", Tensor::f32(nchw, nhwc_to_nchw(&self.noise, nchw)));
        let told = self.levels.iter().map(|level| level.time);
        let told = match self.told {
            "timesteps" => Tensor::i64([COUNT], told.map(|t| t as i64).collect()),
            _ => Tensor::f32([COUNT], told.collect()),
        };
        tensors.insert(self.told, told);
        tensors.write(path)
    }
}

/// The network, compiled for evaluation.
pub struct Evaluator<'a> {
    engine: Engine,
    held_out: &'a HeldOut,
    classes: usize,
}

impl<'a> Evaluator<'a> {
    /// # Errors
    /// Sizes and devices that can't serve.
    pub fn new(
        network: &dyn Network,
        held_out: &'a HeldOut,
        device: &dyn Device,
    ) -> Result<Evaluator<'a>> {
        let [height, width, channels] = held_out.shape;
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([BATCH, height, width, channels]))?;
        let timesteps = g.slot(Region::State, "timesteps", TensorType::f32([BATCH]), Rate::Step)?;
        let classes = network.classes();
        let labels = match classes {
            0 => None,
            _ => Some(g.input("labels", TensorType::f32([BATCH, classes]))?),
        };
        let given = Given { labels, ..Given::times(timesteps) };
        let output = network.build(&mut g, x, given)?;
        let ty = crate::graph::Build::ty(&g, output).clone();
        let slot = g.input("output", ty)?;
        g.bind(output, slot)?;
        fuse::fuse(&mut g)?;
        lower::lower(&mut g, device.target())?;
        g.prune(&[]);
        let hoisted = hoist::hoist(&g, 1)?;
        let graphs = [("prepare", &hoisted.prepare), ("evaluate", &hoisted.step)];
        let mut engine = Engine::new(Plan::new(&graphs, device.target())?, device)?;
        write_tables(network, &mut engine)?;
        Ok(Evaluator { engine, held_out, classes })
    }

    /// Mean squared error over all held-out images: of the predicted noise, to which what the network
    /// predicts is converted; under noise levels, of the image with EDM's weight.
    ///
    /// # Errors
    /// Weights that are not the network's, or a device that fails.
    pub fn loss(&mut self, weights: &Weights) -> Result<f64> {
        weights.write(&mut self.engine)?;
        self.engine.run("prepare")?;
        let HeldOut { x0, noise, levels, labels, shape, .. } = self.held_out;
        let size: usize = shape.iter().product();
        let mut sum = 0.0f64;
        let batches = x0.chunks(BATCH * size).zip(noise.chunks(BATCH * size));
        let told = levels.chunks(BATCH).zip(labels.chunks(BATCH));
        for ((x0, noise), (levels, labels)) in batches.zip(told) {
            let mut x = vec![0.0f32; BATCH * size];
            let samples = x0.chunks(size).zip(noise.chunks(size));
            for ((x, (x0, noise)), level) in x.chunks_mut(size).zip(samples).zip(levels) {
                for ((x, &x0), &noise) in x.iter_mut().zip(x0).zip(noise) {
                    *x = level.image * x0 + level.noise * noise;
                }
            }
            let times: Vec<f32> = levels.iter().map(|level| level.time).collect();
            self.engine.write(Region::State, "x", &x)?;
            self.engine.write(Region::State, "timesteps", &times)?;
            if self.classes > 0 {
                let labels = one_hot(labels, self.classes);
                self.engine.write(Region::State, "labels", &labels)?;
            }
            self.engine.run("evaluate")?;
            let output: Vec<f32> = self.engine.read(Region::State, "output")?;
            for (i, &output) in output.iter().enumerate() {
                let [of_x, of_output, of_image, of_noise] = levels[i / size].error;
                let error =
                    of_x * x[i] + of_output * output + of_image * x0[i] + of_noise * noise[i];
                sum += f64::from(error) * f64::from(error);
            }
        }
        Ok(sum / (COUNT * size) as f64)
    }
}
