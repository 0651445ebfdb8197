//! The forward process and the samplers, replayed with the noise and the predictions that a case
//! gives. All of it is element by element, so PyTorch's order of elements is kept.

use super::attributes::Attributes;
use super::recipe::{Produced, f32s, missing};
use crate::device::{Device, TensorType};
use crate::diffusion::denoiser::append_update;
use crate::diffusion::samplers::{self, Sampler, SamplerTable};
use crate::diffusion::{NoiseSchedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::formats::reference_case::ReferenceCase;
use crate::graph::hoist::STATE;
use crate::graph::{Engine, Graph, Region};
use crate::ops::add_noise::{AddNoise, Shares};
use crate::ops::state::StepState;
use std::collections::BTreeMap;

/// `add_noise`: `x0`, `noise`, `timesteps` → `x_t`.
pub fn add_noise(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let schedule = NoiseSchedule::new(&SchedulerConfig::from_json(attributes.object())?)?;
    let (shape, x0) = case.input_f32("x0")?;
    let (_, noise) = case.input_f32("noise")?;
    let timesteps = steps_of(case, schedule.timesteps())?;
    let mut shares = Vec::with_capacity(2 * schedule.timesteps());
    for t in 0..schedule.timesteps() {
        let (signal, noise) = schedule.shares(t)?;
        shares.extend([signal, noise]);
    }
    let mut g = Graph::new();
    let inputs = [
        g.input("x0", TensorType::f32(shape))?,
        g.input("noise", TensorType::f32(shape))?,
        g.input("shares", TensorType::f32([shares.len() / 2, 2]))?,
        g.input("timesteps", TensorType::f32([timesteps.len()]))?,
    ];
    let x_t =
        g.one(AddNoise { shares: Shares::Timesteps { velocity: false }, draws: None }, &inputs)?;
    let slot = g.input("x_t", TensorType::f32(shape))?;
    g.bind(x_t, slot)?;
    let mut engine = Engine::single(g, device)?;
    engine.write(Region::State, "x0", x0)?;
    engine.write(Region::State, "noise", noise)?;
    engine.write(Region::State, "shares", &shares)?;
    let timesteps: Vec<f32> = timesteps.iter().map(|&t| t as f32).collect();
    engine.write(Region::State, "timesteps", &timesteps)?;
    engine.run("run")?;
    produced(engine, "output.x_t", "x_t")
}

/// `ddpm_step`: independent steps with stride 1; row i of `x_t`, `epsilon` and `noise` belongs to
/// `timesteps[i]`.
pub fn ddpm_step(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let config = SchedulerConfig::from_json(attributes.object())?;
    let trained = config.num_train_timesteps;
    let whole = samplers::table(&config, Sampler::Ddpm, trained, 0.0, config.clip())?;
    let timesteps = steps_of(case, trained)?;
    let rows = timesteps
        .iter()
        .map(|&t| {
            let row = whole.times.iter().position(|&known| known == t as f32);
            row.map(|row| whole.rows[row]).ok_or_else(|| {
                Error::invalid(format!("timestep {t} is not among those of the schedule"))
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let table = SamplerTable::of_timesteps(&timesteps, rows);
    let (shape, x_t) = case.input_f32("x_t")?;
    let (_, epsilon) = case.input_f32("epsilon")?;
    let (_, noise) = case.input_f32("noise")?;
    if shape.first() != Some(&table.len()) || epsilon.len() != x_t.len() {
        return Err(Error::invalid(format!(
            "`x_t` is {shape:?}; `epsilon` must have as many elements, and both need one row for \
             each of {} timesteps",
            table.len()
        )));
    }
    let mut one: Vec<usize> = shape.to_vec();
    one[0] = 1;
    let mut updates = Updates::new(&table, &one, Some(noise), device)?;
    let elements = x_t.len() / table.len();
    let mut x_prev = Vec::with_capacity(x_t.len());
    for (x, epsilon) in x_t.chunks(elements).zip(epsilon.chunks(elements)) {
        updates.engine.write(Region::State, "x", x)?;
        updates.step(epsilon)?;
        x_prev.extend(updates.engine.read::<f32>(Region::State, "x")?);
    }
    let kernels = updates.engine.session().kernels();
    Ok(Produced { tensors: BTreeMap::from([("output.x_prev".to_string(), x_prev)]), kernels })
}

/// `ddim` and `dpm_solver_pp_2m`: whole runs in which the given `epsilons` stand in for the network.
pub fn sample(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let config = SchedulerConfig::from_json(&scheduler_keys(attributes))?;
    let sampler = if case.op == "ddim" { Sampler::Ddim } else { Sampler::DpmSolverPp2m };
    let clip = sampler.clip(&config);
    let (steps, eta) = (attributes.size("steps")?, attributes.number_or("eta", 0.0)?);
    let table = samplers::table(&config, sampler, steps, eta, clip)?;
    let given = steps_of(case, config.num_train_timesteps)?;
    check_timesteps(&given, &samplers::timesteps(&config, sampler, steps)?)?;
    let (shape, x_t) = case.input_f32("x_T")?;
    let (all, epsilons) = case.input_f32("epsilons")?;
    if all.first() != Some(&steps) || epsilons.len() != steps * x_t.len() {
        return Err(Error::invalid(format!(
            "`epsilons` is {all:?}; one prediction of the shape {shape:?} for each of {steps} \
             steps is needed"
        )));
    }
    let noise = case.inputs.get("noise").map(f32s).transpose()?;
    if table.takes_noise() && noise.is_none() {
        return Err(missing("noise"));
    }
    let mut updates = Updates::new(&table, shape, noise.as_deref(), device)?;
    updates.engine.write(Region::State, "x", x_t)?;
    for epsilon in epsilons.chunks(x_t.len()) {
        updates.step(epsilon)?;
    }
    produced(updates.engine, "output.x_0", "x")
}

/// Whether a case went through the timesteps of its schedule.
fn check_timesteps(given: &[usize], wanted: &[usize]) -> Result<()> {
    let differ = given.iter().zip(wanted).position(|(given, wanted)| given != wanted);
    let what = match differ {
        Some(at) => format!("number {at} is {}, where the schedule has {}", given[at], wanted[at]),
        None if given.len() != wanted.len() => {
            format!("there are {}, where the schedule has {}", given.len(), wanted.len())
        }
        None => return Ok(()),
    };
    Err(Error::invalid(format!(
        "the case's `timesteps` are not those of its schedule: {what}; check `timestep_spacing`, \
         `steps_offset` and `steps`"
    )))
}

/// An engine that holds nothing but a sampler's update.
struct Updates {
    engine: Engine,
}

impl Updates {
    fn new(
        table: &SamplerTable,
        shape: &[usize],
        noise: Option<&[f32]>,
        device: &dyn Device,
    ) -> Result<Updates> {
        let mut g = Graph::new();
        let x = g.input("x", TensorType::f32(shape))?;
        let output = g.input("output", TensorType::f32(shape))?;
        append_update(&mut g, output, x, table, true)?;
        let mut engine = Engine::single(g, device)?;
        engine.write(Region::State, "coefficients", &table.coefficients())?;
        engine.write(Region::State, STATE, &StepState::new(0).words)?;
        if let (Some(noise), true) = (noise, engine.has(Region::State, "noise")) {
            engine.write(Region::State, "noise", noise)?;
        }
        Ok(Updates { engine })
    }

    fn step(&mut self, output: &[f32]) -> Result<()> {
        self.engine.write(Region::State, "output", output)?;
        self.engine.run("run")
    }
}

fn produced(mut engine: Engine, name: &str, slot: &str) -> Result<Produced> {
    let values = engine.read(Region::State, slot)?;
    let kernels = engine.session().kernels();
    Ok(Produced { tensors: BTreeMap::from([(name.to_string(), values)]), kernels })
}

/// The case's `timesteps`, each below `limit`.
pub fn steps_of(case: &ReferenceCase, limit: usize) -> Result<Vec<usize>> {
    let (_, timesteps) = case.input_i64("timesteps")?;
    timesteps
        .iter()
        .map(|&t| {
            usize::try_from(t)
                .ok()
                .filter(|&t| t < limit)
                .ok_or_else(|| Error::invalid(format!("timestep {t} is not in 0..{limit}")))
        })
        .collect()
}

/// Attributes without those that are not a scheduler's.
fn scheduler_keys(attributes: &Attributes) -> serde_json::Map<String, serde_json::Value> {
    let mut object = attributes.object().clone();
    object.remove("steps");
    object.remove("eta");
    object
}
