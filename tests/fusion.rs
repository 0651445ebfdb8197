//! Every fusion against the graph that it came from.

use cyanea::Result;
use cyanea::data::counter::Stream;
use cyanea::device::cpu::CpuDevice;
use cyanea::device::{Device, TensorType, open_by_name};
use cyanea::graph::{Build, Engine, Graph, Region, TensorId, autodiff, fuse};
use cyanea::ops::activation::Activation;
use cyanea::ops::attention::Attention;
use cyanea::ops::combine::Combine;
use cyanea::ops::concat::{Concat, PadChannels, SliceChannels};
use cyanea::ops::conv2d::Conv2d;
use cyanea::ops::group_norm::GroupNorm;
use cyanea::ops::linear::linear;
use cyanea::ops::mp_layer::mp_layer;
use cyanea::ops::pixel_norm::PixelNorm;
use cyanea::ops::resample::{Pool2d, UpsampleNearest2d};
use cyanea::ops::weight_norm::WeightNorm;

/// As [`run_on`] on the CPU.
fn run(
    inputs: &[(&str, &[usize])],
    build: &dyn Fn(&mut Graph, &[TensorId]) -> Result<TensorId>,
    gradients: bool,
    fused: bool,
) -> Result<(Vec<&'static str>, Vec<Vec<f32>>)> {
    let Ran { names, values, .. } = run_on(&CpuDevice::new(), inputs, build, gradients, fused)?;
    Ok((names, values))
}

struct Ran {
    /// Of the operations, as fusion leaves them.
    names: Vec<&'static str>,
    /// Of those that the device launches.
    launched: Vec<&'static str>,
    values: Vec<Vec<f32>>,
}

/// Builds, differentiates with respect to every input, fuses or not, runs.
fn run_on(
    device: &dyn Device,
    inputs: &[(&str, &[usize])],
    build: &dyn Fn(&mut Graph, &[TensorId]) -> Result<TensorId>,
    gradients: bool,
    fused: bool,
) -> Result<Ran> {
    let mut g = Graph::new();
    let slots = inputs
        .iter()
        .map(|(name, shape)| g.input(name, TensorType::f32(*shape)))
        .collect::<Result<Vec<_>>>()?;
    let y = build(&mut g, &slots)?;
    let ty = g.ty(y).clone();
    let mut results = vec![y];
    if gradients {
        let upstream = g.input("upstream", ty.clone())?;
        let grads = autodiff::gradients(&mut g, &[(y, upstream)], &slots)?;
        results.extend(grads.into_iter().map(|g| g.expect("every input matters")));
    }
    for (index, &tensor) in results.iter().enumerate() {
        let ty = g.ty(tensor).clone();
        let slot = g.input(&format!("result {index}"), ty)?;
        g.bind(tensor, slot)?;
    }
    if fused {
        fuse::fuse(&mut g)?;
    }
    let names = g.nodes.iter().map(|node| node.op.name()).collect();
    let mut engine = Engine::single(g, device)?;
    let launches = engine.plan().programs.iter().flat_map(|program| &program.launches);
    let launched = launches.map(|launch| launch.operation).collect();
    let upstream = [("upstream", ty.shape.as_slice())];
    for (index, (name, shape)) in inputs.iter().chain(&upstream).enumerate() {
        if engine.has(Region::State, name) {
            let mut stream = Stream::new(&[index as u64]);
            let values: Vec<f32> = (0..shape.iter().product()).map(|_| stream.bell()).collect();
            engine.write(Region::State, name, &values)?;
        }
    }
    engine.run("run")?;
    let values = (0..results.len())
        .map(|i| engine.read(Region::State, &format!("result {i}")))
        .collect::<Result<Vec<Vec<f32>>>>()?;
    Ok(Ran { names, launched, values })
}

/// Runs both graphs, compares all results, and gives back the fused graph's operations.
fn check(
    inputs: &[(&str, &[usize])],
    build: impl Fn(&mut Graph, &[TensorId]) -> Result<TensorId>,
    gradients: bool,
) -> Vec<&'static str> {
    let (_, want) = run(inputs, &build, gradients, false).unwrap();
    let (names, got) = run(inputs, &build, gradients, true).unwrap();
    for (index, (got, want)) in got.iter().zip(&want).enumerate() {
        let scale = (want.iter().map(|v| v * v).sum::<f32>() / want.len() as f32).sqrt().max(1e-3);
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() <= 2e-5 * scale, "result {index}: {g} is not {w}");
        }
    }
    names
}

