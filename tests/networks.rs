//! Random small U-Nets: the fused graph against the plain one, forward and all gradients, on the
//! CPU and on the kernels.

use cyanea::Result;
use cyanea::data::counter::Stream;
use cyanea::device::cpu::CpuDevice;
use cyanea::device::emulated::Emulated;
use cyanea::device::{Device, Precision, Target, TensorType, open_by_name};
use cyanea::graph::{Build, Engine, Graph, Rate, Region, autodiff, fuse};
use cyanea::models::unet_config::{DownBlock, TimeScaleShift, UpBlock};
use cyanea::models::{DdpmUnet, Given, Network, UnetConfig, Weights, parameters};
use cyanea::ops::combine::Combine;
use cyanea::ops::conv2d::Conv2d;
use cyanea::training::init::initial_weights;
use proptest::prelude::*;

const BATCH: usize = 2;

fn configs() -> impl Strategy<Value = (UnetConfig, [usize; 2])> {
    let levels = prop::collection::vec((1usize..4, any::<bool>(), any::<bool>()), 1..4);
    (levels, 1usize..3, 0usize..2, any::<bool>(), any::<bool>(), 1usize..4, 1usize..4).prop_map(
        |(levels, layers, padding, shifted, middle, height, width)| {
            let down = |on| if on { DownBlock::Attention } else { DownBlock::Plain };
            let up = |on| if on { UpBlock::Attention } else { UpBlock::Plain };
            let multiple = 1 << (levels.len() - 1);
            let config = UnetConfig {
                block_out_channels: levels.iter().map(|&(c, ..)| 4 * c).collect(),
                down_block_types: levels.iter().map(|&(_, on, _)| down(on)).collect(),
                up_block_types: levels.iter().rev().map(|&(_, _, on)| up(on)).collect(),
                layers_per_block: layers,
                downsample_padding: padding,
                resnet_time_scale_shift: match shifted {
                    true => TimeScaleShift::ScaleShift,
                    false => TimeScaleShift::Default,
                },
                add_attention: middle,
                attention_head_dim: Some(4),
                norm_num_groups: 2,
                ..UnetConfig::default()
            };
            (config, [height * multiple, width * multiple])
        },
    )
}

/// The output and all gradients of a network, fused or not, and the operations of its launches. Each element of the
/// image is off by a random share of it, about `shake`.
fn run(
    config: &UnetConfig,
    size: [usize; 2],
    fused: bool,
    shake: f32,
    device: &dyn Device,
) -> Result<(Vec<&'static str>, Vec<Vec<f32>>)> {
    let network = DdpmUnet::new(config.clone())?;
    let image = TensorType::f32([BATCH, size[0], size[1], 3]);
    let mut g = Graph::new();
    let x = g.input("x", image.clone())?;
    let timesteps = g.input("timesteps", TensorType::f32([BATCH]))?;
    let y = network.build(&mut g, x, Given::times(timesteps))?;
    let upstream = g.input("upstream", image)?;
    let mut wrt = vec![x];
    for slot in g.slots.clone() {
        if slot.region == Region::Weights {
            wrt.push(g.slot(slot.region, &slot.name, slot.ty, Rate::Weights)?);
        }
    }
    let gradients = autodiff::gradients(&mut g, &[(y, upstream)], &wrt)?;
    let results: Vec<_> = std::iter::once(y).chain(gradients.into_iter().flatten()).collect();
    assert_eq!(results.len(), wrt.len() + 1, "every parameter matters");
    for (index, &tensor) in results.iter().enumerate() {
        let ty = g.ty(tensor).clone();
        let slot = g.input(&format!("result {index}"), ty)?;
        g.bind(tensor, slot)?;
    }
    let mut engine = match fused {
        true => {
            fuse::fuse(&mut g)?;
            Engine::single(g, device)?
        }
        false => Engine::unfused(g, device)?,
    };
    let launches = engine.plan().programs.iter().flat_map(|program| &program.launches);
    let operations = launches.map(|launch| launch.operation).collect();
    let shapes = parameters(&network, size)?;
    let values = initial_weights(&shapes, 3);
    let tensors = shapes.into_iter().zip(values).map(|((n, s), v)| (n, s, v)).collect();
    Weights { tensors }.write(&mut engine)?;
    let random = |stream: u64| {
        let mut stream = Stream::new(&[stream]);
        (0..BATCH * size[0] * size[1] * 3).map(|_| stream.bell()).collect::<Vec<f32>>()
    };
    let shaken: Vec<f32> =
        random(1).iter().zip(random(4)).map(|(x, by)| x * (1.0 + shake * by)).collect();
    engine.write(Region::State, "x", &shaken)?;
    engine.write(Region::State, "upstream", &random(2))?;
    engine.write(Region::State, "timesteps", &[3.0f32, 800.0])?;
    engine.run("run")?;
    let values = (0..results.len())
        .map(|index| engine.read(Region::State, &format!("result {index}")))
        .collect::<Result<_>>()?;
    Ok((operations, values))
}

fn rms(values: &[f32]) -> f32 {
    (values.iter().map(|x| x * x).sum::<f32>() / values.len() as f32).sqrt()
}

