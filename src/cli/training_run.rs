//! What `train` and `quickstart` share: images in, a run that shows how far it is, a figure out.

use super::interruption::Interruption;
use super::{output, progress};
use crate::data::dataset::Dataset;
use crate::data::image_folder::{self, FolderOptions};
use crate::device::Device;
use crate::formats::run_folder::RunFolder;
use crate::training::Config;
use crate::training::run::{Event, Outcome, Run};
use crate::{Error, Result};
use indicatif::{HumanDuration, ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Images to train on, and those to measure on.
pub struct Images {
    pub training: Dataset,
    pub held_out: Dataset,
}

/// Reads the configuration's images and splits them.
///
/// # Errors
/// What [`image_folder::load`] refuses; one image alone.
pub fn load_images(config: &Config) -> Result<Images> {
    let data = &config.data;
    if data.path.as_os_str().is_empty() {
        return Err(Error::invalid(
            "there are no images to train on: give their folder with --data or data.path",
        ));
    }
    let mut options = FolderOptions::new(data.size.height as u32, data.size.width as u32);
    options.crop = data.crop;
    let bar = progress::bar(0, "reading", "images");
    let loaded = image_folder::load(&data.path, &options, &|done, of| {
        bar.set_length(of as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let loaded = loaded?;
    loaded.skipped.iter().for_each(|skipped| output::note(&format!("warning: {skipped}")));
    let dataset = match config.model.classes {
        0 => loaded.dataset,
        classes => loaded.dataset.with_classes(classes)?,
    };
    split(dataset, data.held_out, config.training.seed)
}

/// Splits images; few images give fewer to the measurement than the configuration says, and that
/// is told.
fn split(all: Dataset, wanted: usize, seed: u64) -> Result<Images> {
    let count = all.len();
    // One in eight, so that training keeps most of them.
    let most = (count / 8).max(1);
    if wanted == 0 || count == 1 {
        output::note(
            "note: no image is held out, so the held-out loss is measured on images of training",
        );
        return Ok(Images { held_out: all.clone(), training: all });
    }
    if wanted > most {
        output::note(&format!(
            "note: {most} of the {count} images are held out, not {wanted} (data.held_out), to \
             leave enough to train on"
        ));
    }
    let (training, held_out) = all.split(wanted.min(most), seed)?;
    Ok(Images { training, held_out })
}

/// Trains to the end in a run folder and prints the figure.
///
/// # Errors
/// As [`Run::new`] and [`Run::train`]; after an interruption says how to go on.
pub fn train(
    config: &Config,
    folder: &RunFolder,
    images: &Images,
    device: &dyn Device,
    resume: bool,
    interruption: &Interruption,
    started: impl FnOnce() -> Result<()>,
) -> Result<()> {
    let Images { training, held_out } = images;
    let run = Run::new(config, folder, training, held_out, device, resume)?;
    for error in run.passed_over() {
        output::note(&format!("warning: passed over, and replaced as the run goes on: {error}"));
    }
    if resume {
        output::note(&format!("note: going on from step {}", run.step()));
    }
    started()?;
    let mut display = Display::new();
    let outcome = run.train(&mut |event| {
        display.show(event);
        interruption.check()
    });
    display.bar.finish_and_clear();
    let root = folder.root().display();
    match outcome {
        Err(Error::Interrupted) => {
            output::note(&format!("saved; go on with: cyanea train --resume {root}"));
            Err(Error::Interrupted)
        }
        Err(error) => Err(error),
        Ok(Outcome { steps, seconds, held_out_loss }) => {
            // From a checkpoint, which may say anything.
            let seconds = if seconds.is_finite() { seconds.clamp(0.0, 1e9) } else { 0.0 };
            let took = HumanDuration(Duration::from_secs_f64(seconds));
            output::say(&format!(
                "trained {steps} steps in {took}\n\
                 held-out loss {held_out_loss:.4}\n\
                 samples {}\nmodel {}\n",
                folder.samples_png().display(),
                folder.model().display()
            ))
        }
    }
}

/// Parts of the whole run that the bar counts.
const PARTS: u64 = 10_000;

/// A bar where standard error is a terminal, else a line for each tenth of the run.
struct Display {
    bar: ProgressBar,
    /// Tenths told so far; `None` on a terminal.
    tenths: Option<u64>,
    start: Option<(Instant, f64)>,
    sampling: bool,
}

const TRAINING: &str = "training {wide_bar} {percent}%  {msg}";
const SAMPLING: &str = "sampling {wide_bar} {pos}/{len} steps, {eta} left";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars(progress::CHARACTERS)
}

impl Display {
    fn new() -> Display {
        Display {
            bar: ProgressBar::new(PARTS).with_style(style(TRAINING)),
            tenths: (!std::io::stderr().is_terminal()).then_some(0),
            start: None,
            sampling: false,
        }
    }

    fn show(&mut self, event: Event) {
        match event {
            Event::Step { step, loss, images_per_second, share, .. } => {
                if std::mem::take(&mut self.sampling) {
                    self.bar.set_style(style(TRAINING));
                    self.bar.set_length(PARTS);
                }
                // The first step also pays for warming up, and a resumed run begins in the middle.
                let (since, from) = *self.start.get_or_insert((Instant::now(), share));
                let left = match share - from {
                    done if done > 0.0 => {
                        let rest = since.elapsed().as_secs_f64() * (1.0 - share).max(0.0) / done;
                        format!(", {} left", clock(rest))
                    }
                    _ => String::new(),
                };
                let message =
                    format!("step {step}, loss {loss:.4}, {images_per_second:.0} images/s{left}");
                let tenth = (share * 10.0) as u64;
                if let Some(told) = self.tenths.as_mut().filter(|told| tenth > **told) {
                    *told = tenth;
                    output::note(&format!("{:3.0} %  {message}", 100.0 * share.min(1.0)));
                }
                self.bar.set_position((share.min(1.0) * PARTS as f64) as u64);
                self.bar.set_message(message);
            }
            Event::HeldOut { step, loss } => {
                let line = format!("step {step}: held-out loss {loss:.4}");
                match self.tenths {
                    Some(_) => output::note(&line),
                    None => self.bar.println(line),
                }
            }
            Event::Overflow { step, loss_scale } => {
                let line = format!(
                    "step {step}: a gradient overflowed in float16; the step is skipped, the loss \
                     scale is now {loss_scale}"
                );
                match self.tenths {
                    Some(_) => output::note(&line),
                    None => self.bar.println(line),
                }
            }
            Event::Saved { .. } => {}
            Event::Sampling { done, of } => {
                if !std::mem::replace(&mut self.sampling, true) {
                    self.bar.set_style(style(SAMPLING));
                }
                self.bar.set_length(of as u64);
                self.bar.set_position(done as u64);
            }
        }
    }
}

/// `3:07`, or `2:03:07`.
fn clock(seconds: f64) -> String {
    // Beyond that nobody counts.
    let seconds = seconds.clamp(0.0, 1e9) as u64;
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::synthetic::render_many;

    #[test]
    fn few_images_leave_most_to_training() {
        let images = |count| Dataset::from_images(render_many(0, count, 8).unwrap()).unwrap();
        for (count, wanted, training, held_out) in
            [(100, 10, 90, 10), (100, 64, 88, 12), (3, 64, 2, 1), (1, 64, 1, 1), (9, 0, 9, 9)]
        {
            let split = split(images(count), wanted, 5).unwrap();
            assert_eq!((split.training.len(), split.held_out.len()), (training, held_out));
        }
    }

    #[test]
    fn time_left_as_on_a_clock() {
        assert_eq!(clock(0.4), "0:00");
        assert_eq!(clock(187.9), "3:07");
        assert_eq!(clock(7387.0), "2:03:07");
        assert_eq!(clock(f64::INFINITY), "277777:46:40");
    }
}
