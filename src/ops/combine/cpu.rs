//! Sums and products on the CPU.

use super::Combine;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::shape::{Extent, Slices};

impl CpuKernel for Combine {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (a, b) = (io.inputs[0], io.inputs[1]);
        let same = a.shape == b.shape;
        let extent = Extent::of(a.shape);
        let channels = extent.channels;
        let slices = Slices::new(extent.pixels, channels);
        let cut = slices.cut(extent, &mut *io.outputs[0].data);
        cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, slice, [y]| {
            let start = sample * extent.sample() + slices.range(slice).start * channels;
            let a = &a.data[start..][..y.len()];
            let b = if same {
                &b.data[start..][..y.len()]
            } else {
                let rows = b.data.len() / channels;
                &b.data[sample % rows * channels..][..channels]
            };
            match *self {
                Combine::Sum(scales) => sum(cpu.simd(), a, b, y, scales),
                Combine::Product => product(cpu.simd(), a, b, y),
            }
        });
    }
}

crate::vectorised! {
    /// Adds `b` to rows of `a`, each as long as `b`.
    fn sum<'a>(a: &'a [f32], b: &'a [f32], y: &'a mut [f32], scales: [f32; 2]) {
        for (y, a) in y.chunks_exact_mut(b.len()).zip(a.chunks_exact(b.len())) {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = scales[0] * a + scales[1] * b;
            }
        }
    }
}

crate::vectorised! {
    /// Multiplies rows of `a`, each as long as `b`, by `b`.
    fn product<'a>(a: &'a [f32], b: &'a [f32], y: &'a mut [f32]) {
        for (y, a) in y.chunks_exact_mut(b.len()).zip(a.chunks_exact(b.len())) {
            for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
                *y = a * b;
            }
        }
    }
}
