//! The figure by which runs are compared: how well the noise of held-out images is predicted.

use crate::data::dataset::Dataset;
use crate::device::{Device, TensorType};
use crate::diffusion::NoiseSchedule;
use crate::error::{Error, Result};
use crate::formats::layout::nhwc_to_nchw;
use crate::formats::tensors::{Tensor, Tensors};
use crate::graph::{Engine, Graph, Plan, Rate, Region, fuse, hoist, lower};
use crate::models::{Network, Weights, write_tables};
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
    /// Evenly spread over all timesteps, first and last included.
    timesteps: Vec<usize>,
    /// Height, width, channels.
    shape: [usize; 3],
}

impl HeldOut {
    /// [`COUNT`] images of a data set, in its order and from the front again where it has fewer.
    ///
    /// # Errors
    /// An empty data set.
    pub fn new(images: &Dataset, seed: u64, schedule: &NoiseSchedule) -> Result<HeldOut> {
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
        let last = (schedule.timesteps() - 1) as f64;
        let timesteps =
            (0..COUNT).map(|i| (i as f64 * last / (COUNT - 1) as f64).round() as usize).collect();
        Ok(HeldOut { x0, noise, timesteps, shape })
    }

    /// Writes `x0`, `noise` (float32, NCHW) and `timesteps` (int64), so that anyone can compute
    /// the loss again.
    ///
    /// # Errors
    /// When the file can't be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let [h, w, c] = self.shape;
        let nchw = [COUNT, c, h, w];
        let mut tensors = Tensors::new();
        tensors.insert("x0", Tensor::f32(nchw, nhwc_to_nchw(&self.x0, nchw)));
        tensors.insert("noise", Tensor::f32(nchw, nhwc_to_nchw(&self.noise, nchw)));
        let timesteps = self.timesteps.iter().map(|&t| t as i64).collect();
        tensors.insert("timesteps", Tensor::i64([COUNT], timesteps));
        tensors.write(path)
    }
}

/// The network, compiled for evaluation.
pub struct Evaluator<'a> {
    engine: Engine,
    held_out: &'a HeldOut,
    schedule: &'a NoiseSchedule,
}

impl<'a> Evaluator<'a> {
    /// # Errors
    /// Sizes and devices that can't serve.
    pub fn new(
        network: &dyn Network,
        held_out: &'a HeldOut,
        schedule: &'a NoiseSchedule,
        device: &dyn Device,
    ) -> Result<Evaluator<'a>> {
        let [height, width, channels] = held_out.shape;
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32([BATCH, height, width, channels]))?;
        let timesteps = g.slot(Region::State, "timesteps", TensorType::f32([BATCH]), Rate::Step)?;
        let output = network.build(&mut g, x, timesteps)?;
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
        Ok(Evaluator { engine, held_out, schedule })
    }

    /// Mean squared error of the predicted noise over all held-out images; what the network
    /// predicts is converted to noise where it is something else.
    ///
    /// # Errors
    /// Weights that are not the network's, or a device that fails.
    pub fn loss(&mut self, weights: &Weights) -> Result<f64> {
        weights.write(&mut self.engine)?;
        self.engine.run("prepare")?;
        let HeldOut { x0, noise, timesteps, shape } = self.held_out;
        let size: usize = shape.iter().product();
        let mut sum = 0.0f64;
        for first in (0..COUNT).step_by(BATCH) {
            let range = first * size..(first + BATCH) * size;
            let ts = &timesteps[first..first + BATCH];
            let mut x = vec![0.0f32; BATCH * size];
            let samples = x0[range.clone()].chunks(size).zip(noise[range.clone()].chunks(size));
            for ((x, (x0, noise)), &t) in x.chunks_mut(size).zip(samples).zip(ts) {
                let (signal, share) = self.schedule.shares(t)?;
                for ((x, &x0), &noise) in x.iter_mut().zip(x0).zip(noise) {
                    *x = signal * x0 + share * noise;
                }
            }
            let as_floats: Vec<f32> = ts.iter().map(|&t| t as f32).collect();
            self.engine.write(Region::State, "x", &x)?;
            self.engine.write(Region::State, "timesteps", &as_floats)?;
            self.engine.run("evaluate")?;
            let output: Vec<f32> = self.engine.read(Region::State, "output")?;
            let predictions = output.chunks(size).zip(x.chunks(size));
            for (((output, x), noise), &t) in predictions.zip(noise[range].chunks(size)).zip(ts) {
                let (from_x, from_output) = self.schedule.noise_shares(t)?;
                for ((&output, &x), &noise) in output.iter().zip(x).zip(noise) {
                    let error = from_x * x + from_output * output - noise;
                    sum += f64::from(error) * f64::from(error);
                }
            }
        }
        Ok(sum / (COUNT * size) as f64)
    }
}