fn norm_silu(g: &mut Graph, t: &[TensorId]) -> Result<TensorId> {
    let norm = g.one(GroupNorm { groups: 4, eps: 1e-5, silu: false }, t)?;
    g.one(Activation::SILU, &[norm])
}

#[test]
fn group_norm_takes_in_silu_forward_and_backward() {
    let inputs: [(&str, &[usize]); 3] = [("x", &[2, 5, 7, 12]), ("gamma", &[12]), ("beta", &[12])];
    let names = check(&inputs, norm_silu, true);
    assert_eq!(names, ["group_norm_silu", "group_norm_silu_grad"]);
    let names = check(&inputs, norm_silu, false);
    assert_eq!(names, ["group_norm_silu"]);
}

fn conv(g: &mut Graph, x: TensorId, weight: TensorId) -> Result<TensorId> {
    g.one(Conv2d::same([3, 3], false), &[x, weight])
}

#[test]
fn a_convolution_takes_in_time_row_and_residual() {
    let inputs: [(&str, &[usize]); 4] =
        [("x", &[2, 5, 7, 6]), ("w", &[8, 6, 3, 3]), ("row", &[2, 8]), ("residual", &[2, 5, 7, 8])];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let y = conv(g, t[0], t[1])?;
        let y = g.one(Combine::ADD, &[y, t[2]])?;
        g.one(Combine::ADD, &[t[3], y])
    };
    assert_eq!(check(&inputs, build, false), ["conv2d"]);
    let names = check(&inputs, build, true);
    assert_eq!(names.iter().filter(|name| **name == "add").count(), 0);
}

#[test]
fn a_projection_takes_in_a_residual_of_another_shape() {
    let inputs: [(&str, &[usize]); 3] =
        [("x", &[2, 35, 6]), ("w", &[8, 6]), ("residual", &[2, 5, 7, 8])];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let y = linear(g, t[0], t[1], None)?;
        let y = g.reshape(y, &[2, 5, 7, 8])?;
        let y = g.one(Combine::ADD, &[y, t[2]])?;
        g.one(Activation::SILU, &[y])
    };
    assert_eq!(check(&inputs, build, false), ["conv2d", "silu"]);
    check(&inputs, build, true);
}

/// What [`joined_block`] reads.
const JOINED: [(&str, &[usize]); 6] = [
    ("a", &[2, 6, 7, 8]),
    ("b", &[2, 6, 7, 4]),
    ("gamma", &[12]),
    ("beta", &[12]),
    ("w", &[8, 12, 3, 3]),
    ("shortcut", &[8, 12, 1, 1]),
];

/// A block with a shortcut that reads a concatenation.
fn joined_block(g: &mut Graph, t: &[TensorId]) -> Result<TensorId> {
    let joined = g.one(Concat::PLAIN, &[t[0], t[1]])?;
    let h = norm_silu(g, &[joined, t[2], t[3]])?;
    let h = conv(g, h, t[4])?;
    let skip = g.one(Conv2d::pointwise(false), &[joined, t[5]])?;
    g.one(Combine::ADD, &[h, skip])
}

#[test]
fn concatenation_and_norm_become_operands() {
    let names = check(&JOINED, joined_block, false);
    assert_eq!(names, ["group_norm_affine", "conv2d", "conv2d"]);
    check(&JOINED, joined_block, true);
}

#[test]
fn upsampling_becomes_an_index_rule() {
    let inputs: [(&str, &[usize]); 2] = [("x", &[2, 5, 3, 6]), ("w", &[4, 6, 3, 3])];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let up = g.one(UpsampleNearest2d { factor: 2, scale: 1.0 }, &[t[0]])?;
        conv(g, up, t[1])
    };
    assert_eq!(check(&inputs, build, false), ["conv2d"]);
    check(&inputs, build, true);
}

