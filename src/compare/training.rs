//! Optimizer steps and short training runs, replayed with the gradients, or the images, noise and
//! timesteps, that a case gives.

use super::attributes::Attributes;
use super::edm;
use super::recipe::Produced;
use super::schedulers::steps_of;
use crate::device::{Device, TensorType};
use crate::diffusion::scheduler_config::Prediction;
use crate::diffusion::{NoiseSchedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::formats::diffusers::canonical_name;
use crate::formats::layout::nchw_to_nhwc;
use crate::formats::reference_case::ReferenceCase;
use crate::formats::tensors::Tensors;
use crate::graph::hoist::STATE;
use crate::graph::{Engine, Graph, Region};
use crate::models::{DdpmUnet, UnetConfig, Weights, parameters};
use crate::ops::adamw::AdamW;
use crate::ops::grad_norm::GradNorm;
use crate::ops::state::{self, StepState};
use crate::training::lr_schedule::{Decay, LrSchedule};
use crate::training::trainer::{NoiseSource, Recipe, StepSettings, Trainer};
use std::collections::{BTreeMap, HashMap};
use std::f64::consts::PI;

/// `adamw`: parameter `w` and `grads` [steps, …] → `w` after all steps.
pub fn adamw(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let given = if case.parameters.contains_key("w") {
        case.parameter_f32("w")?
    } else {
        case.input_f32("w")?
    };
    let (shape, w) = given;
    let (all, grads) = case.input_f32("grads")?;
    let steps = attributes.size("steps")?;
    if all.first() != Some(&steps) || grads.len() != steps * w.len() {
        return Err(Error::invalid(format!(
            "`grads` is {all:?}; one gradient of the shape {shape:?} for each of {steps} steps is \
             needed"
        )));
    }
    let optimizer = optimizer(attributes, true)?;
    let mut g = Graph::new();
    let mut input = |name: &str| g.input(name, TensorType::f32(shape));
    let (grad, w_slot, m, v) = (input("grad")?, input("w")?, input("m")?, input("v")?);
    let state = g.input(STATE, state::ty())?;
    let norm = g.one(GradNorm, &[grad])?;
    g.push_into(optimizer, &[grad, norm], &[w_slot, m, v, state])?;
    let mut engine = Engine::single(g, device)?;
    engine.write(Region::State, "w", w)?;
    let mut words = StepState::new(0);
    words.set_float(state::LEARNING_RATE, attributes.number("lr")? as f32);
    for (step, grad) in grads.chunks(w.len().max(1)).enumerate() {
        let taken = (step + 1) as f64;
        words.set_float(state::BIAS1, (1.0 - optimizer.beta1.powf(taken)) as f32);
        words.set_float(state::BIAS2, (1.0 - optimizer.beta2.powf(taken)) as f32);
        engine.write(Region::State, STATE, &words.words)?;
        engine.write(Region::State, "grad", grad)?;
        engine.run("run")?;
    }
    let w = engine.read(Region::State, "w")?;
    let kernels = engine.session().kernels();
    Ok(Produced { tensors: BTreeMap::from([("output.w".to_string(), w)]), kernels })
}

fn optimizer(attributes: &Attributes, decoupled: bool) -> Result<AdamW> {
    let betas =
        if attributes.has("betas") { attributes.numbers("betas")? } else { vec![0.9, 0.999] };
    let [beta1, beta2] = betas[..] else {
        return Err(Error::invalid("the attribute `betas` must be two numbers"));
    };
    if !(0.0..1.0).contains(&beta1) || !(0.0..1.0).contains(&beta2) {
        return Err(Error::invalid(format!("betas are {betas:?}; numbers from 0 to 1 are needed")));
    }
    Ok(AdamW {
        beta1,
        beta2,
        eps: attributes.number_or("eps", 1e-8)?,
        // PyTorch's AdamW decays by 0.01 unless told otherwise, its Adam not at all.
        weight_decay: attributes.number_or("weight_decay", if decoupled { 0.01 } else { 0.0 })?,
        decoupled,
        max_norm: None,
        zero_non_finite: false,
        ema: false,
    })
}

/// What every training run of a case is made from.
pub struct RunSettings<'a> {
    pub steps: usize,
    /// Of one step's images.
    pub nchw: [usize; 4],
    /// [steps, B, C, H, W], as `noise`.
    pub x0: &'a [f32],
    pub noise: &'a [f32],
    optimizer: AdamW,
    rates: Vec<f64>,
}

