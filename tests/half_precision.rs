//! Float16 on the kernels themselves, for both code paths: a sampling run, a training run with its
//! loss scale, and what is kept in which type.

use cyanea::device::cpu::CpuDevice;
use cyanea::device::emulated::Emulated;
use cyanea::device::{Device, Precision, Target};
use cyanea::diffusion::NoiseSchedule;
use cyanea::diffusion::denoiser::{self, Denoiser, Shape};
use cyanea::diffusion::samplers::{self, Sampler};
use cyanea::diffusion::scheduler_config::{Prediction, SchedulerConfig};
use cyanea::graph::Region;
use cyanea::models::ddpm_unet::DdpmUnet;
use cyanea::models::unet_config::{DownBlock, UpBlock};
use cyanea::models::{UnetConfig, Weights, parameters};
use cyanea::ops::adamw::AdamW;
use cyanea::training::init::initial_weights;
use cyanea::training::loss_scale::LossScale;
use cyanea::training::trainer::{NoiseSource, Recipe, StepSettings, Trainer};

const SIZE: [usize; 2] = [8, 12];

fn network() -> (DdpmUnet, Weights) {
    let config = UnetConfig {
        block_out_channels: vec![8, 12],
        down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
        layers_per_block: 1,
        attention_head_dim: Some(4),
        norm_num_groups: 4,
        ..UnetConfig::default()
    };
    let network = DdpmUnet::new(config).unwrap();
    let shapes = parameters(&network, SIZE).unwrap();
    let values = initial_weights(&shapes, 1);
    let tensors = shapes.into_iter().zip(values).map(|((n, s), v)| (n, s, v)).collect();
    (network, Weights { tensors })
}

fn half(target: Target, seed: u64) -> Emulated {
    Emulated::with_seed(target.with_precision(Precision::Fp16).unwrap(), seed).unwrap()
}

fn rms(values: impl Iterator<Item = f32>) -> f64 {
    let (sum, count) = values.fold((0.0, 0), |(s, n), x| (s + f64::from(x) * f64::from(x), n + 1));
    (sum / f64::from(count)).sqrt()
}

/// The images are those of float32 but for what float16 can't hold, and their bits don't depend on
/// the order of blocks and lanes.
#[test]
fn a_sampling_run_gives_nearly_the_images_of_float32() {
    let (network, weights) = network();
    let scheduler = SchedulerConfig::default();
    let table = samplers::table(&scheduler, Sampler::Ddim, 6, 0.0, scheduler.clip()).unwrap();
    let sample = |device: &dyn Device| {
        let shape = Shape { batch: 2, size: SIZE };
        let mut run = Denoiser::new(&network, &weights, &table, shape, device).unwrap();
        run.sample(&[3, 4], &mut |_, _| Ok(())).unwrap()
    };
    let want = sample(&CpuDevice::new());
    for target in [Target::V100, Target::H100] {
        let got = sample(&half(target.clone(), 1));
        assert_eq!(got, sample(&half(target, 2)), "the order of lanes matters");
        let error = rms(got.iter().zip(&want).map(|(got, want)| got - want));
        let size = rms(want.iter().copied());
        // In the first step x₀ is what is left of x when 30 times the prediction is taken away, so
        // rounding of 5e-4 becomes 1.5e-2 before the image is clipped.
        assert!(error <= 1.5e-2 * size, "an error of {error} where images have {size}");
        assert!(error > 1e-6 * size, "float16 must show: the error is {error}");
    }
}

/// Weights are turned into float16 when they change, not at every step.
#[test]
fn weights_are_packed_in_prepare() {
    let (network, _) = network();
    let scheduler = SchedulerConfig::default();
    let table = samplers::table(&scheduler, Sampler::Ddim, 6, 0.0, scheduler.clip()).unwrap();
    let target = Target::H100.with_precision(Precision::Fp16).unwrap();
    let plan = denoiser::plan(&network, &table, Shape { batch: 2, size: SIZE }, &target).unwrap();
    let launches = |name: &str, operation: &str| {
        let program = plan.program(name).unwrap();
        program.launches.iter().filter(|launch| launch.operation == operation).count()
    };
    // One launch for all; those of linear layers of rows are read as they are.
    assert_eq!(launches("prepare", "conv2d_pack"), 1);
    assert_eq!(launches("denoise", "conv2d_pack"), 0);
    // The image is rounded on its way into patches; the sampler reads the prediction as it is.
    assert_eq!(launches("denoise", "patches"), 1);
    assert_eq!(launches("denoise", "cast"), 0);
}

