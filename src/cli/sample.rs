//! `cyanea sample`: images from a trained model.

use super::fresh_folder::FreshFolder;
use super::interruption::Interruption;
use super::model_folder::{self, Checked};
use super::precision::Wanted;
use super::{output, progress};
use crate::device::{Device, Numerics};
use crate::diffusion::Process;
use crate::diffusion::denoiser::{Denoiser, Shape, start_noise};
use crate::diffusion::edm::Levels;
use crate::diffusion::samplers::Sampler;
use crate::diffusion::seeds::{labels, parse_seeds};
use crate::formats::image_grid::write_grid;
use crate::formats::layout::{nchw_to_nhwc, nhwc_to_nchw};
use crate::formats::picture::Pictures;
use crate::formats::tensors::{Tensor, Tensors};
use crate::models::{Guided, Network, Weights};
use crate::training::config::Config;
use crate::{Error, Result};
use std::path::PathBuf;

/// The grid shows at most so many images; each has a file of its own anyway.
const MOST_IN_GRID: usize = 256;

const EXAMPLES: &str = "\
Examples:
  cyanea sample --model runs/quickstart --out samples
  cyanea sample --model ddpm-cifar10-32 --seeds 0-63 --sampler dpmpp-2m --steps 20 --out samples
  cyanea sample --model model --noise start.safetensors --raw --out samples
  cyanea sample --model model --labels 3 --guidance 2 --out threes

What comes out: OUT/samples.png, a grid of the images (the first 256), and each image as a PNG of
its own, named by its seed (with --noise by its number in the file). With --raw also
OUT/samples.safetensors: the float32 tensor `samples`, [N, C, H, W], -1 to 1, before conversion to
8 bits. An image depends on its seed, the model and the sampler alone, not on the other seeds or
the number of threads, nor on --batch; on devices with kernels its last bits do depend on --batch,
unless --batch-invariant is given.

A run folder samples as its config.toml says; a diffusers folder with ddim in 50 steps; options
replace either.";

/// Make images from a trained model
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Model: a diffusers folder, or a run folder with one in it
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Folder to write to; made where missing, refused where it holds something
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// One image for each seed: numbers and ranges, such as 0-63 or 1,5,9-12
    #[arg(long, value_name = "SEEDS")]
    seeds: Option<String>,
    /// Start from given noise: a safetensors file with a tensor `noise`, [N, C, H, W]; fresh noise
    /// of the sampler then comes from --seeds, or from 0, 1, 2, …
    #[arg(long, value_name = "FILE")]
    noise: Option<PathBuf>,
    /// Images computed at once: a matter of speed and memory
    #[arg(long, value_name = "N", allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// Sampler: ddpm, ddim or dpmpp-2m; of a model for noise levels, heun
    #[arg(long, value_name = "NAME")]
    sampler: Option<String>,
    /// Steps an image, at most the timesteps of training; each is a network evaluation, or two with heun
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    steps: Option<usize>,
    /// Classes of the images, written like seeds, or one for all, of a model that was trained with
    /// labels [default: one class after another]
    #[arg(long, value_name = "LABELS", allow_negative_numbers = true)]
    labels: Option<String>,
    /// How far to follow the label, or the difference to --guide: 1 not at all, 2 twice as far
    #[arg(long, value_name = "AMOUNT", allow_negative_numbers = true)]
    guidance: Option<f64>,
    /// A weaker model to be led away from, instead of the same one without its label
    #[arg(long, value_name = "DIR", requires = "guidance")]
    guide: Option<PathBuf>,
    /// Share of fresh noise in ddim, from 0 (none) to 1 (as much as ddpm)
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    eta: Option<f64>,
    /// Height and width in pixels, as 64 or 48x80 [default: the model's]
    #[arg(long, value_name = "SIZE")]
    size: Option<String>,
    /// Another setting of [sampling], as sampling.rho=5; `cyanea config` lists them; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Also write the images before conversion to 8 bits, as samples.safetensors [N, C, H, W]; images
    /// that are neither grey nor RGB, as latents, can be written only so
    #[arg(long)]
    raw: bool,
    /// Precision of activations and weights; fp16 needs a device with kernels
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Wanted,
    /// Make an image the same to the bit in any --batch on devices with kernels too, which costs
    /// speed; cpu does so anyway
    #[arg(long)]
    batch_invariant: bool,
}

impl Args {
    pub fn numerics(&self) -> Numerics {
        Numerics { precision: self.precision.into(), batch_invariant: self.batch_invariant }
    }
}

/// What each image starts from.
struct Starts {
    seeds: Vec<u64>,
    labels: Vec<Option<usize>>,
    /// [N, H, W, C], where it is given.
    noise: Option<Vec<f32>>,
    /// Names of the images' files.
    names: Vec<String>,
}

