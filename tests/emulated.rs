//! Sampling runs on the kernels themselves, for both code paths, compared with the CPU device.

use cyanea::device::cpu::CpuDevice;
use cyanea::device::emulated::Emulated;
use cyanea::device::{Device, Target};
use cyanea::diffusion::denoiser::{Denoiser, Shape};
use cyanea::diffusion::samplers::{self, Sampler};
use cyanea::diffusion::scheduler_config::{Prediction, SchedulerConfig};
use cyanea::models::ddpm_unet::DdpmUnet;
use cyanea::models::unet_config::{DownBlock, UpBlock};
use cyanea::models::{UnetConfig, Weights, parameters};
use cyanea::training::init::initial_weights;

/// Fifty steps and four of a small U-Net with attention, from the same seeds: the kernels' images are the
/// CPU's but for rounding, whatever the order of blocks and lanes, which must not change one bit.
#[test]
fn sampling_runs_give_the_images_of_the_cpu() {
    let config = UnetConfig {
        block_out_channels: vec![8, 12],
        down_block_types: vec![DownBlock::Plain, DownBlock::Attention],
        up_block_types: vec![UpBlock::Attention, UpBlock::Plain],
        layers_per_block: 1,
        attention_head_dim: Some(4),
        norm_num_groups: 4,
        ..UnetConfig::default()
    };
    let size = [8, 12];
    let network = DdpmUnet::new(config).unwrap();
    let shapes = parameters(&network, size).unwrap();
    let values = initial_weights(&shapes, 1);
    let weights =
        Weights { tensors: shapes.into_iter().zip(values).map(|((n, s), v)| (n, s, v)).collect() };
    // A network that was not trained multiplies what differs in each step, unless it predicts the image.
    let (noise, image) = (Prediction::Epsilon, Prediction::Sample);
    for (sampler, steps, prediction_type) in
        [(Sampler::Ddim, 50, image), (Sampler::Ddpm, 4, noise), (Sampler::DpmSolverPp2m, 4, noise)]
    {
        let scheduler = SchedulerConfig { prediction_type, ..SchedulerConfig::default() };
        let table = samplers::table(&scheduler, sampler, steps, 0.0, scheduler.clip()).unwrap();
        let sample = |device: &dyn Device| {
            let shape = Shape { batch: 2, size };
            let mut run = Denoiser::new(&network, &weights, &table, shape, device).unwrap();
            let images = run.sample(&[3, 4], &mut |_, _| Ok(())).unwrap();
            (images, run.engine().session().launches())
        };
        let (want, _) = sample(&CpuDevice::new());
        for target in [Target::V100, Target::A100, Target::H100] {
            let (got, launches) = sample(&Emulated::with_seed(target.clone(), 1).unwrap());
            let (again, _) = sample(&Emulated::with_seed(target, 2).unwrap());
            assert!(launches > steps as u64 * 20, "only {launches} launches");
            for ((got, again), want) in got.iter().zip(&again).zip(&want) {
                assert!((got - want).abs() <= 1e-4, "{got} is not {want}");
                assert_eq!(got.to_bits(), again.to_bits(), "the order of lanes matters");
            }
        }
    }
}
