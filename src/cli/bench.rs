//! `cyanea bench`: how long a sampling step and a training step take.

use super::output;
use super::precision::Wanted;
use super::settings::Settings;
use super::timing::Timing;
use crate::Result;
use crate::device::cpu::Cpu;
use crate::device::{Device, Precision, open_by_name_with};
use crate::diffusion::denoiser::{Denoiser, Shape, start_noise};
use crate::models::{Network, Weights};
use crate::training::config::Config;
use crate::training::init::initial;
use crate::training::objective::Task;
use crate::training::run::recipe;
use crate::training::trainer::{Recipe, StepSettings, Trainer};
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  cyanea bench step --preset ddpm-32
  cyanea bench step --preset ddpm-64 --batch 1 --json
  cyanea bench train --preset ddpm-32 --batch 16

The PyTorch side of the comparison is in benches/peers/. Look at the load of the machine first:
whatever else runs is measured too.";

const WHAT_COMES_OUT: &str = "\
What comes out: the median (p50) and the 95th percentile (p95) of the repetitions, in milliseconds
a step, and the launches of a step as the device counted them. --json prints an object with p50_ms,
p95_ms, samples_ms (each repetition), launches, and what was measured.";

/// Measure a sampling step or a training step
///
/// A step is what a run repeats: for sampling the network and the sampler's update, for training
/// the network there and back and the optimizer. Weights are random, images noise.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Measure a sampling step: network evaluation and sampler's update
    #[command(after_help = WHAT_COMES_OUT)]
    Step(Measured),
    /// Measure a training step: network there and back, and the optimizer
    #[command(after_help = WHAT_COMES_OUT)]
    Train(Measured),
}

#[derive(Debug, clap::Args)]
struct Measured {
    #[command(flatten)]
    settings: Settings,
    /// Images at once [default: 1 for step, training.batch_size for train]
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// Steps before the first that is measured
    #[arg(long, value_name = "N", default_value_t = 5, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    warmup: u32,
    /// Steps that are measured
    #[arg(long, value_name = "N", default_value_t = 30, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    repetitions: u32,
    /// Precision of activations and weights; fp16 needs a device with kernels
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Wanted,
    /// Print a JSON object instead of a line
    #[arg(long)]
    json: bool,
}

impl Measured {
    /// Warm-up and repetitions.
    fn counts(&self) -> [usize; 2] {
        [self.warmup as usize, self.repetitions as usize]
    }
}

pub fn run(args: &Args, device: &str) -> Result<()> {
    let (What::Step(measured) | What::Train(measured)) = &args.what;
    let device = open_by_name_with(device, Precision::from(measured.precision))?;
    match &args.what {
        What::Step(measured) => step(measured, device.as_ref()),
        What::Train(measured) => train(measured, device.as_ref()),
    }
}

fn step(args: &Measured, device: &dyn Device) -> Result<()> {
    let config = args.settings.load()?;
    let (network, weights) = network(&config)?;
    let batch = args.batch.map_or(1, |batch| batch as usize);
    let table = config.sampler_table()?;
    let shape = Shape { batch, size: size(&config) };
    let mut denoiser = Denoiser::new(network.as_ref(), &weights, &table, shape, device)?;
    let seeds: Vec<u64> = (0..batch as u64).collect();
    denoiser.start(&seeds)?;
    let restart = |run: &mut Run| {
        if run.left == 0 {
            run.denoiser.start(&seeds)?;
            run.left = run.denoiser.steps();
        }
        run.left -= 1;
        run.before = run.launches();
        Ok(())
    };
    let mut run = Run { left: denoiser.steps(), before: 0, denoiser };
    let timing = Timing::measure(args.counts(), &mut run, restart, |run| run.denoiser.step())?;
    report(args, "step", batch, device, &timing, run.launches() - run.before)
}

/// A sampling run that begins again when it is over.
struct Run {
    denoiser: Denoiser,
    left: usize,
    /// Launches in front of the last step.
    before: u64,
}

impl Run {
    fn launches(&self) -> u64 {
        self.denoiser.engine().session().launches()
    }
}

fn train(args: &Measured, device: &dyn Device) -> Result<()> {
    let config = args.settings.load()?;
    let task = Task::new(&config.network(), &config.process())?;
    let batch = args.batch.map_or(config.training.batch_size, |batch| batch as usize);
    let recipe = Recipe { batch, ..recipe(&config) };
    let seed = config.training.seed;
    let weights = initial(task.network(), size(&config), seed)?;
    let [height, width] = size(&config);
    let x0: Vec<f32> = (0..batch as u64)
        .flat_map(|index| start_noise(index, [height, width, task.network().channels()[0]]))
        .map(|value| value.clamp(-1.0, 1.0))
        .collect();
    let objective = task.objective();
    let drawn = objective.draw(seed, 0..batch as u64);
    let mut inputs: Vec<(&str, &[f32])> = vec![("x0", &x0)];
    inputs.extend(drawn.iter().map(|(name, values)| (*name, &values[..])));
    let settings = StepSettings {
        step: 0,
        learning_rate: config.training.learning_rate,
        ema_decays: [config.training.ema_decay; 4],
    };
    let trainer = Trainer::with_objective(objective.as_ref(), &weights, recipe, seed, device)?;
    drop(weights);
    let mut run = Training { trainer, settings, before: 0 };
    let begin = |run: &mut Training| {
        run.before = run.trainer.engine().session().launches();
        Ok(())
    };
    let timing = Timing::measure(args.counts(), &mut run, begin, |run| {
        for index in 0..run.trainer.recipe().accumulate {
            run.trainer.micro_batch_of(&run.settings, index, &inputs)?;
        }
        run.trainer.update(&run.settings)?;
        run.settings.step += 1;
        Ok(())
    })?;
    let launches = run.trainer.engine().session().launches() - run.before;
    report(args, "train", batch, device, &timing, launches)
}

struct Training {
    trainer: Trainer,
    settings: StepSettings,
    /// Launches in front of the last step.
    before: u64,
}

/// The network of a configuration with random weights.
fn network(config: &Config) -> Result<(Box<dyn Network>, Weights)> {
    let network = config.build_network()?;
    let weights = initial(network.as_ref(), size(config), config.training.seed)?;
    Ok((network, weights))
}

fn size(config: &Config) -> [usize; 2] {
    [config.data.size.height, config.data.size.width]
}

fn report(
    args: &Measured,
    what: &str,
    batch: usize,
    device: &dyn Device,
    timing: &Timing,
    launches: u64,
) -> Result<()> {
    let (p50, p95) = (timing.percentile(0.50), timing.percentile(0.95));
    let cpu = Cpu::shared();
    if args.json {
        let all = json!({
            "bench": what,
            "engine": format!("cyanea {}", env!("CARGO_PKG_VERSION")),
            "model": args.settings.name(),
            "batch": batch,
            "device": device.name(),
            "precision": args.precision.name(),
            "threads": cpu.threads(),
            "simd": format!("{:?}", cpu.simd()).to_lowercase(),
            "p50_ms": p50,
            "p95_ms": p95,
            "samples_ms": timing.samples,
            "launches": launches,
        });
        return output::say_line(&Value::to_string(&all));
    }
    output::say_line(&format!(
        "{what}, {}, batch {batch}, {} in {} with {} threads: p50 {p50:.2} ms, p95 {p95:.2} ms, \
         {launches} launches",
        args.settings.name(),
        device.name(),
        args.precision.name(),
        cpu.threads()
    ))
}
