//! Sampling: a network, a sampler's table and a batch compiled into three programs.
//!
//! `prepare` runs once, `table` once with all timesteps, `denoise` once for each row of the
//! table: network, update, and counting on, with no word from the host in between.

use super::samplers::SamplerTable;
use super::seeds;
use crate::device::{Device, Target, TensorType};
use crate::error::{Error, Result};
use crate::graph::hoist::{Hoisted, STATE, hoist};
use crate::graph::{Engine, Graph, Plan, Rate, Region, fuse, lower};
use crate::models::{Given, Network, Weights, one_hot, write_tables};
use crate::ops::noise::{normal::Stream, philox};
use crate::ops::sampler_update::{self, Noise, SamplerUpdate};
use crate::ops::state::{self, StepState};

/// Stream of the noise that an image starts from.
const START: u32 = philox::purpose("sampling.start");
/// Stream of the noise that a sampler adds.
const FRESH: u32 = philox::purpose("sampling.fresh");

/// What a sampling run is compiled for.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub batch: usize,
    /// Height and width.
    pub size: [usize; 2],
}

/// Appends the update of `x` from the network's output, and counting on to the next row.
///
/// # Errors
/// Shapes that the update can't take.
pub fn append_update(
    g: &mut Graph,
    output: crate::graph::TensorId,
    x: crate::graph::TensorId,
    table: &SamplerTable,
    given_noise: bool,
) -> Result<()> {
    use crate::graph::Build;
    let shape = g.ty(x).shape.clone();
    let (history, pairs) = (table.takes_history(), table.in_pairs());
    let columns = sampler_update::COLUMNS * if pairs { 2 } else { 1 };
    let rows = TensorType::f32([table.len(), columns]);
    let coefficients = g.input("coefficients", rows)?;
    let state = g.input(STATE, state::ty())?;
    let mut inputs = vec![output, coefficients];
    let noise = match (table.takes_noise(), given_noise) {
        (false, _) => Noise::None,
        (true, false) => {
            inputs.push(g.input("seeds", TensorType::u32([shape[0], 2]))?);
            Noise::Philox { purpose: FRESH }
        }
        (true, true) => {
            let mut all = vec![table.len()];
            all.extend(&shape);
            inputs.push(g.input("noise", TensorType::f32(all))?);
            Noise::Given
        }
    };
    let mut slots = vec![x];
    for (name, there) in
        [("x_rest", pairs), ("history", history), ("history_rest", history && pairs)]
    {
        if there {
            slots.push(g.input(name, TensorType::f32(shape.clone()))?);
        }
    }
    slots.push(state);
    let update = SamplerUpdate { history, noise, pairs, preconditioned: false };
    g.push_into(update, &inputs, &slots)
}

/// The three graphs of a sampling run, ready to be planned.
///
/// # Errors
/// Sizes that the network can't take.
pub fn graphs(
    network: &dyn Network,
    table: &SamplerTable,
    shape: Shape,
    target: &Target,
) -> Result<Hoisted> {
    let [height, width] = shape.size;
    network.check_size(height, width)?;
    let [c_in, c_out] = network.channels();
    if c_in != c_out {
        return Err(Error::invalid(format!(
            "the network turns {c_in} channels into {c_out}; sampling needs as many as it takes"
        )));
    }
    let mut g = Graph::new();
    let x = g.input("x", TensorType::f32([shape.batch, height, width, c_in]))?;
    // Labels are each image's own, and then so are the rows of the table.
    let (classes, rows) = (network.classes(), table_rows(network, shape.batch));
    let mut known = |name: &str, shape: &[usize]| {
        g.slot(Region::State, name, TensorType::f32(shape), Rate::Schedule)
    };
    let times = known("timesteps", &[rows])?;
    let labels = if classes > 0 { Some(known("labels", &[rows, classes])?) } else { None };
    let output = network.build(&mut g, x, Given { times, labels, training: false })?;
    append_update(&mut g, output, x, table, false)?;
    fuse::fuse(&mut g)?;
    lower::lower(&mut g, target)?;
    g.prune(&[]);
    hoist(&g, table.len())
}

