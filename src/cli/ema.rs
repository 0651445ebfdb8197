//! `cyanea ema`: an average of any width from a run's snapshots.

use super::interruption::Interruption;
use super::{fresh_folder, output, progress};
use crate::formats::diffusers;
use crate::formats::run_folder::RunFolder;
use crate::models;
use crate::training::run::to_tensors;
use crate::training::{Config, averages};
use crate::{Error, Result};
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  cyanea train --preset ddpm-32 --data photos --out runs/photos \\
      --set training.ema_widths=[0.05,0.1] --set training.average_every=500
  cyanea ema runs/photos --std 0.075

What comes out: a model folder like that of `cyanea export`, for `cyanea sample --model`. A run keeps
snapshots of its averages where training.average_every is set; each is as large as the model, times
the number of training.ema_widths.";

/// Make the average of another width from a run's snapshots
///
/// The width of a power-function average is a share of the training (Karras et al. 2024,
/// arXiv:2312.02696): 0.05 remembers about the last twentieth. Which one is best is known after the
/// training only; from snapshots of two widths any other can be made, near the end exactly enough.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Run folder
    #[arg(value_name = "RUN")]
    run: PathBuf,
    /// Width of the average, as a share of the training, above 0 and below 0.2887
    #[arg(long, value_name = "WIDTH", allow_negative_numbers = true)]
    std: f64,
    /// Folder to write to; made where missing, refused where it holds something [default: ema-WIDTH in
    /// the run's folder]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Step at which the average ends [default: that of the last snapshot]
    #[arg(long, value_name = "STEP", allow_negative_numbers = true)]
    step: Option<u64>,
}

pub fn run(args: &Args, interruption: &Interruption) -> Result<()> {
    let folder = RunFolder::open(&args.run)?;
    let own = || folder.root().join(format!("ema-{}", args.std));
    let out = args.out.clone().unwrap_or_else(own);
    fresh_folder::check_free(&out)?;
    let config = Config::load(None, Some(&folder.config()), &[])?;
    let network = config.build_network()?;
    let size = [config.data.size.height, config.data.size.width];
    let mut snapshots = folder.all_averages()?;
    if let Some(step) = args.step {
        if !snapshots.iter().any(|(known, _)| *known == step) {
            let known: Vec<String> = snapshots.iter().map(|(step, _)| step.to_string()).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            let what = format!("there are no averages of step {step}; there are: {known}");
            return Err(Error::file(folder.root(), what));
        }
        snapshots.retain(|(known, _)| *known <= step);
    }
    let Some(&(last, _)) = snapshots.last() else {
        let what = "has no snapshots of averages; train with training.ema_widths and \
                    training.average_every";
        return Err(Error::file(folder.root(), what));
    };
    let paths: Vec<PathBuf> = snapshots.into_iter().map(|(_, path)| path).collect();
    let parameters = models::saved(network.as_ref(), size)?;
    let bar = progress::bar(paths.len() as u64, "adding", "snapshots");
    let weights = averages::reconstruct(&paths, args.std, &parameters, &mut |done, _| {
        bar.set_position(done as u64);
        interruption.check()
    })?;
    bar.finish_and_clear();
    diffusers::write(&out, &config.network(), &config.process(), &to_tensors(&weights))?;
    output::say_line(&format!(
        "{}: average of width {} at step {last}, snapshots used: {}",
        out.display(),
        args.std,
        paths.len()
    ))
}
