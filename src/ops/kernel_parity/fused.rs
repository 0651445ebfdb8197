//! A residual block of a U-Net as fusion leaves it, on chips so small that its tiles get kernels which
//! networks of tests are too small for.

use super::{BOTH, convolutions, orders};
use crate::Result;
use crate::device::cpu::CpuDevice;
use crate::device::emulated::Emulated;
use crate::device::{Device, Precision, Target, TensorType};
use crate::graph::{Build, Engine, Graph, Region, TensorId, autodiff, fuse};
use crate::ops::combine::Combine;
use crate::ops::concat::Concat;
use crate::ops::conv2d::Conv2d;
use crate::ops::group_norm::GroupNorm;
use crate::ops::testing::{Host, assert_close};

/// Weights of 1×1 convolutions that read the same normalised block are siblings.
const WEIGHTS: [(&str, &[usize]); 14] = [
    ("first", &[64, 3, 3, 3]),
    ("skip", &[24, 3, 3, 3]),
    ("gamma0", &[88]),
    ("beta0", &[88]),
    ("conv0", &[72, 88, 3, 3]),
    ("gamma1", &[72]),
    ("beta1", &[72]),
    ("conv1", &[64, 72, 3, 3]),
    ("shortcut", &[64, 88, 1, 1]),
    ("gamma2", &[64]),
    ("beta2", &[64]),
    ("query", &[40, 64, 1, 1]),
    ("key", &[40, 64, 1, 1]),
    ("value", &[40, 64, 1, 1]),
];

/// A block of a decoder, which reads a concatenation and has a shortcut, and what attention would read of it.
fn block(g: &mut Graph, t: &[TensorId]) -> Result<TensorId> {
    let &[
        image,
        first,
        skip,
        gamma0,
        beta0,
        conv0,
        gamma1,
        beta1,
        conv1,
        shortcut,
        gamma2,
        beta2,
        q,
        k,
        v,
    ] = t
    else {
        unreachable!("an image, and as many as WEIGHTS")
    };
    let conv = |g: &mut Graph, x, weight| g.one(Conv2d::same([3, 3], false), &[x, weight]);
    let projected = |g: &mut Graph, x, weight| g.one(Conv2d::pointwise(false), &[x, weight]);
    let silu = GroupNorm { groups: 4, eps: 1e-5, silu: true };
    let parts = [conv(g, image, first)?, conv(g, image, skip)?];
    let joined = g.one(Concat::PLAIN, &parts)?;
    let h = g.one(silu, &[joined, gamma0, beta0])?;
    let h = conv(g, h, conv0)?;
    let h = g.one(silu, &[h, gamma1, beta1])?;
    let h = conv(g, h, conv1)?;
    let other = projected(g, joined, shortcut)?;
    let y = g.one(Combine::ADD, &[h, other])?;
    let norm = g.one(GroupNorm { silu: false, ..silu }, &[y, gamma2, beta2])?;
    let [q, k, v] = [q, k, v].map(|weight| projected(g, norm, weight));
    let (q, k, v) = (q?, k?, v?);
    let product = g.one(Combine::Product, &[q, k])?;
    g.one(Combine::Product, &[product, v])
}

/// Of an image of this height and width the result and, if wanted, the gradients of all inputs; and which kernels of
/// convolutions ran.
fn run(
    device: &dyn Device,
    [height, width]: [usize; 2],
    gradients: bool,
) -> (Vec<Vec<f32>>, Vec<&'static str>) {
    let mut g = Graph::new();
    let image = ("image", &[1, height, width, 3][..]);
    let given = [image].into_iter().chain(WEIGHTS);
    let inputs: Vec<TensorId> =
        given.clone().map(|(name, shape)| g.input(name, TensorType::f32(shape)).unwrap()).collect();
    let y = block(&mut g, &inputs).unwrap();
    let ty = g.ty(y).clone();
    let mut results = vec![y];
    let upstream = [("upstream", &ty.shape[..])];
    if gradients {
        let slot = g.input("upstream", ty.clone()).unwrap();
        let made = autodiff::gradients(&mut g, &[(y, slot)], &inputs).unwrap();
        results.extend(made.into_iter().map(|gradient| gradient.expect("every input matters")));
    }
    for (index, &result) in results.iter().enumerate() {
        let ty = g.ty(result).clone();
        let slot = g.input(&format!("result {index}"), ty).unwrap();
        g.bind(result, slot).unwrap();
    }
    fuse::fuse(&mut g).unwrap();
    let mut engine = Engine::single(g, device).unwrap();
    for (seed, (name, shape)) in given.chain(upstream.into_iter().filter(|_| gradients)).enumerate()
    {
        let values = Host::random(shape, seed as u64).data;
        // Sums stay near 1.
        let fan_in: usize = if seed > 0 { shape[1..].iter().product() } else { 1 };
        let scaled: Vec<f32> = values.iter().map(|x| x / (fan_in as f32).sqrt()).collect();
        engine.write(Region::State, name, &scaled).unwrap();
    }
    engine.run("run").unwrap();
    let kernels = convolutions(&engine).iter().map(|work| work.kernel).collect();
    let read = |index| engine.read(Region::State, &format!("result {index}")).unwrap();
    ((0..results.len()).map(read).collect(), kernels)
}

/// Shortcuts, siblings, moments and what gradients keep, of tiles of blocks alone.
#[test]
fn blocks_of_tiles_alone() {
    let size = [3, 5];
    let (want, _) = run(&CpuDevice::new(), size, true);
    for full in BOTH {
        let target = Target { multiprocessors: 4, precision: Precision::Fp16, ..full };
        let on = |seed, gradients| {
            run(&Emulated::with_seed(target.clone(), seed).unwrap(), size, gradients)
        };
        // The two in front of the block, and its three launches: the shortcut is in the second, all projections are
        // in the third.
        let [narrow, alone] = ["conv2d_small16_fwd_nhwc_f16", "conv2d_alone_fwd_nhwc_f16"];
        let forward = [narrow, narrow, alone, alone, alone];
        let (sampled, kernels) = on(1, false);
        assert_eq!(kernels, forward);
        let (got, kernels) = on(1, true);
        let in_front: Vec<_> = kernels.iter().take_while(|name| name.contains("_fwd_")).collect();
        assert_eq!(in_front, forward.iter().collect::<Vec<_>>());
        assert!(kernels.contains(&"conv2d_alone_dgrad_nhwc_f16"), "{kernels:?}");
        for (got, want) in got.iter().zip(&want).chain([(&sampled[0], &want[0])]) {
            assert_near(got, want);
        }
        for seed in 2..=orders() {
            let bits = |values: &[Vec<f32>]| -> Vec<u32> {
                values.iter().flatten().map(|x| x.to_bits()).collect()
            };
            let other = on(seed, true).0;
            assert!(bits(&other) == bits(&got), "{} depends on the order of lanes", target.name);
        }
    }
}

fn assert_near(got: &[f32], want: &[f32]) {
    let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    assert_close(got, want, 4e-3 * largest);
}

/// The convolution with the shortcut, of two chunks and three units, of tiles of 80 pixels.
#[test]
fn blocks_of_larger_tiles() {
    let size = [10, 24];
    let (want, _) = run(&CpuDevice::new(), size, true);
    let target = Target { multiprocessors: 4, precision: Precision::Fp16, ..Target::H100 };
    let (got, kernels) = run(&Emulated::with_seed(target, 1).unwrap(), size, true);
    assert!(kernels.contains(&"conv2d_alone80_fwd_nhwc_f16"), "{kernels:?}");
    for (got, want) in got.iter().zip(&want) {
        assert_near(got, want);
    }
}