/// A decoder's block of EDM2: a concatenation with scales, SiLU with a scale, a row that multiplies each
/// pixel, and normalised weights.
#[test]
fn magnitude_preserving_operands() {
    for second in [4, 8] {
        let inputs: [(&str, &[usize]); 6] = [
            ("a", &[2, 6, 7, 8]),
            ("b", &[2, 6, 7, second]),
            ("row", &[2, 16]),
            ("w0", &[16, 8 + second, 3, 3]),
            ("w1", &[8, 16, 3, 3]),
            ("skip", &[8, 8 + second, 1, 1]),
        ];
        let build = |g: &mut Graph, t: &[TensorId]| {
            let layer = |g: &mut Graph, x, w| mp_layer(g, x, w, WeightNorm::PLAIN, None);
            let joined = g.one(Concat::mp_cat([8, second], 0.5), &[t[0], t[1]])?;
            let h = g.one(Activation::MP_SILU, &[joined])?;
            let h = layer(g, h, t[3])?;
            let h = g.one(Combine::Product, &[h, t[2]])?;
            let h = g.one(Activation::MP_SILU, &[h])?;
            let h = layer(g, h, t[4])?;
            let skip = layer(g, joined, t[5])?;
            g.one(Combine::mp_sum(0.3), &[skip, h])
        };
        let names = check(&inputs, build, false);
        let count = |name| names.iter().filter(|other| **other == name).count();
        assert_eq!((count("silu"), count("add"), count("conv2d")), (0, 0, 3), "{names:?}");
        // What is left of a concatenation is that of its scales, which are 1 for equally many channels;
        // those of the shortcut are factors of its weight.
        let scaled = usize::from(second != 8);
        assert_eq!((count("concat"), count("mul")), (scaled, scaled), "{names:?}");
        check(&inputs, build, true);
    }
}

/// What convolutions take in on targets with kernels: a sum with scales, a 1×1 shortcut of a scaled
/// concatenation, and clipping, which is where many values here end.
#[test]
fn kernels_take_in_the_ends_of_magnitude_preserving_blocks() {
    let clip = Activation::Clip { limit: 0.75 };
    let layer = |g: &mut Graph, x, w| mp_layer(g, x, w, WeightNorm::PLAIN, None);
    let decoder = |g: &mut Graph, t: &[TensorId]| {
        let joined = g.one(Concat::mp_cat([8, 4], 0.5), &[t[0], t[1]])?;
        let h = g.one(Activation::MP_SILU, &[joined])?;
        let h = layer(g, h, t[2])?;
        let skip = layer(g, joined, t[3])?;
        let y = g.one(Combine::mp_sum(0.3), &[skip, h])?;
        g.one(clip, &[y])
    };
    let encoder = |g: &mut Graph, t: &[TensorId]| {
        let x = g.one(Pool2d::average(2), &[t[0]])?;
        let x = g.one(PixelNorm { groups: 1 }, &[x])?;
        let ones = PadChannels { before: 0, after: 1, scale: 1.0, value: 1.0 };
        let h = g.one(ones, &[x])?;
        let h = layer(g, h, t[1])?;
        let y = g.one(Combine::mp_sum(0.3), &[x, h])?;
        g.one(clip, &[y])
    };
    let decoder_inputs: [(&str, &[usize]); 4] =
        [("a", &[2, 6, 7, 8]), ("b", &[2, 6, 7, 4]), ("w", &[8, 12, 3, 3]), ("s", &[8, 12, 1, 1])];
    let encoder_inputs: [(&str, &[usize]); 2] = [("x", &[2, 12, 14, 8]), ("w", &[8, 9, 3, 3])];
    type Block<'a> = &'a dyn Fn(&mut Graph, &[TensorId]) -> Result<TensorId>;
    type Inputs<'a> = &'a [(&'a str, &'a [usize])];
    let blocks: [(Inputs, Block); 2] = [(&decoder_inputs, &decoder), (&encoder_inputs, &encoder)];
    for (inputs, build) in blocks {
        let (_, want) = run(inputs, build, false, false).unwrap();
        let clipped = want[0].iter().filter(|v| v.abs() == 0.75).count();
        assert!(clipped > 20 && clipped < want[0].len() / 2, "{clipped} values are clipped");
        for device in ["emulated:v100", "emulated:h100"] {
            let device = open_by_name(device).unwrap();
            let Ran { launched: names, values, .. } =
                run_on(device.as_ref(), inputs, build, false, true).unwrap();
            for (got, want) in values[0].iter().zip(&want[0]) {
                assert!((got - want).abs() <= 2e-5, "{got} is not {want}");
            }
            let count = |name| names.iter().filter(|other| **other == name).count();
            let on_maps = ["add", "clip", "pool2d", "silu"].map(count);
            assert_eq!((count("conv2d"), on_maps), (1, [0; 4]), "{names:?}");
            // That of the row of scales.
            let pads = usize::from(inputs.len() == decoder_inputs.len());
            assert_eq!(count("pad_channels"), pads, "{names:?}");
        }
    }
}

