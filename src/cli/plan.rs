//! `cyanea plan`: what a network costs on a target, before anything runs.

use super::output;
use super::plan_figures::{self, Cost};
use super::precision::Wanted;
use super::prediction::{GENERAL, IDLE, Prediction, training_hours};
use super::settings::Settings;
use crate::Result;
use crate::device::{Target, open_by_name};
use crate::diffusion::denoiser;
use crate::graph::Plan;
use crate::training::config::Config;
use crate::training::objective::Task;
use crate::training::run::recipe;
use crate::training::trainer::{self, Recipe};

const EXAMPLES: &str = "\
Examples:
  cyanea plan --preset ddpm-64
  cyanea plan --preset ddpm-32 --batch 16 --json
  cyanea plan --config run.toml --target v100 --precision fp16
  cyanea plan --preset ddpm-64 --target v100 --batch 16 --epochs 10000 --images 667

What comes out: parameters; FLOPs (twice the multiplications of convolutions, products and
attention, whatever algorithm computes them), bytes that must move, and launches, each per step;
launches before the loop; memory (the arena lives inside a step; persistent memory outlives it: the
weights, what the optimizer keeps, tables and state); the largest tensors. A sampling step is one
network evaluation with the sampler's update, a training step one update of the weights with the
configuration's training.accumulate batches before it. Nothing runs and nothing is allocated, so a
target needs no GPU. The keys of --json carry their units in their names.

For v100, a100 and h100 a predicted time follows: for each launch of a sampling step the floor from
FLOPs at the chip's peak, the floor from bytes at the bandwidth of its memory, the gap to the next
launch of a CUDA graph, the larger floor and the gap added up, and its blocks, also as a share of the
multiprocessors; then the same by kernel for a training step, of which --json has each launch, too. In
float16, launches that multiply without tensor cores are marked *. In either precision launches that
move some tensor an element or a few at a time where their kernel has 16 bytes at a time for other
sizes (three channels or a stride ask for that) are marked ~. A prediction from data sheets, which
real kernels do not reach, and never a measurement.";

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
    /// Precision of activations and weights; fp16 is for the targets with kernels
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Wanted,
    /// With --images: also predict the hours of so many passes over the images
    #[arg(long, value_name = "N", requires = "images",
          value_parser = clap::value_parser!(u64).range(1..))]
    epochs: Option<u64>,
    /// Training images, for --epochs
    #[arg(long, value_name = "M", requires = "epochs",
          value_parser = clap::value_parser!(u64).range(1..))]
    images: Option<u64>,
    /// Print a JSON object instead of tables
    #[arg(long)]
    json: bool,
}

/// The programs of a sampling step and of a training step, of so many images.
pub(super) fn plans(config: &Config, batch: usize, target: &Target) -> Result<[Plan; 2]> {
    let task = Task::new(&config.network(), &config.process())?;
    let size = [config.data.size.height, config.data.size.width];
    let shape = denoiser::Shape { batch, size };
    let sampling = denoiser::plan(task.network(), &config.sampler_table()?, shape, target)?;
    let recipe = Recipe { batch, ..recipe(config) };
    let training = trainer::plan(task.objective().as_ref(), &recipe, target)?;
    Ok([sampling, training])
}

pub fn run(args: &Args, device: &str) -> Result<()> {
    let target = match &args.target {
        Some(name) => Target::named(name)?,
        None => open_by_name(device)?.target().clone(),
    };
    let target = target.with_precision(args.precision.into())?;
    let batch = args.batch as usize;
    let config = args.settings.load()?;
    let size = [config.data.size.height, config.data.size.width];
    let [sampling, training] = plans(&config, batch, &target)?;

    let parameters = plan_figures::parameters(&training);
    let accumulate = recipe(&config).accumulate;
    let (s, t) = (Cost::sampling(&sampling), Cost::training(&training, accumulate));
    let predicted = match target.is_cpu() && args.epochs.is_none() {
        true => None,
        false => {
            let step = plan_figures::training_step(accumulate);
            let sampling = Prediction::of(&sampling, plan_figures::SAMPLING_STEP, &target)?;
            Some((sampling, Prediction::of(&training, &step, &target)?))
        }
    };
    let hours = predicted.as_ref().zip(args.epochs.zip(args.images)).map(
        |((_, training), (epochs, images))| {
            let batch = (batch * accumulate) as u64;
            training_hours(training.microseconds(), epochs, images, batch)
        },
    );
    if args.json {
        let mut json = plan_figures::json(parameters, &s, &t);
        if let Some((sampling, training)) = &predicted {
            json["predicted_us_per_sampling_step"] = sampling.microseconds().into();
            json["predicted_us_per_training_step"] = training.microseconds().into();
            json["launches_without_tensor_cores_per_sampling_step"] =
                sampling.idle_launches().into();
            json["launches_without_tensor_cores_per_training_step"] =
                training.idle_launches().into();
            json["launches_element_by_element_per_sampling_step"] =
                sampling.general_launches().into();
            json["launches_element_by_element_per_training_step"] =
                training.general_launches().into();
            json["predicted_launches_of_sampling_step"] = sampling.json();
            json["predicted_launches_of_training_step"] = training.json();
        }
        if let Some(hours) = hours {
            json["predicted_training_hours"] = hours.into();
        }
        return output::say_line(&format!("{json:#}"));
    }
    let head = format!(
        "{}: {}×{} pixels, batch {batch}, target {}",
        args.settings.name(),
        size[0],
        size[1],
        target.name
    );
    let mut text = plan_figures::text(&head, parameters, &s, &t);
    if let Some((sampling, training)) = &predicted {
        text += &format!(
            "\npredicted floors of a sampling step (a prediction, not a measurement)\n{}\npredicted \
             floors of a training step, by kernel\n{}\npredicted at best: {:.1} µs a sampling step, \
             {:.1} µs a training step\n",
            sampling.launches(),
            training.by_kernel(),
            sampling.microseconds(),
            training.microseconds()
        );
        if sampling.idle_launches() + training.idle_launches() > 0 {
            text += &format!("{IDLE}\n");
        }
        if sampling.general_launches() + training.general_launches() > 0 {
            text += &format!("{GENERAL}\n");
        }
    }
    if let (Some(hours), Some(epochs), Some(images)) = (hours, args.epochs, args.images) {
        text += &format!(
            "predicted at best: {hours:.1} hours of training for {epochs} epochs of {images} images\n"
        );
    }
    output::say(&text)
}
