//! The samplers' update on the CPU.

use super::{Noise, Row, SamplerUpdate, pair};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::noise::cpu::seeded;
use crate::ops::noise::normal::fill_pixels;
use crate::ops::preconditioned::cpu::{blend, row_of};
use crate::ops::shape::{Extent, Slices};
use crate::ops::state;

impl CpuKernel for SamplerUpdate {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let Some((state, outputs)) = io.outputs.split_last_mut() else {
            unreachable!("the state is an output")
        };
        let (output, state) = (io.inputs[0], &mut *state.data);
        let index = state::word(state, state::ROW) as usize;
        let columns = self.columns();
        let rows: &[Row] = bytemuck::cast_slice(&io.inputs[1].data[index * columns..][..columns]);
        let row = rows[0];
        let extent = Extent::of(output.shape);
        let (sample_size, channels) = (extent.sample(), extent.channels);
        let slices = Slices::new(extent.pixels, channels);
        let slice = slices.pixels * channels;
        let drawn = matches!(self.noise, Noise::Philox { .. });
        let (drawn, made) = (usize::from(drawn), usize::from(self.preconditioned));
        let (made_data, drawn_data) = io.scratch.split_at_mut(made * output.data.len());
        // x, what it leaves, the history and what that leaves: those that there are.
        let mut outputs = outputs.iter_mut();
        let mut cut = |there: bool| {
            let data = if there { outputs.next().map(|view| &mut *view.data) } else { None };
            let kept = usize::from(data.is_some());
            let data = data.unwrap_or(&mut []);
            Cut { data, sample: kept * sample_size, slice: kept * slice }
        };
        let (x, x_rest) = (cut(true), cut(self.pairs));
        let (history, history_rest) = (cut(self.history), cut(self.history && self.pairs));
        let noise = Cut { data: drawn_data, sample: drawn * sample_size, slice: drawn * slice };
        let made = Cut { data: made_data, sample: made * sample_size, slice: made * slice };
        let cuts = [x, x_rest, history, history_rest, noise, made];
        let (inputs, more) = io.inputs.split_at(2 + self.factors());
        let now = &*state;
        cpu.cut_mut(extent.batch, slices.count, cuts, &|sample, part, cuts| {
            let [x, x_rest, history, history_rest, scratch, made] = cuts;
            let at = sample * sample_size + part * slice;
            let mut output = &output.data[at..][..x.len()];
            if let [_, _, c_skip, c_out] = inputs {
                let rows = [c_skip, c_out].map(|factor| row_of(factor.data, sample, channels));
                blend(cpu.simd(), [x, output], rows, made);
                output = made;
            }
            let noise: &[f32] = match self.noise {
                _ if row.sigma == 0.0 => &[],
                Noise::None => panic!("a row with noise in a sampler without"),
                Noise::Philox { purpose } => {
                    let stream = seeded(purpose, &more[0], now, sample);
                    let pixels = slices.range(part);
                    fill_pixels(cpu.simd(), &stream, pixels, extent.pixels, channels, scratch);
                    scratch
                }
                Noise::Given => &more[0].data[index * output_len(&extent) + at..][..x.len()],
            };
            match rows {
                [row] => update(cpu.simd(), *row, output, noise, x, history),
                _ => {
                    let state = Pairs { x, x_rest, history, history_rest };
                    update_pairs(cpu.simd(), [rows[0], rows[1]], output, noise, state);
                }
            }
        });
        state[state::ROW] = f32::from_bits(state::word(state, state::ROW).wrapping_add(1));
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

/// What a row in float64 updates; without a history its slices are empty.
struct Pairs<'a> {
    x: &'a mut [f32],
    x_rest: &'a mut [f32],
    history: &'a mut [f32],
    history_rest: &'a mut [f32],
}

crate::vectorised! {
    /// As `update`, of pairs; `rows` are the row and what float32 left of it.
    fn update_pairs<'a>(
        rows: [Row; 2],
        output: &'a [f32],
        noise: &'a [f32],
        state: Pairs<'a>,
    ) {
        let Pairs { x, x_rest, history, history_rest } = state;
        let length = x.len();
        let (output, x_rest) = (&output[..length], &mut x_rest[..length]);
        let of = |column: fn(&Row) -> f32| sum(column(&rows[0]), column(&rows[1]));
        let clip = f64::from(rows[0].clip);
        let (x0_from_x, x0_from_output) = (of(|row| row.x0_from_x), of(|row| row.x0_from_output));
        let (eps_from_x, eps_from_output) =
            (of(|row| row.eps_from_x), of(|row| row.eps_from_output));
        let (of_x, of_x0, of_eps) = (of(|row| row.x), of(|row| row.x0), of(|row| row.eps));
        let (of_history, sigma) = (of(|row| row.history), of(|row| row.sigma));
        let (next_x, next_x0) = (of(|row| row.next_x), of(|row| row.next_x0));
        let (next_eps, next_history) = (of(|row| row.next_eps), of(|row| row.next_history));
        for i in 0..length {
            let (old, output) = (sum(x[i], x_rest[i]), f64::from(output[i]));
            let x0 = x0_from_x.mul_add(old, x0_from_output * output);
            let x0 = if x0 > clip { clip } else { x0 };
            let x0 = if x0 < -clip { -clip } else { x0 };
            let eps = eps_from_x.mul_add(old, eps_from_output * output);
            let mut new = of_x.mul_add(old, of_x0.mul_add(x0, of_eps * eps));
            if !history.is_empty() {
                let last = sum(history[i], history_rest[i]);
                new = of_history.mul_add(last, new);
                let next = next_eps.mul_add(eps, next_history * last);
                let next = next_x.mul_add(old, next_x0.mul_add(x0, next));
                [history[i], history_rest[i]] = pair(next);
            }
            if !noise.is_empty() {
                new = sigma.mul_add(f64::from(noise[i]), new);
            }
            [x[i], x_rest[i]] = pair(new);
        }
    }
}

#[inline(always)]
fn sum(high: f32, low: f32) -> f64 {
    f64::from(high) + f64::from(low)
}
