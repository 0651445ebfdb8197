//! `cyanea import`: a model folder that diffusers wrote, checked and made canonical.

use super::{figures, fresh_folder, model_folder, output};
use crate::Result;
use crate::diffusion::Process;
use crate::formats::diffusers;
use crate::training::run::to_tensors;
use std::path::PathBuf;

const EXAMPLES: &str = "\
Examples:
  cyanea import downloaded/ddpm-cat-256
  cyanea import old-model --out model

Reads model_index.json, unet/ and scheduler/ (or an older folder with all files in its root), also
with the attention names of diffusers before 0.15 and with float16, bfloat16 or float64 weights.

What comes out: with --out a folder with today's names and float32 weights, which `cyanea sample`
and DDPMPipeline.from_pretrained load; without it nothing is written and the folder is only checked.";

/// Check a diffusers model folder and write it in canonical form
///
/// Checks that the configurations are supported, and that the weights are the ones the network
/// needs: every name, every shape, no NaN.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder to read
    #[arg(value_name = "DIR")]
    model: PathBuf,
    /// Folder to write to; made where missing, refused where it holds something
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<()> {
    if let Some(out) = &args.out {
        fresh_folder::check_free(out)?;
    }
    let checked = model_folder::load(&args.model)?;
    let model = &checked.model;
    let network = format!(
        "a U-Net of {} parameters, channels {:?}, predicting {}",
        figures::grouped(checked.parameters() as u64),
        model.unet.level_channels(),
        match &model.process {
            Process::Ddpm(config) => figures::plain(&config.prediction_type),
            Process::Edm(_) => "images at noise levels".into(),
        }
    );
    match &args.out {
        None => output::say_line(&format!("{}: {network}; all is well", args.model.display())),
        Some(out) => {
            let weights = to_tensors(&checked.weights);
            diffusers::write(out, &model.unet, &model.process, &weights)?;
            output::say_line(&format!("{}: {network}", out.display()))
        }
    }
}