/// Attention of the parts of one normalised tensor, and something else made of its values.
fn cosine_attention(g: &mut Graph, x: TensorId, other: bool) -> Result<TensorId> {
    let normed = g.one(PixelNorm { groups: 6 }, &[x])?;
    let tokens = g.reshape(normed, &[2, 35, 24])?;
    let [q, k, v] = [0, 1, 2].map(|part| g.one(SliceChannels::plain(8 * part, 8), &[tokens]));
    let (q, k, v) = (q?, k?, v?);
    let y = g.one(Attention { heads: 2, scale: 0.5 }, &[q, k, v])?;
    if other { g.one(Combine::Product, &[y, v]) } else { Ok(y) }
}

#[test]
fn attention_takes_in_normalisation_and_the_whole_of_its_parts() {
    let inputs: [(&str, &[usize]); 1] = [("x", &[2, 5, 7, 24])];
    let names = check(&inputs, |g, t| cosine_attention(g, t[0], false), false);
    assert_eq!(names, ["attention"]);
    // Where something else reads a part, as gradients do, parts are written.
    let names = check(&inputs, |g, t| cosine_attention(g, t[0], true), false);
    assert!(names.contains(&"pixel_norm") && names.contains(&"slice_channels"), "{names:?}");
    check(&inputs, |g, t| cosine_attention(g, t[0], false), true);
    // Parts in another order are other queries, keys and values.
    let turned = |g: &mut Graph, t: &[TensorId]| {
        let normed = g.one(PixelNorm { groups: 3 }, &[t[0]])?;
        let tokens = g.reshape(normed, &[2, 35, 24])?;
        let [k, q, v] = [0, 1, 2].map(|part| g.one(SliceChannels::plain(8 * part, 8), &[tokens]));
        g.one(Attention { heads: 1, scale: 0.5 }, &[q?, k?, v?])
    };
    assert!(check(&inputs, turned, false).contains(&"slice_channels"));
}

/// Where something else reads the activation, it is written.
#[test]
fn an_activation_that_is_read_twice_stays() {
    let inputs: [(&str, &[usize]); 2] = [("x", &[1, 5, 4, 8]), ("w", &[8, 8, 3, 3])];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let h = g.one(Activation::MP_SILU, &[t[0]])?;
        let y = mp_layer(g, h, t[1], WeightNorm::PLAIN, None)?;
        g.one(Combine::mp_sum(0.3), &[h, y])
    };
    assert!(check(&inputs, build, false).contains(&"silu"));
}

/// A residual block of a U-Net in training: the normalisations' gradients take in the sums behind them.
#[test]
fn gradients_take_in_residuals_and_sums_over_pixels() {
    let inputs: [(&str, &[usize]); 8] = [
        ("x", &[2, 5, 7, 8]),
        ("gamma", &[8]),
        ("beta", &[8]),
        ("w", &[8, 8, 3, 3]),
        ("row", &[2, 8]),
        ("gamma2", &[8]),
        ("beta2", &[8]),
        ("w2", &[8, 8, 3, 3]),
    ];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let h = norm_silu(g, &[t[0], t[1], t[2]])?;
        let h = conv(g, h, t[3])?;
        let h = g.one(Combine::ADD, &[h, t[4]])?;
        let h = norm_silu(g, &[h, t[5], t[6]])?;
        let h = conv(g, h, t[7])?;
        let y = g.one(Combine::ADD, &[h, t[0]])?;
        // Read once more, as by a skip connection.
        g.one(Combine::Product, &[y, t[0]])
    };
    let names = check(&inputs, build, true);
    assert!(!names.contains(&"add") && !names.contains(&"sum_pixels"), "{names:?}");
}