/// `tolerance` is a share of the mean of what is compared.
fn check(config: &UnetConfig, size: [usize; 2], device: &dyn Device, tolerance: f32) {
    let (plain, want) = run(config, size, false, 0.0, device).unwrap();
    let (fused, got) = run(config, size, true, 0.0, device).unwrap();
    // Groups of as few as two elements multiply rounding; what the plain network makes of some dozen units in the last
    // place of the image says by how much.
    let (_, shaken) = run(config, size, false, 4e-6, device).unwrap();
    let (fused, plain) = (fused.len(), plain.len());
    assert!(fused < plain, "{fused} launches of {plain}");
    let largest = want[1..].iter().map(|v| rms(v)).fold(0.0, f32::max);
    for (index, ((got, want), shaken)) in got.iter().zip(&want).zip(&shaken).enumerate() {
        // Gradients that are zero but for rounding are measured by the largest one.
        let scale = rms(want).max(if index > 0 { 0.01 * largest } else { 1e-3 });
        let multiplied = shaken.iter().zip(want).map(|(s, w)| (s - w).abs()).fold(0.0, f32::max);
        let bound = tolerance * scale + multiplied;
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= bound, "result {index}: {g} is not {w} ({scale})");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn fused_networks_agree_on_the_cpu((config, size) in configs()) {
        check(&config, size, &CpuDevice::new(), 2e-4);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]
    #[test]
    fn fused_networks_agree_on_the_kernels((config, size) in configs()) {
        // Moments that convolutions leave are rounded otherwise than those of a normalisation.
        for device in ["emulated:v100", "emulated:h100"] {
            check(&config, size, open_by_name(device).unwrap().as_ref(), 1e-3);
        }
    }
}

/// In float16, where the first and the last convolution read patches: on an image whose moments are of four tiles
/// where they are squares, but of three where they are rows.
#[test]
fn a_fused_network_agrees_in_half_precision() {
    let config = UnetConfig {
        block_out_channels: vec![16, 24],
        down_block_types: vec![DownBlock::Plain; 2],
        up_block_types: vec![UpBlock::Plain; 2],
        layers_per_block: 1,
        add_attention: false,
        norm_num_groups: 4,
        ..UnetConfig::default()
    };
    for target in [Target::V100, Target::H100] {
        let device = Emulated::new(target.with_precision(Precision::Fp16).unwrap()).unwrap();
        let (plain, want) = run(&config, [12, 12], false, 0.0, &device).unwrap();
        let (fused, got) = run(&config, [12, 12], true, 0.0, &device).unwrap();
        let patches =
            |all: &[&str]| all.iter().filter(|&&operation| operation == "patches").count();
        // Of the image, forward and for its weight, and of what flows back into the last convolution, for both
        // gradients.
        assert_eq!([patches(&plain), patches(&fused)], [0, 2]);
        let largest = want[1..].iter().map(|v| rms(v)).fold(0.0, f32::max);
        for (index, (got, want)) in got.iter().zip(&want).enumerate() {
            let apart: Vec<f32> = got.iter().zip(want).map(|(got, want)| got - want).collect();
            let scale = rms(want).max(if index > 0 { 0.01 * largest } else { 1e-3 });
            let apart = rms(&apart) / scale;
            assert!(apart <= 1e-2, "result {index} is off by {apart} of its mean");
        }
    }
}

/// Convolutions of the same source share a launch, but not past one that reads the first of them.
#[test]
fn siblings_stand_in_front_of_their_readers() {
    let (map, weight) = (TensorType::f32([1, 4, 4, 8]), TensorType::f32([8, 8, 1, 1]));
    let run = |device: &dyn Device| -> Result<Vec<f32>> {
        let mut g = Graph::new();
        let x = g.input("x", map.clone())?;
        let mut weights = Vec::new();
        for name in ["first", "between", "second"] {
            weights.push(g.input(name, weight.clone())?);
        }
        let first = g.one(Conv2d::pointwise(false), &[x, weights[0]])?;
        let between = g.one(Conv2d::pointwise(false), &[first, weights[1]])?;
        let second = g.one(Conv2d::pointwise(false), &[x, weights[2]])?;
        let y = g.one(Combine::Product, &[between, second])?;
        let result = g.input("result", map.clone())?;
        g.bind(y, result)?;
        let mut engine = Engine::single(g, device)?;
        for (index, name) in ["x", "first", "between", "second"].into_iter().enumerate() {
            let mut stream = Stream::new(&[index as u64]);
            let elements = if index == 0 { map.elements() } else { weight.elements() };
            let values: Vec<f32> = (0..elements).map(|_| stream.bell()).collect();
            engine.write(Region::State, name, &values)?;
        }
        engine.run("run")?;
        engine.read(Region::State, "result")
    };
    let want = run(&CpuDevice::new()).unwrap();
    let got = run(open_by_name("emulated:h100").unwrap().as_ref()).unwrap();
    let largest = want.iter().fold(0.0f32, |most, x| most.max(x.abs()));
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 1e-5 * largest, "{got} is not {want}");
    }
}
