//! The EDM2 U-Net: its published size, sampling and training with it under a DDPM's process, and what
//! the command line does with it.

#[path = "common/command.rs"]
mod command;
#[path = "common/pictures.rs"]
mod pictures;

use command::cyanea;
use cyanea::data::counter::Stream;
use cyanea::device::cpu::CpuDevice;
use cyanea::device::emulated::Emulated;
use cyanea::device::{Device, Target, TensorType, open_by_name};
use cyanea::diffusion::denoiser::{Denoiser, Shape};
use cyanea::diffusion::samplers::{self, Sampler};
use cyanea::diffusion::{NoiseSchedule, SchedulerConfig};
use cyanea::formats::tensors::Tensors;
use cyanea::graph::{Build, Engine, Graph, Region, autodiff, fuse};
use cyanea::models::{
    Edm2Config, Given, Network, NetworkConfig, NoiseInput, Weights, write_tables,
};
use cyanea::ops::adamw::AdamW;
use cyanea::training::init::initial;
use cyanea::training::trainer::{NoiseSource, Recipe, StepSettings, Trainer};
use pictures::pictures;
use std::fs;
use std::path::Path;

const SIZE: [usize; 2] = [8, 12];

/// A network of two levels with attention on the second, and weights with gains that are not zero,
/// so that everything matters.
fn small() -> (Box<dyn Network>, NoiseSchedule, Weights) {
    let config = Edm2Config {
        img_resolution: 16,
        img_channels: 3,
        model_channels: 8,
        channel_mult: vec![1.0, 2.0],
        num_blocks: 1,
        attn_resolutions: vec![8],
        channels_per_head: 8,
        ..Edm2Config::default()
    };
    let schedule = NoiseSchedule::new(&SchedulerConfig::default()).unwrap();
    let network =
        NetworkConfig::Edm2(config).network(NoiseInput::Timesteps(&schedule.steps())).unwrap();
    let mut weights = initial(network.as_ref(), SIZE, 1).unwrap();
    for (name, _, values) in &mut weights.tensors {
        if name.ends_with("gain") {
            values.fill(0.5);
        }
    }
    (network, schedule, weights)
}

#[test]
fn a_sampling_run_gives_the_images_of_the_cpu() {
    let (network, _, weights) = small();
    let scheduler = SchedulerConfig::default();
    for sampler in [Sampler::Ddpm, Sampler::Ddim, Sampler::DpmSolverPp2m] {
        let table = samplers::table(&scheduler, sampler, 4, 0.0, scheduler.clip()).unwrap();
        let sample = |device: &dyn Device, seeds: &[u64]| {
            let shape = Shape { batch: seeds.len(), size: SIZE };
            let mut run = Denoiser::new(network.as_ref(), &weights, &table, shape, device).unwrap();
            run.sample(seeds, &mut |_, _| Ok(())).unwrap()
        };
        let want = sample(&CpuDevice::new(), &[3, 4]);
        let alone = sample(&CpuDevice::new(), &[4]);
        assert_eq!(want[alone.len()..], alone, "an image depends on its batch");
        for target in [Target::V100, Target::H100] {
            let got = sample(&Emulated::with_seed(target.clone(), 1).unwrap(), &[3, 4]);
            let again = sample(&Emulated::with_seed(target, 2).unwrap(), &[3, 4]);
            assert_eq!(got, again, "the order of lanes matters");
            for (got, want) in got.iter().zip(&want) {
                assert!((got - want).abs() <= 2e-4, "{got} is not {want}");
            }
        }
    }
}

/// Output and, if asked for, all gradients of the network, fused or not; and its nodes.
fn evaluate(device: &dyn Device, fused: bool, gradients: bool) -> (usize, Vec<Vec<f32>>) {
    let (network, _, weights) = small();
    let image = TensorType::f32([2, SIZE[0], SIZE[1], 3]);
    let mut g = Graph::new();
    let x = g.input("x", image.clone()).unwrap();
    let timesteps = g.input("timesteps", TensorType::f32([2])).unwrap();
    let y = network.build(&mut g, x, Given::times(timesteps)).unwrap();
    let mut results = vec![y];
    if gradients {
        let upstream = g.input("upstream", image).unwrap();
        let mut wrt = vec![x];
        for slot in g.slots.clone().iter().filter(|slot| slot.region == Region::Weights) {
            wrt.push(g.find_slot(slot.region, &slot.name).unwrap());
        }
        let made = autodiff::gradients(&mut g, &[(y, upstream)], &wrt).unwrap();
        results.extend(made.into_iter().map(|gradient| gradient.expect("every weight matters")));
    }
    for (index, &tensor) in results.iter().enumerate() {
        let ty = g.ty(tensor).clone();
        let slot = g.input(&format!("result {index}"), ty).unwrap();
        g.bind(tensor, slot).unwrap();
    }
    if fused {
        fuse::fuse(&mut g).unwrap();
    }
    let nodes = g.nodes.len();
    let mut engine = Engine::single(g, device).unwrap();
    weights.write(&mut engine).unwrap();
    write_tables(network.as_ref(), &mut engine).unwrap();
    engine.write(Region::State, "timesteps", &[3.0f32, 800.0]).unwrap();
    for (name, seed) in [("x", 1), ("upstream", 2)] {
        let mut stream = Stream::new(&[seed]);
        let values: Vec<f32> = (0..2 * SIZE[0] * SIZE[1] * 3).map(|_| stream.bell()).collect();
        if engine.has(Region::State, name) {
            engine.write(Region::State, name, &values).unwrap();
        }
    }
    engine.run("run").unwrap();
    let read = |index| engine.read(Region::State, &format!("result {index}")).unwrap();
    (nodes, (0..results.len()).map(read).collect())
}

