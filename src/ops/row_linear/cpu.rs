//! Linear layers of the same rows on the CPU: a task has some channels of a layer, or some columns of x.

use super::RowLinear;
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io, simd};

/// Columns of dx that a task has.
const COLUMNS: usize = 64;
/// Channels of a layer that a task has.
const CHANNELS: usize = 16;

impl CpuKernel for RowLinear {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let layers = self.layers(io.inputs.len());
        match self {
            RowLinear::Forward => {
                let (x, width) = (io.inputs[0].data, io.inputs[0].shape[1]);
                let (weights, biases) = io.inputs[1..].split_at(layers);
                for ((w, b), y) in weights.iter().zip(biases).zip(io.outputs) {
                    let channels = b.data.len();
                    let cut = Cut { data: &mut *y.data, sample: channels, slice: CHANNELS };
                    let rows = x.len() / width;
                    cpu.cut_mut(rows, channels.div_ceil(CHANNELS), [cut], &|row, slice, [y]| {
                        let x = &x[row * width..][..width];
                        let w = &w.data[slice * CHANNELS * width..];
                        products(cpu.simd(), x, w, &b.data[slice * CHANNELS..], y);
                    });
                }
            }
            RowLinear::Dgrad => {
                let (gradients, weights) = io.inputs.split_at(layers);
                let dx = &mut io.outputs[0];
                let (rows, width) = (dx.shape[0], dx.shape[1]);
                let cut = Cut { data: &mut *dx.data, sample: width, slice: COLUMNS };
                cpu.cut_mut(rows, width.div_ceil(COLUMNS), [cut], &|row, slice, [dx]| {
                    dx.fill(0.0);
                    for (dy, w) in gradients.iter().zip(weights) {
                        let channels = dy.shape[1];
                        let dy = &dy.data[row * channels..][..channels];
                        add_scaled(cpu.simd(), dy, &w.data[slice * COLUMNS..], width, dx);
                    }
                });
            }
            RowLinear::Wgrad => {
                let (x, width) = (io.inputs[0].data, io.inputs[0].shape[1]);
                let (weights, biases) = io.outputs.split_at_mut(layers);
                let each = io.inputs[1..].iter().zip(weights).zip(biases);
                for ((dy, dw), db) in each {
                    let channels = db.data.len();
                    cpu.chunks_mut(dw.data, width, &|c, dw| {
                        dw.fill(0.0);
                        for (x, dy) in x.chunks_exact(width).zip(dy.data.chunks_exact(channels)) {
                            add_scaled(cpu.simd(), &dy[c..=c], x, width, dw);
                        }
                    });
                    for (c, db) in db.data.iter_mut().enumerate() {
                        *db = dy.data.iter().skip(c).step_by(channels).sum();
                    }
                }
            }
        }
    }
}

crate::vectorised! {
    /// y_c = x·w_c + b_c for rows w_c as long as x.
    fn products<'a>(x: &'a [f32], w: &'a [f32], b: &'a [f32], y: &'a mut [f32]) {
        for ((y, w), b) in y.iter_mut().zip(w.chunks_exact(x.len())).zip(b) {
            *y = simd::dot(x, w) + b;
        }
    }
}

crate::vectorised! {
    /// y += Σ s_i·w_i, where w_i starts every `pitch` elements.
    fn add_scaled<'a>(s: &'a [f32], w: &'a [f32], pitch: usize, y: &'a mut [f32]) {
        for (i, &s) in s.iter().enumerate() {
            let row = &w[i * pitch..][..y.len()];
            for (y, &w) in y.iter_mut().zip(row) {
                *y = s.mul_add(w, *y);
            }
        }
    }
}
