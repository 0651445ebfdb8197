//! A convolution and a 1×1 one of other sources that is added, as one launch.

use super::{BOTH, convolutions, orders};
use crate::device::cpu::CpuDevice;
use crate::device::emulated::Emulated;
use crate::device::{Device, Precision, Target};
use crate::graph::{Build, Engine, Graph, Region, fuse};
use crate::ops::combine::Combine;
use crate::ops::concat::Concat;
use crate::ops::conv2d::Conv2d;
use crate::ops::testing::{Host, assert_close};
use std::ops::Range;

/// What is computed on a device: images of this size, a kernel of so many taps on either side, the convolution's channels
/// and those of both sources of the other, of which the second may have none.
#[derive(Clone, Copy)]
struct Case {
    size: [usize; 2],
    taps: usize,
    channels: [usize; 3],
}

/// One image, 3 × 3 taps.
fn image(size: [usize; 2], channels: [usize; 3]) -> Case {
    Case { size, taps: 3, channels }
}

const SAMPLES: usize = 3;

impl Case {
    /// The sum for these of the samples, and where there are kernels the one that makes it, and the parts that it is split
    /// into.
    fn run(
        &self,
        device: &dyn Device,
        samples: Range<usize>,
    ) -> (Vec<f32>, Option<(&'static str, u32)>) {
        let Case { size: [height, width], taps, channels: [channels, first, second] } = *self;
        let images = |channels| Host::random(&[SAMPLES, height, width, channels], channels as u64);
        let parameter = |shape: &[usize], seed| Host::random(shape, seed);
        let mut given = vec![
            ("x", images(channels).samples(samples.clone())),
            ("weight", parameter(&[40, channels, taps, taps], 1)),
            ("bias", parameter(&[40], 2)),
            ("shortcut", parameter(&[40, first + second, 1, 1], 3)),
            ("shortcut.bias", parameter(&[40], 4)),
            ("first", images(first).samples(samples.clone())),
        ];
        given.extend((second > 0).then(|| ("second", images(second).samples(samples))));
        let mut g = Graph::new();
        let inputs: Vec<_> =
            given.iter().map(|(name, host)| g.input(name, host.ty.clone()).unwrap()).collect();
        let h = g.one(Conv2d::same([taps; 2], true), &inputs[..3]).unwrap();
        let sources = &inputs[5..];
        let sources = if second > 0 { g.one(Concat::PLAIN, sources).unwrap() } else { sources[0] };
        let more = g.one(Conv2d::pointwise(true), &[sources, inputs[3], inputs[4]]).unwrap();
        let y = g.one(Combine::ADD, &[h, more]).unwrap();
        let slot = g.input("y", g.ty(y).clone()).unwrap();
        g.bind(y, slot).unwrap();
        fuse::fuse(&mut g).unwrap();
        let mut engine = Engine::single(g, device).unwrap();
        for (name, host) in &given {
            let scale = (channels as f32).powf(-0.25);
            let scaled: Vec<f32> = host.data.iter().map(|x| x * scale).collect();
            engine.write(Region::State, name, &scaled).unwrap();
        }
        engine.run("run").unwrap();
        let made: Vec<_> =
            convolutions(&engine).iter().map(|work| (work.kernel, work.grid[2])).collect();
        assert!(made.len() <= 1, "{made:?}");
        (engine.read(Region::State, "y").unwrap(), made.first().copied())
    }

    /// Compares with `cpu` on a target, in several orders; returns the kernel and its parts.
    fn check(&self, target: &Target, samples: Range<usize>) -> (&'static str, u32) {
        let (want, _) = self.run(&CpuDevice::new(), samples.clone());
        let on =
            |seed| self.run(&Emulated::with_seed(target.clone(), seed).unwrap(), samples.clone());
        let (got, made) = on(1);
        let largest = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let tolerance = if target.precision == Precision::Fp16 { 4e-3 } else { 1e-5 };
        assert_close(&got, &want, tolerance * largest);
        for seed in 2..=orders() {
            assert!(on(seed).0.iter().zip(&got).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
        made.expect("a kernel makes both")
    }
}

const SMALL16: &str = "conv2d_small16_fwd_nhwc_f16";
const SMALL32: &str = "conv2d_small32_fwd_nhwc_f16";
const SMALL64: &str = "conv2d_small64_fwd_nhwc_f16";
const ALONE: &str = "conv2d_alone_fwd_nhwc_f16";
const ALONE80: &str = "conv2d_alone80_fwd_nhwc_f16";

/// Parts have chunks of the sources and of the shortcut: as many, more of the one or of the other, none of the shortcut.
#[test]
fn shortcuts_in_parts() {
    // On chips of so many multiprocessors, with eight warps and with four.
    for (channels, multiprocessors, in_half) in [
        ([136, 40, 0], 4, ALONE),
        ([72, 200, 0], 2, ALONE),
        ([136, 104, 96], 4, ALONE),
        ([40, 24, 0], 2, SMALL64),
        ([64, 72, 0], 1, ALONE),
    ] {
        for (full, precision) in BOTH
            .map(|full| (full, Precision::Fp16))
            .into_iter()
            .chain([(Target::V100, Precision::Fp32), (Target::H100, Precision::Fp32)])
        {
            let target = Target { multiprocessors, precision, ..full };
            let (kernel, parts) = image([3, 5], channels).check(&target, 0..1);
            let in_float32 = "conv2d_small_fwd_nhwc_f32";
            assert_eq!(kernel, if precision == Precision::Fp16 { in_half } else { in_float32 });
            assert_eq!(parts > 1, multiprocessors > 1, "{parts} parts");
        }
    }
}

/// Of one piece, of an odd number, of a whole unit and of one that isn't, with the seam inside of one; of channels that
/// are read one by one; of several samples.
#[test]
fn shortcuts_of_any_channels() {
    let shortcuts = [
        [8, 0],
        [16, 0],
        [24, 0],
        [32, 0],
        [48, 0],
        [8, 16],
        [16, 32],
        [24, 40],
        [5, 0],
        [13, 30],
        [16, 3],
    ];
    for full in BOTH {
        let target = Target { multiprocessors: 1, precision: Precision::Fp16, ..full };
        for [first, second] in shortcuts {
            let (kernel, _) = image([3, 5], [16, first, second]).check(&target, 0..1);
            assert_eq!(kernel, SMALL64);
        }
        // Two tiles; three samples; tiles of few channels, where many multiprocessors would be left without a block.
        for (multiprocessors, case, samples, kernel) in [
            (2, image([9, 3], [64, 40, 24]), 0..1, ALONE),
            (3, image([3, 5], [64, 48, 0]), 0..3, ALONE),
            (1, image([3, 5], [16, 16, 21]), 0..3, SMALL64),
            (3, image([3, 5], [16, 48, 0]), 0..1, SMALL32),
            (132, image([3, 5], [16, 24, 0]), 0..1, SMALL16),
        ] {
            let target = Target { multiprocessors, ..target.clone() };
            assert_eq!(case.check(&target, samples).0, kernel);
        }
    }
}

/// More units than groups of warps, of tiles of 64 pixels and of 80.
#[test]
fn larger_shortcuts() {
    for full in BOTH {
        let on = |multiprocessors| Target {
            multiprocessors,
            precision: Precision::Fp16,
            ..full.clone()
        };
        assert_eq!(image([8, 8], [64, 168, 132]).check(&on(1), 0..1).0, ALONE);
        assert_eq!(image([10, 13], [64, 160, 72]).check(&on(2), 0..1).0, ALONE80);
    }
}

/// Where the convolution has one tap, too, the pixels of all samples are one row; a sample then has the same bits alone.
#[test]
fn shortcuts_of_rows() {
    for full in BOTH {
        for channels in [[16, 24, 0], [16, 40, 32], [64, 13, 30]] {
            let case = Case { size: [3, 5], taps: 1, channels };
            let target = Target {
                multiprocessors: 1,
                precision: Precision::Fp16,
                batch_invariant: true,
                ..full.clone()
            };
            assert_eq!(case.check(&target, 0..SAMPLES).0, SMALL64);
            let device = Emulated::with_seed(target, 1).unwrap();
            let (together, _) = case.run(&device, 0..SAMPLES);
            let alone = (0..SAMPLES).flat_map(|sample| case.run(&device, sample..sample + 1).0);
            assert!(alone.zip(&together).all(|(alone, y)| alone.to_bits() == y.to_bits()));
        }
    }
}
