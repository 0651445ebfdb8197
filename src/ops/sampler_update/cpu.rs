//! The samplers' update on the CPU.

use super::{COLUMNS, Noise, Row, SamplerUpdate};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::noise::cpu::seeded;
use crate::ops::noise::normal::fill_pixels;
use crate::ops::shape::{Extent, Slices};
use crate::ops::state;

impl CpuKernel for SamplerUpdate {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (output, state) = (io.inputs[0], io.inputs[2].data);
        let index = state::word(state, state::ROW) as usize;
        let row: Row = *bytemuck::from_bytes(bytemuck::cast_slice(
            &io.inputs[1].data[index * COLUMNS..][..COLUMNS],
        ));
        let extent = Extent::of(output.shape);
        let (sample_size, channels) = (extent.sample(), extent.channels);
        let slices = Slices::new(extent.pixels, channels);
        let slice = slices.pixels * channels;
        let (x, history) = io.outputs.split_at_mut(1);
        let (history, kept): (&mut [f32], usize) = match history {
            [history] => (history.data, 1),
            _ => (&mut [], 0),
        };
        let drawn = usize::from(!io.scratch.is_empty());
        let cuts = [
            Cut { data: &mut *x[0].data, sample: sample_size, slice },
            Cut { data: history, sample: kept * sample_size, slice: kept * slice },
            Cut { data: io.scratch, sample: drawn * sample_size, slice: drawn * slice },
        ];
        let inputs = io.inputs;
        cpu.cut_mut(extent.batch, slices.count, cuts, &|sample, part, [x, history, scratch]| {
            let at = sample * sample_size + part * slice;
            let output = &output.data[at..][..x.len()];
            let noise: &[f32] = match self.noise {
                _ if row.sigma == 0.0 => &[],
                Noise::None => panic!("a row with noise in a sampler without"),
                Noise::Philox { purpose } => {
                    let stream = seeded(purpose, &inputs[3], state, sample);
                    let pixels = slices.range(part);
                    fill_pixels(cpu.simd(), &stream, pixels, extent.pixels, channels, scratch);
                    scratch
                }
                Noise::Given => &inputs[3].data[index * output_len(&extent) + at..][..x.len()],
            };
            update(cpu.simd(), row, output, noise, x, history);
        });
    }
}

/// Elements of the whole batch.
fn output_len(extent: &Extent) -> usize {
    extent.batch * extent.sample()
}

crate::vectorised! {
    /// Updates one slice; `noise` and `history` may be empty.
    fn update<'a>(
        row: Row,
        output: &'a [f32],
        noise: &'a [f32],
        x: &'a mut [f32],
        history: &'a mut [f32],
    ) {
        let length = x.len();
        let output = &output[..length];
        for i in 0..length {
            let old = x[i];
            let x0 = row.x0_from_x.mul_add(old, row.x0_from_output * output[i]);
            // Comparisons, not `clamp`, which the compiler doesn't vectorise as well; NaN stays.
            let x0 = if x0 > row.clip { row.clip } else { x0 };
            let x0 = if x0 < -row.clip { -row.clip } else { x0 };
            let eps = row.eps_from_x.mul_add(old, row.eps_from_output * output[i]);
            let mut new = row.x.mul_add(old, row.x0.mul_add(x0, row.eps * eps));
            if !history.is_empty() {
                let last = history[i];
                new = row.history.mul_add(last, new);
                let next = row.next_eps.mul_add(eps, row.next_history * last);
                history[i] = row.next_x.mul_add(old, row.next_x0.mul_add(x0, next));
            }
            if !noise.is_empty() {
                new = row.sigma.mul_add(noise[i], new);
            }
            x[i] = new;
        }
    }
}