/// A block that reads a concatenation, and upsampling behind it, in training.
#[test]
fn concatenation_and_upsampling_are_not_written_in_training_either() {
    let inputs = [&JOINED[..], &[("w2", &[4, 8, 3, 3])]].concat();
    let build = |g: &mut Graph, t: &[TensorId]| {
        let h = joined_block(g, t)?;
        let up = g.one(UpsampleNearest2d { factor: 2, scale: 1.0 }, &[h])?;
        conv(g, up, t[6])
    };
    let names = check(&inputs, build, true);
    for gone in ["concat", "slice_channels", "add", "upsample_nearest"] {
        assert!(!names.iter().any(|name| name.starts_with(gone)), "{names:?}");
    }
}

/// Three layers of the same rows, each read elsewhere, and another layer between them and behind them.
#[test]
fn linear_layers_of_the_same_rows_are_one_operation() {
    let inputs: [(&str, &[usize]); 9] = [
        ("x", &[3, 6]),
        ("w0", &[8, 6]),
        ("b0", &[8]),
        ("w1", &[4, 6]),
        ("b1", &[4]),
        ("w2", &[8, 6]),
        ("b2", &[8]),
        ("w3", &[4, 8]),
        ("b3", &[4]),
    ];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let rows = g.one(Activation::SILU, &[t[0]])?;
        let first = linear(g, rows, t[1], Some(t[2]))?;
        let between = linear(g, first, t[7], Some(t[8]))?;
        let second = linear(g, rows, t[3], Some(t[4]))?;
        let third = linear(g, rows, t[5], Some(t[6]))?;
        let sum = g.one(Combine::Product, &[between, second])?;
        let third = linear(g, third, t[7], Some(t[8]))?;
        g.one(Combine::Product, &[sum, third])
    };
    // One of the three layers, and one of each that has rows of its own.
    let count = |names: &[&str], one: &str| names.iter().filter(|name| **name == one).count();
    assert_eq!(count(&check(&inputs, build, false), "row_linear"), 3);
    let names = check(&inputs, build, true);
    for each in ["row_linear", "row_linear_dgrad", "row_linear_wgrad"] {
        assert_eq!(count(&names, each), 3, "{names:?}");
    }
    assert!(!names.iter().any(|name| name.starts_with("conv2d")), "{names:?}");
}

/// Alone, a layer that something is added to stays a convolution, which takes that in.
#[test]
fn a_layer_of_rows_takes_in_a_residual() {
    let inputs: [(&str, &[usize]); 4] =
        [("x", &[3, 6]), ("w", &[8, 6]), ("b", &[8]), ("residual", &[3, 8])];
    let build = |g: &mut Graph, t: &[TensorId]| {
        let y = linear(g, t[0], t[1], Some(t[2]))?;
        g.one(Combine::ADD, &[y, t[3]])
    };
    let names = check(&inputs, build, false);
    assert!(!names.contains(&"add") && !names.contains(&"row_linear"), "{names:?}");
}

/// Sums over many rows are left to convolutions, which split them; what is of single rows is not.
#[test]
fn gradients_of_weights_of_many_rows_stay_split() {
    let build = |g: &mut Graph, t: &[TensorId]| {
        let y = linear(g, t[0], t[1], Some(t[2]))?;
        g.one(Activation::SILU, &[y])
    };
    for (rows, name) in [(1024, "row_linear_wgrad"), (1025, "conv2d_wgrad")] {
        let x = [rows, 3];
        let inputs: [(&str, &[usize]); 3] = [("x", &x), ("w", &[2, 3]), ("b", &[2])];
        let names = check(&inputs, build, true);
        assert!(names.contains(&name) && names.contains(&"row_linear"), "{names:?}");
    }
}
