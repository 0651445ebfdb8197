//! `cyanea synth`: pictures to train on where there are none yet.

use super::fresh_folder::FreshFolder;
use super::interruption::Interruption;
use super::{output, progress};
use crate::Result;
use crate::data::synthetic::{self, MAX_SIZE, MIN_SIZE};
use crate::formats::picture::write_png;
use rayon::prelude::*;
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  cyanea synth --out jellyfish
  cyanea synth --out large --count 2000 --size 64 --seed 7

What comes out: OUT/00000.png, OUT/00001.png, …: 8-bit RGB, SIZE × SIZE pixels. Picture i depends
on seed, i and size alone, so a larger count adds pictures and keeps the ones before.";

/// Draw synthetic jellyfish as PNG files
///
/// Lion's mane jellyfish, drawn by a program: no two alike in pose, shape, stroke, colour,
/// distance, light and water. They are what `quickstart` trains on.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Folder to write to; made where missing, refused where it holds something
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Number of pictures
    #[arg(long, value_name = "N", default_value_t = 400, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: u32,
    /// Width and height in pixels, from 8 to 4096
    #[arg(long, value_name = "PIXELS", default_value_t = 32, allow_negative_numbers = true,
          value_parser = clap::value_parser!(u32).range(i64::from(MIN_SIZE)..=i64::from(MAX_SIZE)))]
    size: u32,
    /// Which collection: another seed draws other pictures
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
}

pub fn run(args: &Args, interruption: &Interruption) -> Result<()> {
    let folder = FreshFolder::create(&args.out)?;
    draw(folder.path(), args.seed, args.count, args.size, interruption)?;
    folder.keep();
    output::say_line(&format!(
        "{} pictures of {1}×{1} pixels in {2}",
        args.count,
        args.size,
        args.out.display()
    ))
}

/// Draws the first `count` pictures of a collection into a folder.
///
/// # Errors
/// A size out of range, what the operating system says, or an interruption.
pub fn draw(
    folder: &Path,
    seed: u64,
    count: u32,
    size: u32,
    interruption: &Interruption,
) -> Result<()> {
    let bar = progress::bar(count.into(), "drawing", "pictures");
    (0..count).into_par_iter().try_for_each(|index| {
        interruption.check()?;
        let picture = synthetic::render(seed, index.into(), size)?;
        write_png(&folder.join(format!("{index:05}.png")), &picture)?;
        bar.inc(1);
        Ok(())
    })?;
    bar.finish_and_clear();
    Ok(())
}
