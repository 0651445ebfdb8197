//! Upsampling and pooling on the CPU, a row of the output a task.

use super::{Pool2d, UpsampleNearest2d};
use crate::device::cpu::{Cpu, CpuKernel, Io, Tensor};

impl CpuKernel for UpsampleNearest2d {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (x, y) = (io.inputs[0], &mut io.outputs[0]);
        let (factor, scale) = (self.factor, self.scale);
        let (width, channels) = (x.shape[2], x.shape[3]);
        // Row r of all rows of the output reads row r / factor of all rows of the input, across
        // samples too, because an output has exactly factor times the rows.
        cpu.chunks_mut(y.data, width * factor * channels, &|row, y| {
            let x = &x.data[row / factor * width * channels..][..width * channels];
            copy_row(cpu.simd(), x, y, factor, channels, scale);
        });
    }
}

impl CpuKernel for Pool2d {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        self.pool(cpu, &io.inputs[0], io.outputs[0].data);
    }
}

impl Pool2d {
    /// `y` as the operation leaves it.
    pub(in crate::ops) fn pool(&self, cpu: &Cpu, x: &Tensor, y: &mut [f32]) {
        let Pool2d { factor, scale } = *self;
        let (width, channels) = (x.shape[2], x.shape[3]);
        cpu.chunks_mut(y, width / factor * channels, &|row, y| {
            let x = &x.data[row * factor * width * channels..][..factor * width * channels];
            sum_rows(cpu.simd(), x, y, factor, channels, scale);
        });
    }
}

crate::vectorised! {
    fn copy_row<'a>(
        x: &'a [f32],
        y: &'a mut [f32],
        factor: usize,
        channels: usize,
        scale: f32,
    ) {
        for (y, x) in y.chunks_exact_mut(factor * channels).zip(x.chunks_exact(channels)) {
            for y in y.chunks_exact_mut(channels) {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = scale * x;
                }
            }
        }
    }
}

crate::vectorised! {
    /// `x` holds `factor` rows; `y` is one.
    fn sum_rows<'a>(
        x: &'a [f32],
        y: &'a mut [f32],
        factor: usize,
        channels: usize,
        scale: f32,
    ) {
        y.fill(0.0);
        for x in x.chunks_exact(x.len() / factor) {
            for (y, x) in y.chunks_exact_mut(channels).zip(x.chunks_exact(factor * channels)) {
                for x in x.chunks_exact(channels) {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y += x;
                    }
                }
            }
        }
        for y in y.iter_mut() {
            *y *= scale;
        }
    }
}