fn trainer(device: &dyn Device) -> Trainer {
    let (network, weights) = network();
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    let recipe = Recipe {
        batch: 4,
        accumulate: 2,
        size: SIZE,
        prediction: Prediction::Epsilon,
        noise: NoiseSource::Philox,
        optimizer: AdamW {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            decoupled: true,
            max_norm: Some(1.0),
            zero_non_finite: false,
            ema: true,
        },
        averages: 0,
    };
    Trainer::new(&network, &weights, &schedule, recipe, 7, device).unwrap()
}

/// One optimizer step on made-up images: its loss, and what it did.
fn step(trainer: &mut Trainer, step: u64) -> (f32, f32, bool) {
    let settings = StepSettings { step, learning_rate: 2e-3, ema_decays: [0.9; 4] };
    let mut loss = 0.0;
    for micro in 0..2 {
        let x0: Vec<f32> = (0..4 * SIZE[0] * SIZE[1] * 3)
            .map(|i| ((i as f32 * 0.37 + step as f32 + micro as f32).sin() * 0.9).clamp(-1.0, 1.0))
            .collect();
        let timesteps = [10, 300, 600, 990].map(|t| (t + 3 * step as usize) % 1000);
        loss += trainer.micro_batch(&settings, micro, &x0, &timesteps, None).unwrap() / 2.0;
    }
    let updated = trainer.update(&settings).unwrap();
    (loss, updated.grad_norm, updated.skipped)
}

#[test]
fn a_training_run_has_nearly_the_losses_of_float32() {
    let run = |device: &dyn Device| {
        let mut trainer = trainer(device);
        (0..12).map(|at| step(&mut trainer, at)).collect::<Vec<_>>()
    };
    let want = run(&CpuDevice::new());
    for target in [Target::V100, Target::H100] {
        let got = run(&half(target, 1));
        for (at, (got, want)) in got.iter().zip(&want).enumerate() {
            assert!(!got.2, "step {at} was skipped");
            let near = |got: f32, want: f32, share: f32| (got - want).abs() <= share * want;
            assert!(near(got.0, want.0, 0.01), "step {at}: loss {}, cpu {}", got.0, want.0);
            assert!(near(got.1, want.1, 0.05), "step {at}: norm {}, cpu {}", got.1, want.1);
        }
        assert!(got[11].0 < 0.97 * got[0].0, "nothing was learnt: {got:?}");
    }
}

/// A scale that is too large costs steps but nothing else.
#[test]
fn an_overflow_skips_the_step_and_halves_the_scale() {
    let mut trainer = trainer(&half(Target::H100, 1));
    assert_eq!(trainer.loss_scale(), Some(LossScale::default()));
    let factor = 2f32.powi(28);
    trainer
        .set_loss_scale(LossScale { factor, growth_interval: 2, ..LossScale::default() })
        .unwrap();
    let before = trainer.get(Region::Weights).unwrap().tensors;
    let mut skipped = 0;
    loop {
        let (loss, _, overflow) = step(&mut trainer, skipped);
        assert!(loss.is_finite());
        if !overflow {
            break;
        }
        skipped += 1;
        assert_eq!(trainer.loss_scale().unwrap().factor, factor / 2f32.powi(skipped as i32));
        assert_eq!(trainer.get(Region::Weights).unwrap().tensors, before);
        assert!(skipped < 30, "no scale is small enough");
    }
    println!("{skipped} steps overflowed");
    assert!(skipped >= 3, "only {skipped} steps overflowed");
    assert_eq!(u64::from(trainer.skipped()), skipped);
    assert_ne!(trainer.get(Region::Weights).unwrap().tensors, before);
    let held = trainer.loss_scale().unwrap();
    assert_eq!((held.factor, held.good_steps), (factor / 2f32.powi(skipped as i32), 1));
    assert!(trainer.set_loss_scale(LossScale { factor: f32::NAN, ..held }).is_err());
    assert!(crate::trainer(&CpuDevice::new()).set_loss_scale(held).is_err());
}
