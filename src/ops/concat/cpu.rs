//! Copies of channels on the CPU.

use super::{Concat, PadChannels, SliceChannels};
use crate::device::cpu::{Cpu, CpuKernel, Io, TensorMut};
use crate::ops::shape::Slices;

/// Calls `copy(first pixel, pixels of y)` for slices of all pixels of `y`.
fn by_pixels(cpu: &Cpu, y: &mut TensorMut, copy: &(dyn Fn(usize, &mut [f32]) + Sync)) {
    let channels = y.shape[y.shape.len() - 1];
    let pixels = Slices::new(y.data.len() / channels, channels).pixels;
    cpu.chunks_mut(y.data, pixels * channels, &|index, y| copy(index * pixels, y));
}

/// y = scale·x, without the product where there is none.
fn copy(x: &[f32], scale: f32, y: &mut [f32]) {
    if scale == 1.0 {
        return y.copy_from_slice(x);
    }
    for (y, &x) in y.iter_mut().zip(x) {
        *y = scale * x;
    }
}

impl CpuKernel for Concat {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (a, b) = (io.inputs[0], io.inputs[1]);
        let last = a.shape.len() - 1;
        let (width_a, width_b) = (a.shape[last], b.shape[last]);
        let [scale_a, scale_b] = self.scales;
        by_pixels(cpu, &mut io.outputs[0], &|first, y| {
            let a = a.data[first * width_a..].chunks_exact(width_a);
            let b = b.data[first * width_b..].chunks_exact(width_b);
            for ((y, a), b) in y.chunks_exact_mut(width_a + width_b).zip(a).zip(b) {
                copy(a, scale_a, &mut y[..width_a]);
                copy(b, scale_b, &mut y[width_a..]);
            }
        });
    }
}

impl CpuKernel for SliceChannels {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0];
        let width = x.shape[x.shape.len() - 1];
        by_pixels(cpu, &mut io.outputs[0], &|first, y| {
            let x = x.data[first * width..].chunks_exact(width);
            for (y, x) in y.chunks_exact_mut(self.channels).zip(x) {
                copy(&x[self.start..self.start + self.channels], self.scale, y);
            }
        });
    }
}

impl CpuKernel for PadChannels {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let x = io.inputs[0];
        let width = x.shape[x.shape.len() - 1];
        by_pixels(cpu, &mut io.outputs[0], &|first, y| {
            let x = x.data[first * width..].chunks_exact(width);
            for (y, x) in y.chunks_exact_mut(self.before + width + self.after).zip(x) {
                y[..self.before].fill(self.value);
                copy(x, self.scale, &mut y[self.before..self.before + width]);
                y[self.before + width..].fill(self.value);
            }
        });
    }
}
