//! `cyanea train`: a model from a folder of images.

use super::fresh_folder::FreshFolder;
use super::interruption::Interruption;
use super::precision::Wanted;
use super::settings::Settings;
use super::training_run;
use crate::Result;
use crate::device::Device;
use crate::formats::atomic::write_atomic;
use crate::formats::run_folder::RunFolder;
use crate::training::Config;
use std::io::Write;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  cyanea train --preset ddpm-32 --data photos --out runs/photos
  cyanea train --config run.toml --set training.steps=50000 --out runs/long
  cyanea train --resume runs/photos
  cyanea train --resume runs/photos --set training.steps=40000

Images are PNG, JPEG, WebP, BMP or TIFF, searched recursively; what can't be read is named and
skipped. `cyanea config` prints all settings, `cyanea plan` the memory that they need.

What comes out: a run folder with config.toml (every setting as used), metrics.jsonl, metrics.csv
and tensorboard/ (loss, rates, images a second), checkpoints/, samples/ (grids during training),
held_out.safetensors, and at the end samples.png, denoising.png, denoising.gif and model/, which
`cyanea sample` and diffusers load. Ctrl-C saves and stops with exit code 130; --resume goes on as
if nothing had happened.";

/// Train a model on a folder of images
///
/// Settings are checked before images are read. The same settings, images and device give the same
/// model to the bit, whatever the number of threads, and also when the run was interrupted.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// Folder of images; replaces data.path
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Run folder to write; made where missing, refused where it holds something
    #[arg(long, value_name = "DIR", required_unless_present = "resume")]
    out: Option<PathBuf>,
    /// Go on with the run in this folder, with its own settings; --set changes single ones
    #[arg(long, value_name = "RUN", conflicts_with_all = ["out", "preset", "config"])]
    resume: Option<PathBuf>,
    /// Precision of activations and weights; fp16 needs a device with kernels
    #[arg(long, value_enum, default_value = "fp32")]
    pub precision: Wanted,
}

/// `device` opens the device, after the settings were checked.
pub fn run(
    args: &Args,
    device: impl FnOnce() -> Result<Box<dyn Device>>,
    interruption: &Interruption,
) -> Result<()> {
    if let Some(root) = &args.resume {
        return resume(args, root, device()?.as_ref(), interruption);
    }
    let out = args.out.as_deref().unwrap_or(Path::new(""));
    let mut config = args.settings.load()?;
    set_data(&mut config, args.data.as_deref())?;
    config.require_images()?;
    RunFolder::check_free(out)?;
    let device = device()?;
    let images = training_run::load_images(&config)?;
    interruption.check()?;
    // Gone again unless training begins.
    let fresh = FreshFolder::create(out)?;
    let folder = RunFolder::create(out, &config.to_toml()?)?;
    let device = device.as_ref();
    training_run::train(&config, &folder, &images, device, false, interruption, || {
        fresh.keep();
        Ok(())
    })
}

fn resume(
    args: &Args,
    root: &Path,
    device: &dyn Device,
    interruption: &Interruption,
) -> Result<()> {
    let folder = RunFolder::open(root)?;
    let was = Config::load(None, Some(&folder.config()), &[])?;
    let mut config = args.settings.load_from(&folder.config())?;
    config.check_continues(&was)?;
    set_data(&mut config, args.data.as_deref())?;
    let images = training_run::load_images(&config)?;
    // Written once the checkpoint was found to fit: a refusal leaves the run as it was.
    let text = config.to_toml()?;
    training_run::train(&config, &folder, &images, device, true, interruption, || {
        write_atomic(folder.config(), |out| out.write_all(text.as_bytes()))
    })
}

/// Images of the option, as an absolute path, so that the run can go on from anywhere.
fn set_data(config: &mut Config, data: Option<&Path>) -> Result<()> {
    if let Some(data) = data {
        config.data.path = data.to_path_buf();
    }
    if !config.data.path.as_os_str().is_empty()
        && let Ok(absolute) = std::path::absolute(&config.data.path)
    {
        config.data.path = absolute;
    }
    Ok(())
}
