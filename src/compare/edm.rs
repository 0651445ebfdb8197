//! Procedures of EDM2: sampling with Heun's method, power-function averages, training runs.

use super::attributes::Attributes;
use super::recipe::{Produced, missing};
use super::training::{RunSettings, after_run};
use crate::device::{Device, TensorType};
use crate::diffusion::EdmProcess;
use crate::diffusion::denoiser::{Denoiser, Shape};
use crate::diffusion::edm::{Churn, Levels, heun};
use crate::error::{Error, Result};
use crate::formats::layout::{nchw_to_nhwc, nhwc_to_nchw};
use crate::formats::reference_case::ReferenceCase;
use crate::formats::tensors::Tensors;
use crate::graph::hoist::STATE;
use crate::graph::{Engine, Graph, Region};
use crate::models::{Edm2Config, Edm2Unet, Weights, saved};
use crate::ops::accumulate::Accumulate;
use crate::ops::state::{self, StepState};
use crate::training::loss_scale::LossScale;
use crate::training::objective::EdmDenoising;
use crate::training::power_ema::{decay, exponent};
use crate::training::trainer::Trainer;
use std::collections::BTreeMap;

/// The network of a case whose `model` must be the preconditioned EDM2 network.
fn network(attributes: &Attributes) -> Result<Edm2Unet> {
    match attributes.text_or("model", "edm2_precond")? {
        "edm2_precond" => {}
        other => {
            return Err(Error::invalid(format!(
                "the attribute `model` is \"{other}\", which this version can't replay here; \
                 \"edm2_precond\" can"
            )));
        }
    }
    Edm2Unet::new(Edm2Config::from_json(attributes.nested("config")?.object())?)
}

/// # Errors
/// Noise levels that are not positive numbers.
pub fn check_levels(sigma: &[f32]) -> Result<()> {
    match sigma.iter().find(|sigma| !(sigma.is_finite() && **sigma > 0.0)) {
        None => Ok(()),
        Some(sigma) => Err(Error::invalid(format!(
            "`sigma` is {sigma}; noise levels are standard deviations, finite and above 0"
        ))),
    }
}

/// The case's parameters as the network's weights and buffers, for images of a size.
fn weights(case: &ReferenceCase, network: &Edm2Unet, size: [usize; 2]) -> Result<Weights> {
    let given = case.parameters.iter();
    let mut given: Tensors = given.map(|(name, tensor)| (name.clone(), tensor.clone())).collect();
    given.take_weights(saved(network, size)?, &case.path)
}

fn image(shape: &[usize], name: &str) -> Result<[usize; 4]> {
    <[usize; 4]>::try_from(shape)
        .map_err(|_| Error::invalid(format!("`{name}` must be [B, C, H, W], not {shape:?}")))
}

/// `edm_heun`: `noise` → `x_0`, as `sample` runs it.
pub fn edm_heun(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let network = network(attributes)?;
    let default = Levels::default();
    let levels = Levels {
        steps: attributes.size("steps")?,
        sigma_min: attributes.number_or("sigma_min", default.sigma_min)?,
        sigma_max: attributes.number_or("sigma_max", default.sigma_max)?,
        rho: attributes.number_or("rho", default.rho)?,
    };
    attributes.refuse_unread(&case.op)?;
    // Which parameters it has, the network says.
    case.refuse_unless(|name| name == "input.noise" || name.starts_with("parameter."))?;
    let (shape, noise) = case.input_f32("noise")?;
    let nchw = image(shape, "noise")?;
    let [batch, _, height, width] = nchw;
    let table = heun(&levels, &Churn::default())?;
    let weights = weights(case, &network, [height, width])?;
    let shape = Shape { batch, size: [height, width] };
    let mut denoiser = Denoiser::new(&network, &weights, &table, shape, device)?;
    denoiser.start_from(&nchw_to_nhwc(noise, nchw), &vec![0; batch])?;
    let samples = denoiser.finish(&mut |_, _| Ok(()))?;
    let tensors = BTreeMap::from([("output.x_0".to_string(), nhwc_to_nchw(&samples, nchw))]);
    Ok(Produced { tensors, kernels: denoiser.engine().session().kernels() })
}

