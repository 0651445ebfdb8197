//! Every reference case in `tests/fixtures`, replayed on the kernels themselves, for both code
//! paths; and a sampling run, compared with the CPU device.

use cyanea::compare::replay;
use cyanea::device::cpu::CpuDevice;
use cyanea::device::emulated::Emulated;
use cyanea::device::{Device, Target, open_by_name};
use cyanea::diffusion::denoiser::{Denoiser, Shape};
use cyanea::diffusion::samplers::{self, Sampler};
use cyanea::diffusion::scheduler_config::SchedulerConfig;
use cyanea::formats::verdict::Precision;
use cyanea::models::ddpm_unet::DdpmUnet;
use cyanea::models::unet_config::{DownBlock, UpBlock};
use cyanea::models::{UnetConfig, Weights, parameters};
use cyanea::training::init::initial_weights;
use std::path::PathBuf;

/// The fixtures that are reference cases, in order of their names.
fn cases() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the fixtures")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    assert!(files.len() > 100, "only {} fixtures", files.len());
    files
}

fn every_case_passes(device: &dyn Device) {
    let mut failed = Vec::new();
    let mut closest = (0.0f64, String::new());
    let mut passed = 0;
    for path in cases() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match replay(&path, device, Precision::Fp32) {
            Err(error) => {
                // What not even the CPU replays is the affair of tests/reference_cases.rs.
                if replay(&path, &CpuDevice::new(), Precision::Fp32).is_ok() {
                    failed.push(format!("{name}: {error}"));
                }
            }
            Ok(report) => {
                passed += usize::from(report.verdict.pass);
                for tensor in &report.verdict.tensors {
                    let share = tensor.allowed_share.unwrap_or(0.0);
                    if tensor.pass == Some(false) {
                        failed.push(format!("{name}: {} is {share:.3} of the limit", tensor.name));
                    } else if share > closest.0 {
                        closest = (share, format!("{name} {}", tensor.name));
                    }
                }
                if report.verdict.tensors.is_empty() {
                    failed.push(format!("{name}: nothing was judged"));
                }
                if report.kernels.is_empty() {
                    failed.push(format!("{name}: no kernel ran"));
                }
            }
        }
    }
    println!("{passed} cases pass on {}", device.name());
    println!("the closest call is {} with {:.3} of what is allowed", closest.1, closest.0);
    assert!(passed > 100, "only {passed} cases pass");
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_case_passes_on_the_path_of_volta() {
    every_case_passes(&*open_by_name("emulated:v100").unwrap());
}

#[test]
fn every_case_passes_on_the_path_of_hopper() {
    every_case_passes(&*open_by_name("emulated:h100").unwrap());
}

/// Four steps of a small U-Net with attention, from the same seeds: the kernels' images are the
/// CPU's but for rounding, whatever the order of blocks and lanes, which must not change one bit.
#[test]
fn a_sampling_run_gives_the_images_of_the_cpu() {
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
    let scheduler = SchedulerConfig::default();
    for sampler in [Sampler::Ddpm, Sampler::DpmSolverPp2m] {
        let table = samplers::table(&scheduler, sampler, 4, 0.0, scheduler.clip()).unwrap();
        let sample = |device: &dyn Device| {
            let shape = Shape { batch: 2, size };
            let mut run = Denoiser::new(&network, &weights, &table, shape, device).unwrap();
            let images = run.sample(&[3, 4], &mut |_, _| Ok(())).unwrap();
            (images, run.engine().session().launches())
        };
        let (want, _) = sample(&CpuDevice::new());
        for target in [Target::V100, Target::H100] {
            let (got, launches) = sample(&Emulated::with_seed(target.clone(), 1).unwrap());
            let (again, _) = sample(&Emulated::with_seed(target, 2).unwrap());
            assert!(launches > 4 * 20, "only {launches} launches");
            for ((got, again), want) in got.iter().zip(&again).zip(&want) {
                assert!((got - want).abs() <= 1e-4, "{got} is not {want}");
                assert_eq!(got.to_bits(), again.to_bits(), "the order of lanes matters");
            }
        }
    }
}