pub fn run(args: &Args, device: &dyn Device, interruption: &Interruption) -> Result<()> {
    super::fresh_folder::check_free(&args.out)?;
    let checked = model_folder::load(&args.model)?;
    let settings = settings(args, &checked)?;
    let table = settings.sampling.table(&checked.model.process)?;
    let size = size(args, &checked)?;
    let (network, weights) = guided(args, checked)?;
    let channels = network.channels()[0];
    let shown = channels == 1 || channels == 3;
    if !(shown || args.raw) {
        return Err(Error::file(
            &args.model,
            format!(
                "makes images of {channels} channels; 1 (grey) or 3 (RGB) can be shown, and --raw writes \
                 any as numbers"
            ),
        ));
    }
    network.check_size(size[0], size[1])?;
    let classes = network.classes();
    let starts = starts(args, &settings, classes, [channels, size[0], size[1]])?;
    let count = starts.seeds.len();
    let wanted = args.batch.map_or(settings.sampling.batch, |batch| batch as usize);
    let batch = wanted.min(count);
    let shape = Shape { batch, size };
    let mut denoiser = Denoiser::new(network.as_ref(), &weights, &table, shape, device)?;

    let folder = FreshFolder::create(&args.out)?;
    let evaluations = (count.div_ceil(batch) * table.len()) as u64;
    let bar = progress::bar(evaluations, "sampling", "steps");
    let mut kept = Vec::new();
    let each = size[0] * size[1] * channels;
    for first in (0..count).step_by(batch) {
        let here = batch.min(count - first);
        begin(&mut denoiser, &starts, first, batch, [size[0], size[1], channels])?;
        let mut samples = denoiser.finish(&mut |_, _| {
            bar.inc(1);
            interruption.check()
        })?;
        samples.truncate(here * each);
        if shown {
            let pictures = Pictures::from_values(&samples, here, size[0], size[1], channels)?;
            let name = |index| format!("{}.png", starts.names[first + index]);
            pictures.write_each(folder.path(), name)?;
        }
        let room = if args.raw { count } else { MOST_IN_GRID };
        kept.extend_from_slice(&samples[..each * here.min(room.saturating_sub(first))]);
    }
    if shown {
        let first = count.min(MOST_IN_GRID);
        let grid = Pictures::from_values(&kept[..first * each], first, size[0], size[1], channels)?;
        write_grid(&folder.path().join("samples.png"), &grid)?;
    }
    if args.raw {
        let values = nhwc_to_nchw(&kept, [count, channels, size[0], size[1]]);
        let mut tensors = Tensors::new();
        tensors.insert("samples", Tensor::f32([count, channels, size[0], size[1]], values));
        tensors.write(folder.path().join("samples.safetensors"))?;
    }
    bar.finish_and_clear();
    folder.keep();
    output::say_line(&format!(
        "{count} images of {}×{} pixels in {}",
        size[0],
        size[1],
        args.out.display()
    ))
}

/// Those of a run folder, or the defaults.
fn settings(args: &Args, checked: &Checked) -> Result<Config> {
    let (model, process) = (&args.model, &checked.model.process);
    let file = model.join("config.toml");
    let own = file.is_file() && model_folder::locate(model) != model.as_path();
    if let Some(other) = args.set.iter().find(|text| !text.starts_with("sampling.")) {
        let what =
            format!("--set {other} is no setting of [sampling], the only ones that matter here");
        return Err(Error::invalid(what));
    }
    let mut sets = Vec::new();
    if matches!(process, Process::Edm(_)) && !own {
        let steps = format!("sampling.steps={}", Levels::default().steps);
        let others = ["model.kind=edm2", "diffusion.process=edm", "sampling.sampler=heun", &steps];
        sets.extend(others.map(String::from));
    }
    sets.extend_from_slice(&args.set);
    let mut settings = Config::load(None, own.then_some(file.as_path()), &sets)?;
    let sampling = &mut settings.sampling;
    if let Process::Ddpm(scheduler) = process {
        sampling.steps = sampling.steps.min(scheduler.num_train_timesteps);
    }
    if let Some(name) = &args.sampler {
        sampling.sampler = name.parse()?;
    }
    sampling.steps = args.steps.unwrap_or(sampling.steps);
    if let Some(eta) = args.eta {
        if sampling.sampler != Sampler::Ddim {
            let what = format!(
                "--eta {eta} is for ddim, not for {}; leave it out",
                sampling.sampler.name()
            );
            return Err(Error::invalid(what));
        }
        sampling.eta = eta;
    }
    if let Some(labels) = &args.labels {
        sampling.labels.clone_from(labels);
    }
    Ok(settings)
}

