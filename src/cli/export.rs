//! `cyanea export`: a checkpoint of a run as a model folder.

use super::{figures, fresh_folder, output};
use crate::formats::diffusers;
use crate::formats::run_folder::RunFolder;
use crate::graph::Region;
use crate::models;
use crate::training::Config;
use crate::training::checkpoint::Checkpoint;
use crate::training::run::to_tensors;
use crate::{Error, Result};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  cyanea export runs/photos --out model
  cyanea export runs/photos --checkpoint 12000 --no-ema --out early

What comes out: a model folder in diffusers' layout, which `cyanea sample --model` and
DDPMPipeline.from_pretrained load.";

/// Write a run's checkpoint as a diffusers model folder
///
/// Takes the averaged weights where the run has them. The newest checkpoint that can be read is
/// exported unless one is named.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Folder to write to; made where missing, refused where it holds something
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Step of the checkpoint [default: the newest]
    #[arg(long, value_name = "STEP", allow_negative_numbers = true)]
    checkpoint: Option<u64>,
    /// Take the weights themselves, not their moving average
    #[arg(long)]
    no_ema: bool,
}

pub fn run(args: &Args) -> Result<()> {
    fresh_folder::check_free(&args.out)?;
    let folder = RunFolder::open(&args.run)?;
    let config = Config::load(None, Some(&folder.config()), &[])?;
    let network = config.build_network()?;
    let size = [config.data.size.height, config.data.size.width];
    let parameters = models::saved(network.as_ref(), size)?;
    let (path, mut checkpoint) = match args.checkpoint {
        Some(step) => {
            let path = folder.checkpoint(step);
            let there = folder.checkpoints()?;
            if !there.iter().any(|(known, _)| *known == step) {
                let known: Vec<String> = there.iter().map(|(step, _)| step.to_string()).collect();
                let known = if known.is_empty() { "none".into() } else { known.join(", ") };
                let what = format!("there is no checkpoint of step {step}; there are: {known}");
                return Err(Error::file(folder.root(), what));
            }
            let content = Checkpoint::read(&path)?;
            (path, content)
        }
        None => {
            let found = folder.newest_checkpoint(Checkpoint::read)?;
            found.skipped.iter().for_each(|why| output::note(&format!("warning: {why}; skipped")));
            (found.path, found.content)
        }
    };
    let average = checkpoint.has_average() && !args.no_ema;
    let region = if average { Region::Ema(0) } else { Region::Weights };
    let weights = checkpoint.take(region, &parameters, &path)?;
    let trained = models::parameters(network.as_ref(), size)?;
    let count: usize = trained.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    diffusers::write(&args.out, &config.network(), &config.process(), &to_tensors(&weights))?;
    output::say_line(&format!(
        "{}: {} parameters of step {}, {}",
        args.out.display(),
        figures::grouped(count as u64),
        checkpoint.progress.step,
        if average { "averaged" } else { "not averaged" }
    ))
}
