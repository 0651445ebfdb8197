//! The mean squared error on the CPU: slices of samples in float32 lanes, their sums in float64.

use super::{MseLoss, MseLossGrad, slices};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io, Tensor, simd};

/// Σ (x − target)² of each sample of two tensors; `scratch` has an element for each slice.
pub(in crate::ops) fn sample_squares<'a>(
    cpu: &Cpu,
    inputs: &[Tensor],
    scratch: &'a mut [f32],
) -> impl Iterator<Item = f64> + use<'a> {
    let (x, target) = (inputs[0], inputs[1]);
    let (batch, slices) = slices(x.shape);
    let elements = x.data.len() / batch;
    cpu.chunks_mut(scratch, 1, &|task, sum| {
        let (sample, slice) = (task / slices.count, task % slices.count);
        let range = slices.range(slice);
        let range = sample * elements + range.start..sample * elements + range.end;
        sum[0] = squares(cpu.simd(), &x.data[range.clone()], &target.data[range]);
    });
    let samples = scratch.chunks_exact(slices.count);
    samples.map(|sums| sums.iter().map(|&sum| f64::from(sum)).sum())
}

/// w_b / elements of a sample.
fn weight(weights: Option<&Tensor>, sample: usize, batch: usize, elements: usize) -> f64 {
    let weight = weights.map_or(1.0 / batch as f64, |weights| f64::from(weights.data[sample]));
    weight / elements as f64
}

impl CpuKernel for MseLoss {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let batch = io.inputs[0].shape[0];
        let elements = io.inputs[0].data.len() / batch;
        let samples = sample_squares(cpu, io.inputs, io.scratch).enumerate();
        let loss = samples
            .map(|(sample, squares)| weight(io.inputs.get(2), sample, batch, elements) * squares);
        io.outputs[0].data[0] = loss.sum::<f64>() as f32;
    }
}

impl CpuKernel for MseLossGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dloss, x, target) = (io.inputs[0].data[0], io.inputs[1], io.inputs[2]);
        let (batch, slices) = slices(x.shape);
        let elements = x.data.len() / batch;
        let cut = Cut { data: &mut *io.outputs[0].data, sample: elements, slice: slices.pixels };
        cpu.cut_mut(batch, slices.count, [cut], &|sample, slice, [dx]| {
            let at = sample * elements + slice * slices.pixels;
            let scale = 2.0 * f64::from(dloss) * weight(io.inputs.get(3), sample, batch, elements);
            let (x, target) = (&x.data[at..][..dx.len()], &target.data[at..][..dx.len()]);
            differences(cpu.simd(), x, target, scale as f32, dx);
        });
    }
}

crate::vectorised! {
    /// Σ (x − target)².
    fn squares<'a>(x: &'a [f32], target: &'a [f32]) -> f32 {
        simd::sum_of(x, target, |sum, x, target| (x - target).mul_add(x - target, sum))
    }
}

crate::vectorised! {
    /// dx = scale·(x − target).
    pub fn differences<'a>(x: &'a [f32], target: &'a [f32], scale: f32, dx: &'a mut [f32]) {
        for ((dx, &x), &target) in dx.iter_mut().zip(x).zip(target) {
            *dx = scale * (x - target);
        }
    }
}