/// The network, or where guidance is asked for the network with its guide.
fn guided(args: &Args, checked: Checked) -> Result<(Box<dyn Network>, Weights)> {
    let Some(amount) = args.guidance else { return Ok((checked.network, checked.weights)) };
    let (guide, of_guide) = match &args.guide {
        None => (None, None),
        Some(folder) => {
            let guide = model_folder::load(folder)?;
            if !guide.model.process.agrees_with(&checked.model.process)? {
                let what = "was trained for another process than the model that it is to guide; \
                            timesteps, betas and prediction must be the same";
                return Err(Error::file(folder, what));
            }
            (Some(guide.network), Some(guide.weights))
        }
    };
    let network = Guided::new(checked.network, guide, amount)?;
    Ok((Box::new(network), Guided::weights(checked.weights, of_guide)))
}

fn size(args: &Args, checked: &Checked) -> Result<[usize; 2]> {
    let Some(text) = &args.size else {
        return checked.model.unet.sample_size().ok_or_else(|| {
            Error::file(
                &args.model,
                "its configuration has no sample_size; give the size with --size",
            )
        });
    };
    let sides: Vec<Option<usize>> = text.split('x').map(|side| side.trim().parse().ok()).collect();
    match sides[..] {
        [Some(side)] if (1..=8192).contains(&side) => Ok([side, side]),
        [Some(height), Some(width)]
            if (1..=8192).contains(&height) && (1..=8192).contains(&width) =>
        {
            Ok([height, width])
        }
        _ => Err(Error::invalid(format!(
            "--size {text} is no size; write a number of pixels from 1 to 8192, or HEIGHTxWIDTH"
        ))),
    }
}

fn starts(
    args: &Args,
    settings: &Config,
    classes: usize,
    [channels, height, width]: [usize; 3],
) -> Result<Starts> {
    let labels = |count| labels(&settings.sampling.labels, classes, count);
    let seeds = args.seeds.as_deref().map(parse_seeds).transpose()?;
    let Some(path) = &args.noise else {
        let seeds = match seeds {
            Some(seeds) => seeds,
            None => parse_seeds(&settings.sampling.seeds)?,
        };
        let names = names(&seeds);
        let labels = labels(seeds.len())?;
        return Ok(Starts { seeds, labels, noise: None, names });
    };
    let mut tensors = Tensors::read(path)?;
    let shape = tensors.get("noise").map(|tensor| tensor.shape.clone()).unwrap_or_default();
    let count = match shape[..] {
        [count, ..] if count > 0 => count,
        _ => 1,
    };
    let values = tensors.take_f32("noise", &[count, channels, height, width], path)?;
    if let Some(index) = values.iter().position(|value| !value.is_finite()) {
        let what = format!("the tensor `noise` is NaN or infinite at element {index}");
        return Err(Error::file(path, what));
    }
    let numbers: Vec<u64> = (0..count as u64).collect();
    let names = names(&numbers);
    let seeds = seeds.unwrap_or(numbers);
    if seeds.len() != count {
        return Err(Error::file(
            path,
            format!("has noise for {count} images, but --seeds names {}", seeds.len()),
        ));
    }
    let noise = Some(nchw_to_nhwc(&values, [count, channels, height, width]));
    Ok(Starts { seeds, labels: labels(count)?, noise, names })
}

/// As wide as the largest needs, so that a listing has them in order.
fn names(numbers: &[u64]) -> Vec<String> {
    let width = numbers.iter().max().map_or(0, |most| most.to_string().len()).max(5);
    numbers.iter().map(|number| format!("{number:0width$}")).collect()
}

/// Begins the batch whose first image is `first`; a short last batch is filled up with repetitions
/// of its last image.
fn begin(
    denoiser: &mut Denoiser,
    starts: &Starts,
    first: usize,
    batch: usize,
    [height, width, channels]: [usize; 3],
) -> Result<()> {
    let last = starts.seeds.len() - 1;
    let members: Vec<usize> = (first..first + batch).map(|index| index.min(last)).collect();
    let seeds: Vec<u64> = members.iter().map(|&index| starts.seeds[index]).collect();
    let each = height * width * channels;
    let noise: Vec<f32> = match &starts.noise {
        Some(noise) => {
            members.iter().flat_map(|&i| noise[i * each..(i + 1) * each].iter().copied()).collect()
        }
        None => {
            seeds.iter().flat_map(|&seed| start_noise(seed, [height, width, channels])).collect()
        }
    };
    let labels: Vec<Option<usize>> = members.iter().map(|&index| starts.labels[index]).collect();
    denoiser.set_labels(&labels)?;
    denoiser.start_from(&noise, &seeds)
}