impl<'a> RunSettings<'a> {
    /// # Errors
    /// Attributes or tensors that are missing or don't fit.
    pub fn read(case: &'a ReferenceCase, attributes: &Attributes) -> Result<RunSettings<'a>> {
        let settings = attributes.nested("optimizer")?;
        let decoupled = match settings.text_or("name", "adamw")? {
            "adamw" => true,
            "adam" => false,
            other => {
                return Err(Error::invalid(format!("the optimizer \"{other}\" is not known")));
            }
        };
        let steps = attributes.size("steps")?;
        let (shape, x0) = case.input_f32("x0")?;
        let &[count, batch, channels, height, width] = shape else {
            return Err(Error::invalid(format!("`x0` must be [steps, B, C, H, W], not {shape:?}")));
        };
        let (_, noise) = case.input_f32("noise")?;
        if count != steps || noise.len() != x0.len() {
            return Err(Error::invalid(format!(
                "`x0` and `noise` must hold {steps} steps of {batch} images"
            )));
        }
        let optimizer = optimizer(&settings, decoupled)?;
        let rates = rates(attributes, settings.number("lr")?, steps, batch)?;
        let nchw = [batch, channels, height, width];
        Ok(RunSettings { steps, nchw, x0, noise, optimizer, rates })
    }

    /// What to compile; of the predictions, noise.
    pub fn recipe(&self) -> Recipe {
        let [batch, _, height, width] = self.nchw;
        Recipe {
            batch,
            accumulate: 1,
            size: [height, width],
            prediction: Prediction::Epsilon,
            noise: NoiseSource::Given,
            optimizer: self.optimizer,
            averages: 0,
        }
    }

    /// What changes from step to step.
    pub fn step(&self, step: usize) -> StepSettings {
        StepSettings { step: step as u64, learning_rate: self.rates[step], ema_decays: [0.0; 4] }
    }
}

/// `training`: a run of a few steps → `losses` [steps] and the parameters after the last.
pub fn run(case: &ReferenceCase, attributes: &Attributes, device: &dyn Device) -> Result<Produced> {
    match (attributes.text_or("model", "")?, attributes.text_or("loss", "epsilon_mse")?) {
        ("unet2d", "epsilon_mse") => {}
        ("edm2_precond", "edm2") => return edm::training(case, attributes, device),
        (model, loss) => {
            return Err(Error::invalid(format!(
                "the attributes `model` and `loss` are \"{model}\" and \"{loss}\", which this version \
                 can't replay; \"unet2d\" with \"epsilon_mse\" and \"edm2_precond\" with \"edm2\" can"
            )));
        }
    }
    let network = DdpmUnet::new(UnetConfig::from_json(attributes.nested("config")?.object())?)?;
    let mut scheduler = match attributes.has("schedule") {
        true => SchedulerConfig::from_json(attributes.nested("schedule")?.object())?,
        false => SchedulerConfig::default(),
    };
    scheduler.prediction_type = match attributes.text_or("prediction", "")? {
        "" => scheduler.prediction_type,
        "epsilon" => Prediction::Epsilon,
        "sample" => Prediction::Sample,
        "v_prediction" | "v" => Prediction::Velocity,
        other => return Err(Error::invalid(format!("the prediction \"{other}\" is not known"))),
    };
    let schedule = NoiseSchedule::new(&scheduler)?;
    let settings = RunSettings::read(case, attributes)?;
    let RunSettings { steps, nchw, x0, noise, .. } = settings;
    let batch = nchw[0];
    let timesteps = steps_of(case, schedule.timesteps())?;
    if timesteps.len() != steps * batch {
        return Err(Error::invalid(format!(
            "`timesteps` must hold {steps} steps of {batch} images"
        )));
    }
    let recipe = Recipe { prediction: scheduler.prediction_type, ..settings.recipe() };
    let weights = initial_weights(case, &network, recipe.size)?;
    let mut trainer = Trainer::new(&network, &weights, &schedule, recipe, 0, device)?;
    let mut losses = Vec::with_capacity(steps);
    let size = x0.len() / steps;
    for step in 0..steps {
        let part = step * size..(step + 1) * size;
        let now = settings.step(step);
        let x0 = nchw_to_nhwc(&x0[part.clone()], nchw);
        let noise = nchw_to_nhwc(&noise[part], nchw);
        let ts = &timesteps[step * batch..(step + 1) * batch];
        losses.push(trainer.micro_batch(&now, 0, &x0, ts, Some(&noise))?);
        trainer.update(&now)?;
    }
    after_run(case, trainer, losses)
}

/// What a run leaves: its losses, and the parameters that the case has.
pub fn after_run(case: &ReferenceCase, mut trainer: Trainer, losses: Vec<f32>) -> Result<Produced> {
    let after: HashMap<String, Vec<f32>> = trainer
        .get(Region::Weights)?
        .tensors
        .into_iter()
        .map(|(name, _, values)| (name, values))
        .collect();
    let mut tensors = BTreeMap::from([("output.losses".to_string(), losses)]);
    for name in case.wanted.keys() {
        let output = name.strip_prefix("output.").unwrap_or(name);
        let parameter = output.strip_prefix("parameter.").unwrap_or(output);
        if let Some(values) = after.get(canonical_name(parameter).as_ref()) {
            tensors.insert(name.clone(), values.clone());
        }
    }
    let kernels = trainer.engine().session().kernels();
    Ok(Produced { tensors, kernels })
}

/// The learning rate of each step. PyTorch's cosine in its closed form, which rises again beyond
/// `steps`; the product's own stays at its end there.
fn rates(attributes: &Attributes, peak: f64, steps: usize, batch: usize) -> Result<Vec<f64>> {
    if !attributes.has("lr_schedule") {
        return Ok(vec![peak; steps]);
    }
    let schedule = attributes.nested("lr_schedule")?;
    match schedule.text_or("name", "constant")? {
        "constant" => Ok(vec![peak; steps]),
        "cosine" => {
            let end = schedule.number_or("final_lr", 0.0)?;
            let length = if schedule.has("steps") { schedule.size("steps")? } else { steps } as f64;
            let share = |step: usize| (1.0 + (PI * step as f64 / length).cos()) / 2.0;
            Ok((0..steps).map(|step| end + (peak - end) * share(step)).collect())
        }
        // Under the names of NVlabs' function; the warm-up is counted in images there.
        "edm2" => {
            let flat = schedule.number_or("ref_batches", 70e3)?;
            let warmup = schedule.number_or("rampup_Mimg", 10.0)? * 1e6 / batch as f64;
            let whole = |key: &str, value: f64| {
                let near = value.round();
                if near >= 0.0 && (value - near).abs() <= 1e-9 * near.max(1.0) {
                    return Ok(near as u64);
                }
                Err(Error::invalid(format!(
                    "the lr_schedule's `{key}` is {value} batches of {batch}; a whole number can be \
                     replayed"
                )))
            };
            let (flat, warmup) = (whole("ref_batches", flat)?, whole("rampup_Mimg", warmup)?);
            let decay = Decay::InverseSqrt;
            let schedule = LrSchedule { decay, peak, end: 0.0, warmup, steps: 0, flat };
            Ok((0..steps as u64).map(|step| schedule.rate(step)).collect())
        }
        other => Err(Error::invalid(format!("the lr_schedule \"{other}\" is not known"))),
    }
}

/// The case's parameters as the network's weights, in its order.
fn initial_weights(case: &ReferenceCase, network: &DdpmUnet, size: [usize; 2]) -> Result<Weights> {
    let given = case.parameters.iter();
    let mut given: Tensors =
        given.map(|(name, tensor)| (canonical_name(name).into_owned(), tensor.clone())).collect();
    given.take_weights(parameters(network, size)?, &case.path)
}
