//! How large activations grow while a run trains: for each of its checkpoints the largest magnitude that any
//! module of a level puts out, on the run's held-out images, as one JSON object a line.
//!
//! ```sh
//! cargo bench --bench activations -- runs/a [DEVICE [fp16]] > activations.jsonl
//! scripts/plot-losses.py --activations activations.jsonl …
//! ```
//! Levels are those that an EDM2 network names (`16x16`); the rest of the network is `outside`.

use cyanea::device::{Precision, TensorType, open_by_name_with};
use cyanea::diffusion::{NoiseSchedule, Process};
use cyanea::formats::layout::nchw_to_nhwc;
use cyanea::formats::run_folder::RunFolder;
use cyanea::formats::tensors::Tensors;
use cyanea::graph::{Build, Engine, Graph, Rate, Region};
use cyanea::models::{Given, saved, write_tables};
use cyanea::training::Config;
use cyanea::training::checkpoint::Checkpoint;
use cyanea::{Error, Result};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Held-out images that are looked at, spread over all timesteps.
const IMAGES: usize = 8;

fn main() -> Result<()> {
    // Cargo adds `--bench` to what it is given.
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let [run, rest @ ..] = &args[..] else {
        return Err(Error::invalid("usage: activations RUN [DEVICE [fp16]]"));
    };
    let device = rest.first().map_or("cpu", String::as_str);
    let precision = match rest.get(1).map(String::as_str) {
        Some("fp16") => Precision::Fp16,
        _ => Precision::Fp32,
    };
    let device = open_by_name_with(device, precision)?;
    let folder = RunFolder::open(Path::new(run))?;
    let config = Config::load(None, Some(&folder.config()), &[])?;
    let network = config.build_network()?;
    let Process::Ddpm(scheduler) = config.process() else {
        let what = "the run's process has noise levels; this looks at runs with timesteps";
        return Err(Error::invalid(what));
    };
    let schedule = NoiseSchedule::new(&scheduler)?;

    let path = folder.held_out();
    let held_out = Tensors::read(&path)?;
    let missing = || Error::file(&path, "is no file of held-out images");
    let tensor = |name: &str| held_out.get(name).ok_or_else(missing);
    let (x0, noise) = (tensor("x0")?, tensor("noise")?);
    let nchw = <[usize; 4]>::try_from(&x0.shape[..]).map_err(|_| missing())?;
    let [count, channels, height, width] = nchw;
    let timesteps = tensor("timesteps")?.to_i64().ok_or_else(missing)?;
    let x0 = nchw_to_nhwc(&x0.to_f32().ok_or_else(missing)?, nchw);
    let noise = nchw_to_nhwc(&noise.to_f32().ok_or_else(missing)?, nchw);
    let size = channels * height * width;
    let (mut x, mut times) = (Vec::new(), Vec::new());
    for index in (0..IMAGES).map(|index| index * (count - 1) / (IMAGES - 1)) {
        let (image, share) = schedule.shares(timesteps[index] as usize)?;
        let part = index * size..(index + 1) * size;
        x.extend(x0[part.clone()].iter().zip(&noise[part]).map(|(x, z)| image * x + share * z));
        times.push(timesteps[index] as f32);
    }

    let mut g = Graph::new();
    let input = g.input("x", TensorType::f32([IMAGES, height, width, channels]))?;
    let told = g.slot(Region::State, "timesteps", TensorType::f32([IMAGES]), Rate::Step)?;
    network.build(&mut g, input, Given::times(told))?;
    let named = g.named.clone();
    for (path, tensor) in &named {
        let ty = g.ty(*tensor).clone();
        let slot = g.input(&format!("result.{path}"), ty)?;
        g.bind(*tensor, slot)?;
    }
    let mut engine = Engine::single(g, device.as_ref())?;
    write_tables(network.as_ref(), &mut engine)?;
    engine.write(Region::State, "x", &x)?;
    engine.write(Region::State, "timesteps", &times)?;
    let parameters = saved(network.as_ref(), [height, width])?;
    for (step, path) in folder.checkpoints()? {
        Checkpoint::read(&path)?.take(Region::Weights, &parameters, &path)?.write(&mut engine)?;
        engine.run("run")?;
        let mut largest: Map<String, Value> = Map::new();
        for (path, _) in &named {
            let values: Vec<f32> = engine.read(Region::State, &format!("result.{path}"))?;
            let here = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
            let level = level_of(path);
            let known = largest.get(&level).and_then(Value::as_f64).unwrap_or(0.0);
            largest.insert(level, json!(known.max(f64::from(here))));
        }
        println!("{}", json!({ "step": step, "largest": largest }));
    }
    Ok(())
}

/// `16x16` of `unet.enc.16x16_block0.conv_res0`.
fn level_of(path: &str) -> String {
    let level = path.split('.').find_map(|part| {
        let (level, _) = part.split_once('_')?;
        let (a, b) = level.split_once('x')?;
        (a == b && a.parse::<usize>().is_ok()).then(|| level.to_string())
    });
    level.unwrap_or_else(|| "outside".into())
}
