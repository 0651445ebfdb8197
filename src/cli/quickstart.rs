//! `cyanea quickstart`: from nothing to pictures in minutes.

use super::fresh_folder::FreshFolder;
use super::interruption::Interruption;
use super::{synth, training_run};
use crate::device::Device;
use crate::formats::atomic::create_folder;
use crate::formats::run_folder::RunFolder;
use crate::training::Config;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Synthetic pictures, those to measure on included.
const PICTURES: u32 = 512;

const EXAMPLES: &str = "\
Examples:
  cyanea quickstart
  cyanea quickstart --minutes 15 --seed 7 --out runs/longer
  cyanea quickstart --data photos --out runs/photos
  cyanea quickstart --model edm2 --out runs/edm2

What comes out: a run folder as of `cyanea train`. Look at samples.png (64 images from noise),
denoising.png and denoising.gif (how they came out of it). The last lines on standard output have
the held-out loss: the mean squared error of the predicted noise on 64 images that training never
saw; about 1 before training, 0.02 or less for pictures worth looking at. More images from the same
model: cyanea sample --model runs/quickstart --seeds 64-127 --out more.";

/// Train a small model on synthetic jellyfish and sample it, in about five minutes
///
/// Draws 512 pictures of 32×32 pixels, trains a U-Net of channels 32-48-64 (or an EDM2 U-Net of as many
/// FLOPs) for a given time, the learning rate annealed by then, and samples 64 images.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Network: ddpm (Ho et al. 2020) or edm2 (Karras et al. 2024), under the same DDPM process
    #[arg(long, value_name = "NAME", value_enum, default_value = "ddpm")]
    model: Model,
    /// Minutes of training; drawing and sampling take less than one more on two cores
    #[arg(long, value_name = "MINUTES", default_value_t = 4.25, allow_negative_numbers = true)]
    minutes: f64,
    /// Of pictures, weights, timesteps and noise
    #[arg(long, default_value_t = 0, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u64).range(..=i64::MAX as u64))]
    seed: u64,
    /// Run folder to write; made where missing, refused where it holds something
    #[arg(long, value_name = "DIR", default_value = "runs/quickstart")]
    out: PathBuf,
    /// Train on the images of this folder instead, scaled and cropped to 32×32 pixels
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Model {
    Ddpm,
    Edm2,
}

impl Model {
    fn preset(self) -> &'static str {
        match self {
            Model::Ddpm => "quickstart",
            Model::Edm2 => "quickstart-edm2",
        }
    }
}

pub fn run(args: &Args, device: &dyn Device, interruption: &Interruption) -> Result<()> {
    // A month, far beyond any quick start.
    if !(args.minutes > 0.0 && args.minutes <= 43_200.0) {
        return Err(Error::invalid(format!(
            "--minutes is {}; a number above 0 and up to 43200 is needed",
            args.minutes
        )));
    }
    let settings = [
        format!("training.minutes={:?}", args.minutes),
        format!("training.seed={}", args.seed),
        // One grid on the way is enough: each takes the time of a hundred steps of training.
        "training.sample_every=500".to_string(),
    ];
    let mut config = Config::load(Some(args.model.preset()), None, &settings)?;
    RunFolder::check_free(&args.out)?;
    let own = args.out.join("data");
    config.data.path = absolute(args.data.as_deref().unwrap_or(&own))?;
    let read = |config: &Config| training_run::load_images(config);
    // The user's images are read before anything is written.
    let given = args.data.is_some().then(|| read(&config)).transpose()?;
    interruption.check()?;
    let fresh = FreshFolder::create(&args.out)?;
    let folder = RunFolder::create(&args.out, &config.to_toml()?)?;
    let images = match given {
        Some(images) => images,
        None => {
            create_folder(&own)?;
            let size = config.data.size.width as u32;
            synth::draw(&own, args.seed, PICTURES, size, interruption)?;
            read(&config)?
        }
    };
    training_run::train(&config, &folder, &images, device, false, interruption, || {
        fresh.keep();
        Ok(())
    })
}

fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(|error| Error::io(path, error))
}
