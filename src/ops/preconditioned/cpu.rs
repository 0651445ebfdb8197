//! Preconditioned outputs on the CPU.

use super::Preconditioned;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::shape::{Extent, Slices};

impl CpuKernel for Preconditioned {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let extent = Extent::of(io.inputs[0].shape);
        let channels = extent.channels;
        let [x, output, c_skip, c_out] = [0, 1, 2, 3].map(|index| io.inputs[index].data);
        let slices = Slices::new(extent.pixels, channels);
        let cut = slices.cut(extent, &mut *io.outputs[0].data);
        cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, slice, [y]| {
            let start = sample * extent.sample() + slices.range(slice).start * channels;
            let images = [x, output].map(|values| &values[start..][..y.len()]);
            let rows = [c_skip, c_out].map(|rows| row_of(rows, sample, channels));
            blend(cpu.simd(), images, rows, y);
        });
    }
}

/// The row of a sample, where there is one for all or each has its own.
pub(in crate::ops) fn row_of(rows: &[f32], sample: usize, channels: usize) -> &[f32] {
    &rows[sample % (rows.len() / channels) * channels..][..channels]
}

crate::vectorised! {
    /// Sums of two images, each times its row at every pixel.
    pub(in crate::ops) fn blend<'a>(images: [&'a [f32]; 2], rows: [&'a [f32]; 2], y: &'a mut [f32]) {
        let [a, b] = images.map(|image| image.chunks_exact(rows[0].len()));
        for ((y, a), b) in y.chunks_exact_mut(rows[0].len()).zip(a).zip(b) {
            for (c, y) in y.iter_mut().enumerate() {
                *y = rows[0][c].mul_add(a[c], rows[1][c] * b[c]);
            }
        }
    }
}