#[test]
fn the_fused_network_is_the_plain_one() {
    let rms = |v: &[f32]| (v.iter().map(|x| x * x).sum::<f32>() / v.len() as f32).sqrt();
    for name in ["cpu", "emulated:v100", "emulated:h100"] {
        let device = open_by_name(name).unwrap();
        for gradients in [false, true] {
            let (plain, want) = evaluate(device.as_ref(), false, gradients);
            let (nodes, got) = evaluate(device.as_ref(), true, gradients);
            assert!(gradients || nodes < plain, "{nodes} nodes of {plain}");
            let largest = want[1..].iter().map(|v| rms(v)).fold(0.0, f32::max);
            for (index, (got, want)) in got.iter().zip(&want).enumerate() {
                let scale = rms(want).max(if index > 0 { 0.01 * largest } else { 1e-3 });
                for (g, w) in got.iter().zip(want) {
                    assert!((g - w).abs() <= 2e-4 * scale, "{name}, result {index}: {g}, not {w}");
                }
            }
        }
    }
}

fn trainer(device: &dyn Device) -> Trainer {
    let (network, schedule, weights) = small();
    let recipe = Recipe {
        batch: 2,
        accumulate: 2,
        size: SIZE,
        prediction: SchedulerConfig::default().prediction_type,
        noise: NoiseSource::Philox,
        optimizer: AdamW {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-6,
            weight_decay: 0.01,
            decoupled: true,
            max_norm: Some(1.0),
            zero_non_finite: false,
            ema: true,
        },
        averages: 0,
    };
    Trainer::new(network.as_ref(), &weights, &schedule, recipe, 7, device).unwrap()
}

/// Steps `first..last`; their losses.
fn train(trainer: &mut Trainer, first: u64, last: u64) -> Vec<f32> {
    let mut losses = Vec::new();
    for step in first..last {
        let settings = StepSettings { step, learning_rate: 1e-2, ema_decays: [0.9; 4] };
        for micro in 0..2 {
            let images = 2 * SIZE[0] * SIZE[1] * 3;
            let x0: Vec<f32> = (0..images)
                .map(|i| ((i as u64 * 37 + 11 * step + 5 * micro) % 101) as f32 / 50.0 - 1.0)
                .collect();
            let timesteps =
                [(step * 97 % 1000) as usize, (step * 31 + 500 * micro) as usize % 1000];
            let loss = trainer.micro_batch(&settings, micro as usize, &x0, &timesteps, None);
            losses.push(loss.unwrap());
        }
        trainer.update(&settings).unwrap();
    }
    losses
}

#[test]
fn training_on_the_kernels_follows_the_cpu() {
    let want = train(&mut trainer(&CpuDevice::new()), 0, 4);
    assert!(want.iter().all(|loss| loss.is_finite()));
    for target in [Target::V100, Target::H100] {
        let got = train(&mut trainer(&Emulated::with_seed(target, 1).unwrap()), 0, 4);
        for (got, want) in got.iter().zip(&want) {
            assert!((got - want).abs() <= 1e-3 * want.abs(), "{got} is not {want}");
        }
    }
}

#[test]
fn a_resumed_run_has_the_same_bits_and_weights_are_forced_when_a_step_begins() {
    let device = CpuDevice::new();
    let mut whole = trainer(&device);
    let losses = train(&mut whole, 0, 5);
    let mut begun = trainer(&device);
    train(&mut begun, 0, 3);
    let parts: Vec<(Region, Weights)> =
        begun.regions().into_iter().map(|region| (region, begun.get(region).unwrap())).collect();
    let mut resumed = trainer(&device);
    resumed.restore(&parts, 0).unwrap();
    let rest = train(&mut resumed, 3, 5);
    assert_eq!(losses[6..], rest);
    for region in whole.regions() {
        assert_eq!(whole.get(region).unwrap(), resumed.get(region).unwrap(), "{region:?}");
    }

    // Without an update the stored rows are what the step's beginning made of them.
    let settings = StepSettings { step: 5, learning_rate: 1e-2, ema_decays: [0.9; 4] };
    let x0 = vec![0.1; 2 * SIZE[0] * SIZE[1] * 3];
    let before = whole.get(Region::Weights).unwrap();
    whole.micro_batch(&settings, 0, &x0, &[1, 2], None).unwrap();
    let after = whole.get(Region::Weights).unwrap();
    assert_ne!(before, after);
    for (name, shape, values) in &after.tensors {
        if shape.len() < 2 {
            continue;
        }
        let length: usize = shape[1..].iter().product();
        for row in values.chunks(length) {
            let mean = row.iter().map(|w| w * w).sum::<f32>() / length as f32;
            assert!((mean - 1.0).abs() <= 1e-3, "{name}: a row of mean square {mean}");
        }
    }
}

