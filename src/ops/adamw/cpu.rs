//! Adam on the CPU.

use super::AdamW;
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::state::{self, BIAS1, BIAS2, EMA_DECAY, FIRST_BAD, LEARNING_RATE, LOSS_SCALE};

/// Parameters of one task.
const CHUNK: usize = 16 << 10;

/// The scalars of one step.
#[derive(Clone, Copy)]
struct Step {
    /// Clipping and the loss scale.
    gradient: f32,
    /// L2 decay, 0 where decay is decoupled.
    l2: f32,
    /// 1 − lr·λ, 1 where it isn't.
    keep: f32,
    rate1: f32,
    beta2: f32,
    rate2: f32,
    /// √(1 − β₂ᵗ).
    bias2: f32,
    eps: f32,
    /// lr / (1 − β₁ᵗ).
    size: f32,
    ema: f32,
}

impl AdamW {
    fn step(&self, norm: f32, state: &[f32]) -> Step {
        let rate = f64::from(state::float(state, LEARNING_RATE));
        let scale = f64::from(state::float(state, LOSS_SCALE));
        let clip =
            self.max_norm.map_or(1.0, |limit| (limit / (f64::from(norm) / scale + 1e-6)).min(1.0));
        let decay = rate * self.weight_decay;
        Step {
            gradient: (clip / scale) as f32,
            l2: if self.decoupled { 0.0 } else { self.weight_decay as f32 },
            keep: if self.decoupled { (1.0 - decay) as f32 } else { 1.0 },
            rate1: (1.0 - self.beta1) as f32,
            beta2: self.beta2 as f32,
            rate2: (1.0 - self.beta2) as f32,
            bias2: f64::from(state::float(state, BIAS2)).sqrt() as f32,
            eps: self.eps as f32,
            size: (rate / f64::from(state::float(state, BIAS1))) as f32,
            ema: (1.0 - f64::from(state::float(state, EMA_DECAY))) as f32,
        }
    }
}

impl CpuKernel for AdamW {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let grads = io.inputs[0].data;
        let [norm, finite] = *io.inputs[1].data else { unreachable!("norm is [2]") };
        let Some((last, outputs)) = io.outputs.split_last_mut() else { unreachable!("outputs") };
        let state = &mut *last.data;
        // Written so that NaN counts as not finite.
        if finite != 1.0 && !self.zero_non_finite {
            let skipped = state::word(state, state::SKIPPED).wrapping_add(1);
            state[state::SKIPPED] = f32::from_bits(skipped);
            if state::word(state, FIRST_BAD) == 0 {
                let bad = state::word(state, state::STEP).wrapping_add(1);
                state[FIRST_BAD] = f32::from_bits(bad);
            }
            return;
        }
        let step = self.step(norm, state);
        let (moments, average) = outputs.split_at_mut(3);
        let [w, m, v] = moments else { unreachable!("w, m, v") };
        let (average, kept): (&mut [f32], usize) = match average {
            [average] => (average.data, 1),
            _ => (&mut [], 0),
        };
        let count = grads.len();
        let cut = |data, kept: usize| Cut { data, sample: kept * count, slice: kept * CHUNK };
        let cuts =
            [cut(&mut *w.data, 1), cut(&mut *m.data, 1), cut(&mut *v.data, 1), cut(average, kept)];
        cpu.cut_mut(1, count.div_ceil(CHUNK), cuts, &|_, chunk, [w, m, v, average]| {
            let grads = &grads[chunk * CHUNK..][..w.len()];
            update(cpu.simd(), step, grads, w, m, v);
            follow(cpu.simd(), step.ema, w, average);
        });
    }
}

crate::vectorised! {
    fn update<'a>(
        step: Step,
        grads: &'a [f32],
        w: &'a mut [f32],
        m: &'a mut [f32],
        v: &'a mut [f32],
    ) {
        for (((w, m), v), &g) in w.iter_mut().zip(m).zip(v).zip(grads) {
            // Of a step that isn't skipped, which may have some where they count as zero.
            let g = if g.abs() < f32::INFINITY { g } else { 0.0 };
            let g = step.l2.mul_add(*w, g * step.gradient);
            *w *= step.keep;
            *m = step.rate1.mul_add(g - *m, *m);
            *v = (step.rate2 * g).mul_add(g, *v * step.beta2);
            *w -= step.size * (*m / (v.sqrt() / step.bias2 + step.eps));
        }
    }
}

crate::vectorised! {
    /// average += rate·(w − average); `average` may be empty.
    pub fn follow<'a>(rate: f32, w: &'a [f32], average: &'a mut [f32]) {
        for (average, &w) in average.iter_mut().zip(w) {
            *average = rate.mul_add(w - *average, *average);
        }
    }
}
