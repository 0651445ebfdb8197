//! Normalisation of weights on the CPU, a row a task.

use super::{ForceUnitNorm, WeightNorm, WeightNormGrad};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io, Tensor, simd};
use crate::ops::pixel_norm::EPSILON;

/// The learned gain, where an operation has one.
fn learned(inputs: &[Tensor], index: usize) -> f32 {
    inputs.get(index).map_or(1.0, |gain| gain.data[0])
}

/// Row of the weight that stands at `place` of the result: the way back of [`WeightNorm::place`].
fn row_at(op: &WeightNorm, place: usize, rows: usize) -> usize {
    let each = rows / op.parts;
    place % each * op.parts + place / each
}

impl CpuKernel for WeightNorm {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (w, gain) = (io.inputs[0], self.gain * learned(io.inputs, 1));
        let rows = w.shape[0];
        let length = w.data.len() / rows;
        cpu.chunks_mut(io.outputs[0].data, length, &|place, y| {
            let row = row_at(self, place, rows);
            y.copy_from_slice(&w.data[row * length..][..length]);
            normalise(cpu.simd(), y, gain);
        });
    }
}

impl CpuKernel for ForceUnitNorm {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let w = &mut io.outputs[0];
        let length = w.data.len() / w.shape[0];
        cpu.chunks_mut(w.data, length, &|_, row| {
            normalise(cpu.simd(), row, (length as f32).sqrt());
        });
    }
}

impl CpuKernel for WeightNormGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (dy, w, op) = (io.inputs[0].data, io.inputs[1], &self.0);
        let gain = op.gain * learned(io.inputs, 2);
        let rows = w.shape[0];
        let length = w.data.len() / rows;
        let task = |row: usize, dw: &mut [f32]| {
            let dy = &dy[op.place(row, rows) * length..][..length];
            op.gain * backward(cpu.simd(), dy, &w.data[row * length..][..length], dw, gain)
        };
        match io.outputs {
            [dw] => cpu.chunks_mut(dw.data, length, &|row, dw| {
                task(row, dw);
            }),
            [dw, shares] => {
                let cuts = [(&mut *dw.data, length), (&mut *shares.data, 1)]
                    .map(|(data, each)| Cut { data, sample: each, slice: each });
                cpu.cut_mut(rows, 1, cuts, &|row, _, [dw, share]| share[0] = task(row, dw));
            }
            _ => unreachable!("outputs are those of the shape rule"),
        }
    }
}

/// What a row is multiplied by, but for its gain, and its norm.
#[inline(always)]
fn inverse(w: &[f32]) -> (f32, f32) {
    let norm = simd::dot(w, w).sqrt();
    (1.0 / (EPSILON * (w.len() as f32).sqrt() + norm), norm)
}

crate::vectorised! {
    fn normalise<'a>(row: &'a mut [f32], gain: f32) {
        let scale = gain * inverse(row).0;
        for w in row.iter_mut() {
            *w *= scale;
        }
    }
}

crate::vectorised! {
    /// Writes dw and gives the derivative by the gain.
    fn backward<'a>(dy: &'a [f32], w: &'a [f32], dw: &'a mut [f32], gain: f32) -> f32 {
        let (inverse, norm) = inverse(w);
        let dot = simd::dot(dy, w);
        let scale = gain * inverse;
        // Where w is zero, so is what this multiplies.
        let back = if norm > 0.0 { -scale * inverse * (dot / norm) } else { 0.0 };
        for ((dw, &dy), &w) in dw.iter_mut().zip(dy).zip(w) {
            *dw = back.mul_add(w, scale * dy);
        }
        inverse * dot
    }
}