fn plan(arguments: &[&str]) -> serde_json::Value {
    let output = cyanea().arg("plan").args(arguments).arg("--json").assert().success();
    serde_json::from_slice(&output.get_output().stdout).unwrap()
}

/// Parameters and multiplications of the reference implementation's network, measured there.
#[test]
fn plan_knows_the_published_networks() {
    let oblong = ["--set", "data.size=[80, 128]"];
    for (preset, more, millions, giga_macs) in [
        ("lobster-640x1024", &[][..], 58.78, 132.2),
        ("lobster-256", &[], 58.78, 10.9),
        ("edm2-xs", &oblong, 124.2, 113.8),
    ] {
        let figures = plan(&[&["--preset", preset], more].concat());
        let parameters = figures["parameters"].as_f64().unwrap() / 1e6;
        assert!((parameters - millions).abs() <= 0.006, "{preset}: {parameters} million");
        let macs = figures["flops_per_sampling_step"].as_f64().unwrap() / 2e9;
        assert!((macs - giga_macs).abs() <= 0.06, "{preset}: {macs} GMAC");
    }
}

const SMALL: &str = r#"
[data]
size = 8
held_out = 4
[model]
kind = "edm2"
channels = [8, 16]
layers_per_block = 1
attention = [false, true]
attention_head_dim = 8
[training]
batch_size = 4
lr_schedule = "constant"
log_every = 1
checkpoint_every = 2
[sampling]
steps = 2
seeds = "0-1"
"#;

#[test]
fn a_run_is_trained_resumed_exported_and_sampled() {
    let root = tempfile::tempdir().unwrap();
    let (config, data) = (root.path().join("small.toml"), root.path().join("pictures"));
    fs::write(&config, SMALL).unwrap();
    pictures(&data);
    let train = |out: &Path, steps: usize| {
        let mut command = cyanea();
        command.arg("train").arg("--config").arg(&config).arg("--data").arg(&data);
        command.arg("--out").arg(out).args(["--set", &format!("training.steps={steps}")]);
        command.assert().success();
    };
    let (whole, parts) = (root.path().join("whole"), root.path().join("parts"));
    train(&whole, 4);
    train(&parts, 2);
    let mut resume = cyanea();
    resume.arg("train").arg("--resume").arg(&parts).args(["--set", "training.steps=4"]);
    resume.assert().success();
    let weights =
        |run: &Path| Tensors::read(run.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    let model = weights(&whole.join("model"));
    assert_eq!(model, weights(&parts.join("model")), "resumed to other weights");
    assert!(model.get("unet.emb_fourier.freqs").is_some(), "buffers belong to a model");

    let exported = root.path().join("exported");
    cyanea().arg("export").arg(&whole).arg("--out").arg(&exported).assert().success();
    assert_eq!(model, weights(&exported));
    cyanea().arg("import").arg(&exported).assert().success();
    for (index, source) in [&whole, &exported].into_iter().enumerate() {
        let out = root.path().join(format!("samples-{index}"));
        let mut sample = cyanea();
        sample.arg("sample").arg("--model").arg(source).arg("--out").arg(&out);
        sample.args(["--seeds", "0-1", "--steps", "2"]).assert().success();
        assert!(out.join("samples.png").is_file());
    }
}

#[test]
fn settings_that_edm2_does_not_have_are_refused() {
    for (set, words) in [
        ("model.norm_groups=8", ["model.norm_groups", "leave it out"]),
        ("model.attention_head_dim=0", ["model.attention_head_dim is 0", "1 to"]),
        ("model.channels=[100, 200, 300]", ["300", "attention_head_dim = 64"]),
        ("model.kind=edm3", ["edm3", "edm2"]),
        ("data.size=30", ["data.size", "32"]),
    ] {
        let output =
            cyanea().args(["plan", "--preset", "lobster-64", "--set", set]).assert().code(2);
        let said = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
        for word in words {
            assert!(said.contains(word), "{set}: `{word}` is missing from: {said}");
        }
    }
    let mut latents = cyanea();
    latents.args(["train", "--preset", "lobster-256", "--data", "none", "--out", "none"]);
    let output = latents.assert().code(2);
    let said = String::from_utf8_lossy(&output.get_output().stderr).into_owned();
    assert!(said.contains("data.channels is 4"), "{said}");
}