/// Rows of a table for each evaluation.
fn table_rows(network: &dyn Network, batch: usize) -> usize {
    if network.classes() > 0 { batch } else { 1 }
}

/// Plans a sampling run without running it.
///
/// # Errors
/// As [`graphs`], and shapes that the target has no kernel for.
pub fn plan(
    network: &dyn Network,
    table: &SamplerTable,
    shape: Shape,
    target: &Target,
) -> Result<Plan> {
    let Hoisted { prepare, table, step } = graphs(network, table, shape, target)?;
    Plan::new(&[("prepare", &prepare), ("table", &table), ("denoise", &step)], target)
}

/// A sampling run on a device: weights loaded, tables computed.
pub struct Denoiser {
    engine: Engine,
    shape: [usize; 4],
    steps: usize,
    classes: usize,
    /// Standard deviation of the noise that a run starts from.
    start: f64,
    done: usize,
    takes_seeds: bool,
}

impl Denoiser {
    /// Compiles, allocates, loads the weights and runs `prepare` and `table`.
    ///
    /// # Errors
    /// Sizes and devices that can't serve, and weights that are not the network's.
    pub fn new(
        network: &dyn Network,
        weights: &Weights,
        table: &SamplerTable,
        shape: Shape,
        device: &dyn Device,
    ) -> Result<Denoiser> {
        let mut engine = Engine::new(plan(network, table, shape, device.target())?, device)?;
        write_tables(network, &mut engine)?;
        let rows = table_rows(network, shape.batch);
        let times = table.times.iter().flat_map(|&time| std::iter::repeat_n(time, rows));
        engine.write(Region::State, "timesteps", &times.collect::<Vec<f32>>())?;
        engine.write(Region::State, "coefficients", &table.coefficients())?;
        let mut denoiser = Denoiser {
            takes_seeds: engine.has(Region::State, "seeds"),
            engine,
            shape: [shape.batch, shape.size[0], shape.size[1], network.channels()[0]],
            steps: table.len(),
            classes: network.classes(),
            start: table.start,
            done: 0,
        };
        denoiser.set_weights(weights)?;
        Ok(denoiser)
    }

    /// Replaces the weights, as sampling during training does.
    ///
    /// # Errors
    /// Weights that are not the network's.
    pub fn set_weights(&mut self, weights: &Weights) -> Result<()> {
        weights.write(&mut self.engine)?;
        self.engine.run("prepare")?;
        self.engine.run("table")
    }

    /// Names each image's class, `None` for none, as it is until this is called. Holds for the runs that
    /// are started afterwards.
    ///
    /// # Errors
    /// When there are not as many labels as images, or a class that the network does not know.
    pub fn set_labels(&mut self, labels: &[Option<usize>]) -> Result<()> {
        let (batch, classes) = (self.shape[0], self.classes);
        if labels.len() != batch {
            let what = format!("{} labels for a batch of {batch}", labels.len());
            return Err(Error::invalid(what));
        }
        for label in labels.iter().flatten() {
            seeds::check_label(*label, classes)?;
        }
        if classes == 0 {
            return Ok(());
        }
        let rows = one_hot(labels, classes);
        self.engine.write(Region::State, "labels", &rows.repeat(self.steps))?;
        self.engine.run("table")
    }

    /// Network evaluations of a run.
    pub fn steps(&self) -> usize {
        self.steps
    }

    /// [B, H, W, C].
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Begins a run from noise: each image's start and fresh noise are functions of its own seed,
    /// so an image is the same in any batch.
    ///
    /// # Errors
    /// When there are not as many seeds as images.
    pub fn start(&mut self, seeds: &[u64]) -> Result<()> {
        self.check_seeds(seeds)?;
        let [_, height, width, channels] = self.shape;
        let noise: Vec<f32> =
            seeds.iter().flat_map(|&seed| start_noise(seed, [height, width, channels])).collect();
        self.start_from(&noise, seeds)
    }

