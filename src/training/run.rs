//! A training run from its first step to its pictures.

use super::averages;
use super::checkpoint::{self, Checkpoint, Progress};
use super::config::{Config, NonFinite};
use super::held_out::{Evaluator, HeldOut};
use super::init::initial;
use super::lr_schedule::Decay;
use super::objective::{Task, drop_labels};
use super::pictures::Gallery;
use super::power_ema::{decay, exponent};
use super::trainer::{NoiseSource, Recipe, StepSettings, Trainer};
use crate::data::dataset::Dataset;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::formats::diffusers;
use crate::formats::metrics::Metrics;
use crate::formats::run_folder::RunFolder;
use crate::formats::tensors::{Tensor, Tensors};
use crate::graph::Region;
use crate::models::{Weights, one_hot, parameters, saved};
use crate::ops::adamw::AdamW;
use std::time::Instant;

/// What is logged, in the order of the CSV file.
const COLUMNS: [&str; 6] =
    ["loss", "grad_norm", "learning_rate", "images_per_second", "seconds", "held_out_loss"];

/// Where a decay is a share of the time and not of the steps, this many parts make the whole.
const PARTS_OF_TIME: u64 = 1_000_000;

/// What a run says while it goes on.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// After each optimizer step.
    Step {
        /// Steps done.
        step: u64,
        loss: f32,
        learning_rate: f64,
        images_per_second: f64,
        /// Share of the run that is done, 0 to 1.
        share: f64,
    },
    /// In float16 the gradients of this step overflowed: it changed nothing, and the next is
    /// computed with this smaller loss scale.
    Overflow { step: u64, loss_scale: f32 },
    /// The figure on held-out images.
    HeldOut { step: u64, loss: f64 },
    /// A checkpoint was written.
    Saved { step: u64 },
    /// One step of sampling pictures, `done` of `of`.
    Sampling { done: usize, of: usize },
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    pub steps: u64,
    /// Seconds spent training, from all sessions of the run.
    pub seconds: f64,
    pub held_out_loss: f64,
}

/// What a configuration asks of a compiled training step.
pub fn recipe(config: &Config) -> Recipe {
    let training = &config.training;
    Recipe {
        batch: training.batch_size,
        accumulate: training.accumulate,
        size: [config.data.size.height, config.data.size.width],
        prediction: config.diffusion.prediction,
        noise: NoiseSource::Philox,
        optimizer: AdamW {
            beta1: training.betas[0],
            beta2: training.betas[1],
            eps: training.eps,
            weight_decay: training.weight_decay,
            decoupled: true,
            max_norm: (training.max_grad_norm > 0.0).then_some(training.max_grad_norm),
            zero_non_finite: training.non_finite == NonFinite::Zero,
            ema: training.ema_widths.is_empty() && training.ema_decay > 0.0,
        },
        averages: training.ema_widths.len(),
    }
}

/// A run: its settings, its images, its folder, its state.
pub struct Run<'a> {
    config: &'a Config,
    folder: &'a RunFolder,
    images: &'a Dataset,
    device: &'a dyn Device,
    task: Task,
    trainer: Trainer,
    held_out: HeldOut,
    metrics: Metrics,
    done: Progress,
    last_held_out: Option<(u64, f64)>,
    /// A checkpoint is to be written once the next loss shows that the weights are good.
    checkpoint_due: bool,
    passed_over: Vec<Error>,
}

