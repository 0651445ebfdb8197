//! `cyanea plan`: what a network costs on a target, before anything runs.

use super::output;
use super::plan_figures::{self, Cost};
use super::settings::Settings;
use crate::Result;
use crate::device::{Target, open_by_name};
use crate::diffusion::{denoiser, samplers};
use crate::models::DdpmUnet;
use crate::training::run::recipe;
use crate::training::trainer::{self, Recipe};

const EXAMPLES: &str = "\
Examples:
  cyanea plan --preset ddpm-64
  cyanea plan --preset ddpm-32 --batch 16 --json
  cyanea plan --config run.toml --target v100

What comes out: parameters; FLOPs (twice the multiplications of convolutions, products and
attention, whatever algorithm computes them), bytes that must move, and launches, each per step;
launches before the loop; memory (the arena lives inside a step; persistent memory outlives it: the
weights, what the optimizer keeps, tables and state); the largest tensors. A sampling step is one
network evaluation with the sampler's update, a training step one update of the weights with the
configuration's training.accumulate batches before it. Nothing runs and nothing is allocated, so a
target needs no GPU. The keys of --json carry their units in their names.";

/// Print parameters, FLOPs, memory and launches of a network without running it
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Images sampled at once, and images of one training batch
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// What to plan for: cpu, v100, a100 or h100; by default that of --device
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// Print a JSON object instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, device: &str) -> Result<()> {
    let target = match &args.target {
        Some(name) => Target::named(name)?,
        None => open_by_name(device)?.target().clone(),
    };
    let batch = args.batch as usize;
    let config = args.settings.load()?;
    let network = DdpmUnet::new(config.unet())?;
    let sampling = &config.sampling;
    let scheduler = config.scheduler();
    let clip = sampling.clip.then_some(1.0);
    let table = samplers::table(&scheduler, sampling.sampler, sampling.steps, sampling.eta, clip)?;
    let size = [config.data.size.height, config.data.size.width];
    let shape = denoiser::Shape { batch, size };
    let sampling = denoiser::plan(&network, &table, shape, &target)?;
    let recipe = Recipe { batch, ..recipe(&config) };
    let training = trainer::plan(&network, scheduler.num_train_timesteps, &recipe, &target)?;

    let parameters = plan_figures::parameters(&training);
    let (s, t) = (Cost::sampling(&sampling), Cost::training(&training, recipe.accumulate));
    if args.json {
        return output::say_line(&format!("{:#}", plan_figures::json(parameters, &s, &t)));
    }
    let head = format!(
        "{}: {}×{} pixels, batch {batch}, target {}",
        args.settings.name(),
        size[0],
        size[1],
        target.name
    );
    output::say(&plan_figures::text(&head, parameters, &s, &t))
}