    /// Begins a run from given standard normal noise [B, H, W, C]; `seeds` are those of fresh noise.
    ///
    /// # Errors
    /// When sizes do not fit.
    pub fn start_from(&mut self, noise: &[f32], seeds: &[u64]) -> Result<()> {
        self.check_seeds(seeds)?;
        let states = noise.iter().map(|&z| sampler_update::pair(self.start * f64::from(z)));
        let (x, rest): (Vec<f32>, Vec<f32>) = states.map(|[x, rest]| (x, rest)).unzip();
        self.engine.write(Region::State, "x", &x)?;
        if self.engine.has(Region::State, "x_rest") {
            self.engine.write(Region::State, "x_rest", &rest)?;
        }
        if self.takes_seeds {
            let halves: Vec<u32> =
                seeds.iter().flat_map(|&seed| [seed as u32, (seed >> 32) as u32]).collect();
            self.engine.write(Region::State, "seeds", &halves)?;
        }
        for name in ["history", "history_rest"] {
            if self.engine.has(Region::State, name) {
                self.engine.write(Region::State, name, &vec![0.0f32; noise.len()])?;
            }
        }
        self.engine.write(Region::State, STATE, &StepState::new(0).words)?;
        self.done = 0;
        Ok(())
    }

    /// One network evaluation and its update.
    ///
    /// # Errors
    /// When the run is over, or the device fails.
    pub fn step(&mut self) -> Result<()> {
        if self.done == self.steps {
            return Err(Error::operation("denoise", "the run is over; start another"));
        }
        self.done += 1;
        self.engine.run("denoise")
    }

    /// The current state [B, H, W, C]; at the end of a run, the samples.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read(&mut self) -> Result<Vec<f32>> {
        self.engine.read(Region::State, "x")
    }

    /// A whole run; `observe` sees the denoiser after each step and may stop the run with an error.
    ///
    /// # Errors
    /// As [`Denoiser::start`] and [`Denoiser::step`]; a sample that is not finite.
    pub fn sample(
        &mut self,
        seeds: &[u64],
        observe: &mut dyn FnMut(&mut Denoiser, usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.start(seeds)?;
        self.finish(observe)
    }

    /// Runs what is left of a run that was started.
    ///
    /// # Errors
    /// As [`Denoiser::sample`].
    pub fn finish(
        &mut self,
        observe: &mut dyn FnMut(&mut Denoiser, usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        while self.done < self.steps {
            self.step()?;
            let done = self.done;
            observe(self, done)?;
        }
        let samples = self.read()?;
        if samples.iter().any(|value| !value.is_finite()) {
            return Err(Error::NonFinite(
                "the samples contain NaN or infinity; the weights are damaged or the sampler has \
                 too few steps for this model"
                    .into(),
            ));
        }
        Ok(samples)
    }

    fn check_seeds(&self, seeds: &[u64]) -> Result<()> {
        if seeds.len() != self.shape[0] {
            return Err(Error::invalid(format!(
                "{} seeds for a batch of {}",
                seeds.len(),
                self.shape[0]
            )));
        }
        Ok(())
    }
}

/// The standard normal noise [H, W, C] that the image of a seed starts from; element i of its
/// stream is element i in CHW order.
pub fn start_noise(seed: u64, [height, width, channels]: [usize; 3]) -> Vec<f32> {
    let key = [seed as u32, (seed >> 32) as u32];
    let stream = Stream { key, purpose: START, step: 0, sample: 0 };
    let pixels = height * width;
    let mut noise = vec![0.0; pixels * channels];
    let count = noise.len();
    for quad in 0..count.div_ceil(4) {
        for (lane, value) in stream.quad(quad as u32).into_iter().enumerate() {
            let element = 4 * quad + lane;
            if element < count {
                noise[element % pixels * channels + element / pixels] = value;
            }
        }
    }
    noise
}