impl<'a> Run<'a> {
    /// Begins a run in its folder, or takes up the newest good checkpoint there.
    ///
    /// # Errors
    /// Sizes and devices that can't serve; a checkpoint of another network or other images; what
    /// the operating system says.
    pub fn new(
        config: &'a Config,
        folder: &'a RunFolder,
        images: &'a Dataset,
        held_out: &Dataset,
        device: &'a dyn Device,
        resume: bool,
    ) -> Result<Run<'a>> {
        config.require_images()?;
        let task = Task::new(&config.network(), &config.process())?;
        let (recipe, seed) = (recipe(config), config.training.seed);
        let (network, size) = (task.network(), recipe.size);
        let weights = initial(network, size, seed)?;
        let held_out = HeldOut::new(held_out, seed, &task)?;
        if !resume {
            held_out.write(&folder.held_out())?;
        }
        let objective = task.objective();
        let mut trainer =
            Trainer::with_objective(objective.as_ref(), &weights, recipe, seed, device)?;
        drop(objective);
        // The device has them now; a second copy would count in the run's memory.
        drop(weights);
        let mut passed_over = Vec::new();
        let data = images.fingerprint();
        let mut done = Progress { step: 0, skipped: 0, seconds: 0.0, data };
        if resume {
            let found = folder.newest_checkpoint(Checkpoint::read)?;
            let (path, mut checkpoint) = (found.path, found.content);
            passed_over = found.skipped;
            if checkpoint.progress.data != data {
                return Err(Error::file(
                    &path,
                    "belongs to a run with other images; resume with the images it began with",
                ));
            }
            let (moments, whole) = (parameters(network, size)?, saved(network, size)?);
            let parts = trainer
                .regions()
                .into_iter()
                .map(|region| {
                    let averaged = matches!(region, Region::Weights | Region::Ema(_));
                    let names = if averaged { &whole } else { &moments };
                    Ok((region, checkpoint.take(region, names, &path)?))
                })
                .collect::<Result<Vec<_>>>()?;
            done = checkpoint.progress;
            match (checkpoint.loss_scale, trainer.loss_scale()) {
                (Some(scale), Some(_)) => {
                    trainer.set_loss_scale(scale).map_err(|e| Error::file(&path, e.to_string()))?;
                }
                (None, None) => {}
                (saved, _) => {
                    let (was, now) = if saved.is_some() { ("16", "fp16") } else { ("32", "fp32") };
                    let what =
                        format!("belongs to a run in float{was}; resume it with --precision {now}");
                    return Err(Error::file(&path, what));
                }
            }
            trainer.restore(&parts, done.skipped)?;
            folder.discard_after(done.step)?;
        }
        let metrics = Metrics::open(folder, &COLUMNS, done.step)?;
        Ok(Run {
            config,
            folder,
            images,
            device,
            task,
            trainer,
            held_out,
            metrics,
            done,
            last_held_out: None,
            // A new run can be taken up from its very beginning.
            checkpoint_due: !resume,
            passed_over,
        })
    }

    /// Why checkpoints newer than the one that the run goes on from were passed over.
    pub fn passed_over(&self) -> &[Error] {
        &self.passed_over
    }

    /// Steps done so far.
    pub fn step(&self) -> u64 {
        self.done.step
    }

    /// Trains to the end, then writes model and pictures. `observe` is told of everything and may
    /// stop the run with an error; on [`Error::Interrupted`] a checkpoint is written first.
    ///
    /// # Errors
    /// A loss or gradient that is not finite, with the step and the last good checkpoint; what the
    /// device or the operating system says.
    pub fn train(mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<Outcome> {
        let result = self.steps(observe);
        if let Err(Error::Interrupted) = result {
            self.save(observe)?;
        }
        result?;
        self.finish(observe)
    }

    fn steps(&mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        let training = &self.config.training;
        let before = self.done.seconds;
        let started = Instant::now();
        let (mut losses, mut since) = (Vec::new(), Instant::now());
        let mut rate = 0.0;
        while self.share() < 1.0 {
            let first = Instant::now();
            let (loss, grad_norm, learning_rate) = self.one_step(observe)?;
            self.done.seconds = before + started.elapsed().as_secs_f64();
            let images = (training.batch_size * training.accumulate) as f64;
            let now = images / first.elapsed().as_secs_f64().max(1e-9);
            // Smoothed for the eye.
            rate = if rate == 0.0 { now } else { 0.9 * rate + 0.1 * now };
            losses.push(f64::from(loss));
            let step = self.done.step;
            if step.is_multiple_of(training.log_every) {
                let mean = losses.iter().sum::<f64>() / losses.len() as f64;
                let seconds = since.elapsed().as_secs_f64().max(1e-9);
                self.metrics.log(
                    step,
                    &[
                        ("loss", mean),
                        ("grad_norm", f64::from(grad_norm)),
                        ("learning_rate", learning_rate),
                        ("images_per_second", images * losses.len() as f64 / seconds),
                        ("seconds", self.done.seconds),
                    ],
                )?;
                losses.clear();
                since = Instant::now();
            }
            let share = self.share();
            observe(Event::Step { step, loss, learning_rate, images_per_second: rate, share })?;
            let due = |every: u64| every > 0 && step.is_multiple_of(every) && share < 1.0;
            if due(training.sample_every) {
                self.held_out(observe)?;
                self.sample_grid(observe)?;
            }
            self.checkpoint_due |= due(training.checkpoint_every);
            if training.average_every > 0 && step.is_multiple_of(training.average_every) {
                self.save_averages()?;
            }
        }
        Ok(())
    }

    /// Share of the run that is done: of the steps, or of the minutes where those are set.
    fn share(&self) -> f64 {
        let training = &self.config.training;
        if training.minutes > 0.0 {
            return self.done.seconds / (60.0 * training.minutes);
        }
        self.done.step as f64 / training.steps as f64
    }

    fn learning_rate(&self) -> f64 {
        let training = &self.config.training;
        let mut schedule = self.config.lr_schedule();
        // A root of steps knows no end.
        let endless = training.lr_schedule == Decay::InverseSqrt;
        if training.minutes <= 0.0 || self.done.step < training.warmup_steps || endless {
            return schedule.rate(self.done.step);
        }
        schedule.warmup = 0;
        schedule.steps = PARTS_OF_TIME;
        schedule.rate((self.share().min(1.0) * PARTS_OF_TIME as f64) as u64)
    }

    /// Of the next step, after which it will have seen `images` more.
    fn ema_decays(&self, images: f64) -> Result<[f64; 4]> {
        let (training, step) = (&self.config.training, self.done.step);
        // A young average forgets its beginning faster (as in diffusers and TensorFlow).
        let young = (1 + step) as f64 / (10 + step) as f64;
        let mut decays = [training.ema_decay.min(young); 4];
        for (kept, &width) in decays.iter_mut().zip(&training.ema_widths) {
            *kept = decay(exponent(width)?, images, images * (step + 1) as f64);
        }
        Ok(decays)
    }

    fn one_step(
        &mut self,
        observe: &mut dyn FnMut(Event) -> Result<()>,
    ) -> Result<(f32, f32, f64)> {
        let training = &self.config.training;
        let step = self.done.step;
        let batch = training.batch_size;
        let settings = StepSettings {
            step,
            learning_rate: self.learning_rate(),
            ema_decays: self.ema_decays((batch * training.accumulate) as f64)?,
        };
        let mut x0 = vec![0.0; batch * self.images.sample_len()];
        let objective = self.task.objective();
        // Of one element, also where the loss is their sum.
        let elements = objective.summed(self.trainer.recipe()) as f32;
        let mut loss = 0.0;
        for micro in 0..training.accumulate {
            let first = (step * training.accumulate as u64 + micro as u64) * batch as u64;
            self.images.fill(first, training.seed, self.config.data.flip, &mut x0);
            let drawn = objective.draw(training.seed, first..first + batch as u64);
            let mut labels = self.images.labels(first, training.seed, batch);
            drop_labels(&mut labels, training.label_dropout, training.seed, first);
            let labels = one_hot(&labels, self.task.network().classes());
            let mut inputs: Vec<(&str, &[f32])> = vec![("x0", &x0)];
            if !labels.is_empty() {
                inputs.push(("labels", &labels));
            }
            inputs.extend(drawn.iter().map(|(name, values)| (*name, &values[..])));
            let part = self.trainer.micro_batch_of(&settings, micro, &inputs)?;
            if !part.is_finite() {
                return Err(self.not_finite("loss", part));
            }
            loss += part / elements / training.accumulate as f32;
        }
        drop(objective);
        if std::mem::take(&mut self.checkpoint_due) {
            self.save(observe)?;
        }
        let scaled = self.trainer.loss_scale();
        let updated = self.trainer.update(&settings)?;
        if !updated.finite {
            match (scaled, self.trainer.loss_scale()) {
                (Some(before), Some(after)) if !before.is_least() => {
                    observe(Event::Overflow { step: step + 1, loss_scale: after.factor })?;
                }
                _ if !updated.skipped => {}
                _ => return Err(self.not_finite("norm of the gradients", updated.grad_norm)),
            }
        }
        self.done.step += 1;
        self.done.skipped = self.trainer.skipped();
        Ok((loss, updated.grad_norm, settings.learning_rate))
    }

    fn not_finite(&self, what: &str, value: f32) -> Error {
        let last = self.folder.checkpoints().ok().and_then(|list| list.last().cloned());
        let kept = match last {
            Some((step, path)) => {
                format!("the last good checkpoint is {} (step {step})", path.display())
            }
            None => "no checkpoint was written before; begin anew".into(),
        };
        Error::NonFinite(format!(
            "the {what} is {value} at step {}; training stops, and {kept}. A lower \
             training.learning_rate or more training.warmup_steps will help",
            self.done.step + 1
        ))
    }

    /// The weights that samples and exports use: their average where there is one.
    fn best_weights(&mut self) -> Result<Weights> {
        let average = self.trainer.recipe().averaged() > 0;
        self.trainer.get(if average { Region::Ema(0) } else { Region::Weights })
    }

    fn save(&mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        let weights = self.trainer.get(Region::Weights)?;
        let mut values = weights.tensors.iter().flat_map(|(_, _, values)| values);
        if let Some(&value) = values.find(|value| !value.is_finite()) {
            return Err(self.not_finite("largest weight", value));
        }
        let path = self.folder.checkpoint(self.done.step);
        checkpoint::write(&path, &mut self.trainer, &self.done)?;
        self.folder.prune_checkpoints(self.config.training.keep_checkpoints)?;
        // Saving is what an interruption waits for; a second one must not stop it.
        match observe(Event::Saved { step: self.done.step }) {
            Err(Error::Interrupted) => Ok(()),
            other => other,
        }
    }

    /// A snapshot of the averages, from which others can be reconstructed.
    fn save_averages(&mut self) -> Result<()> {
        let (training, step) = (&self.config.training, self.done.step);
        let images = step * (training.batch_size * training.accumulate) as u64;
        let widths = &training.ema_widths;
        let averages = (0..widths.len() as u8)
            .map(|number| self.trainer.get(Region::Ema(number)))
            .collect::<Result<Vec<_>>>()?;
        averages::write(&self.folder.averages(step), images, widths, &averages)
    }

    fn held_out(&mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<f64> {
        let step = self.done.step;
        if let Some((at, loss)) = self.last_held_out
            && at == step
        {
            return Ok(loss);
        }
        // Made when it is due: its weights would take as much memory as the training step's.
        let weights = self.best_weights()?;
        let network = self.task.network();
        let loss = Evaluator::new(network, &self.held_out, self.device)?.loss(&weights)?;
        if !loss.is_finite() {
            return Err(self.not_finite("held-out loss", loss as f32));
        }
        self.metrics.log(step, &[("held_out_loss", loss), ("seconds", self.done.seconds)])?;
        self.last_held_out = Some((step, loss));
        observe(Event::HeldOut { step, loss })?;
        Ok(loss)
    }

    /// Samples with the weights as they are; made when due, like the evaluator.
    fn gallery(&mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<Gallery> {
        let weights = self.best_weights()?;
        let mut gallery = Gallery::new(self.config, self.task.network(), &weights, self.device)?;
        drop(weights);
        gallery.sample(&mut |done, of| observe(Event::Sampling { done, of }))?;
        Ok(gallery)
    }

    fn sample_grid(&mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<()> {
        let path = self.folder.sample_grid(self.done.step);
        self.gallery(observe)?.write_grid(&path)
    }

    /// Checkpoint, figure, model and pictures.
    fn finish(&mut self, observe: &mut dyn FnMut(Event) -> Result<()>) -> Result<Outcome> {
        let held_out_loss = self.held_out(observe)?;
        self.save(observe)?;
        if self.config.training.average_every > 0 {
            self.save_averages()?;
        }
        let weights = to_tensors(&self.best_weights()?);
        let (network, process) = (self.config.network(), self.config.process());
        diffusers::write(self.folder.model(), &network, &process, &weights)?;
        drop(weights);
        let gallery = self.gallery(observe)?;
        gallery.write_grid(&self.folder.samples_png())?;
        gallery.write_process(&self.folder.denoising_png(), &self.folder.denoising_gif())?;
        Ok(Outcome { steps: self.done.step, seconds: self.done.seconds, held_out_loss })
    }
}

/// Weights as a file has them.
pub fn to_tensors(weights: &Weights) -> Tensors {
    let mut tensors = Tensors::new();
    for (name, shape, values) in &weights.tensors {
        tensors.insert(name.clone(), Tensor::f32(shape.clone(), values.clone()));
    }
    tensors
}