/// `power_ema`: `weights` [updates, …] → `ema` [stds, …].
pub fn power_ema(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let stds = attributes.numbers("stds")?;
    let batch = attributes.size("batch_size")? as f64;
    attributes.refuse_unread(&case.op)?;
    if stds.is_empty() {
        return Err(Error::invalid("the attribute `stds` is empty; a width at least is needed"));
    }
    case.refuse_unless(|name| name == "input.weights")?;
    let (shape, weights) = case.input_f32("weights")?;
    let updates = shape.first().copied().unwrap_or(0);
    if updates == 0 || weights.is_empty() {
        return Err(Error::invalid(format!("`weights` is {shape:?}; [updates, …] is needed")));
    }
    let each = weights.len() / updates;
    let mut g = Graph::new();
    let x = g.input("weights", TensorType::f32([each]))?;
    let state = g.input(STATE, state::ty())?;
    let average = g.input("average", TensorType::f32([each]))?;
    g.push_into(Accumulate::Average { decay: state::EMA_DECAY }, &[x, state], &[average])?;
    let mut engine = Engine::single(g, device)?;
    let mut averages = Vec::with_capacity(stds.len() * each);
    for &std in &stds {
        let gamma = exponent(std)?;
        engine.write(Region::State, "average", &weights[..each])?;
        for (update, weights) in weights.chunks_exact(each).enumerate() {
            let mut words = StepState::new(0);
            let seen = (update + 1) as f64 * batch;
            words.set_float(state::EMA_DECAY, decay(gamma, batch, seen) as f32);
            engine.write(Region::State, STATE, &words.words)?;
            engine.write(Region::State, "weights", weights)?;
            engine.run("run")?;
        }
        averages.extend(engine.read::<f32>(Region::State, "average")?);
    }
    let tensors = BTreeMap::from([("output.ema".to_string(), averages)]);
    Ok(Produced { tensors, kernels: engine.session().kernels() })
}

/// `training` with EDM2's loss: the network in training mode, weights forced to unit magnitude at
/// each step.
pub fn training(
    case: &ReferenceCase,
    attributes: &Attributes,
    device: &dyn Device,
) -> Result<Produced> {
    let network = network(attributes)?;
    if network.config().dropout != 0.0 {
        return Err(Error::invalid(format!(
            "the attribute `config` has dropout = {}, whose random numbers a case can't give; 0 can \
             be replayed",
            network.config().dropout
        )));
    }
    let settings = RunSettings::read(case, attributes)?;
    let RunSettings { steps, nchw, x0, noise, .. } = &settings;
    let batch = nchw[0];
    let (_, sigma) = case.input_f32("sigma")?;
    if sigma.len() != steps * batch {
        return Err(missing("sigma"));
    }
    check_levels(sigma)?;
    let process = EdmProcess::default();
    let objective = EdmDenoising { network: &network, process };
    let recipe = settings.recipe();
    let weights = weights(case, &network, recipe.size)?;
    let mut trainer = Trainer::with_objective(&objective, &weights, recipe, 0, device)?;
    if let Some(scale) = trainer.loss_scale() {
        // The reference has none, and a step that is skipped to find one would not be its step.
        trainer.set_loss_scale(LossScale { factor: 1.0, ..scale })?;
    }
    let size = x0.len() / steps;
    let mut losses = Vec::with_capacity(*steps);
    for step in 0..*steps {
        let part = step * size..(step + 1) * size;
        let x0 = nchw_to_nhwc(&x0[part.clone()], *nchw);
        let noise = nchw_to_nhwc(&noise[part], *nchw);
        let sigma = &sigma[step * batch..(step + 1) * batch];
        let inputs = [("x0", &x0[..]), ("noise", &noise), ("sigma", sigma)];
        let now = settings.step(step);
        losses.push(trainer.micro_batch_of(&now, 0, &inputs)?);
        trainer.update(&now)?;
    }
    after_run(case, trainer, losses)
}
