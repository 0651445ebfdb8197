//! Fourier features on the CPU. Angles are rounded to float32 where PyTorch rounds them; a few
//! hundred of them don't ask for threads, nor for vectors.

use super::{FourierFeatures, FourierFeaturesGrad};
use crate::device::cpu::{Cpu, CpuKernel, Io};
use std::f64::consts::SQRT_2;

fn angle(x: f32, freq: f32, phase: f32) -> f64 {
    f64::from(x * freq + phase)
}

impl CpuKernel for FourierFeatures {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [x, freqs, phases] = [0, 1, 2].map(|index| io.inputs[index].data);
        cpu.chunks_mut(io.outputs[0].data, freqs.len(), &|sample, y| {
            for ((y, &freq), &phase) in y.iter_mut().zip(freqs).zip(phases) {
                *y = (SQRT_2 * angle(x[sample], freq, phase).cos()) as f32;
            }
        });
    }
}

impl CpuKernel for FourierFeaturesGrad {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let [dy, x, freqs, phases] = [0, 1, 2, 3].map(|index| io.inputs[index].data);
        let [dx, dfreqs, dphases] = io.outputs else { unreachable!("three gradients") };
        dfreqs.data.fill(0.0);
        dphases.data.fill(0.0);
        for ((sample, &x), dy) in x.iter().enumerate().zip(dy.chunks_exact(freqs.len())) {
            let mut sum = 0.0f64;
            for (channel, &dy) in dy.iter().enumerate() {
                let angle = angle(x, freqs[channel], phases[channel]);
                let slope = (-SQRT_2 * angle.sin()) as f32 * dy;
                sum += f64::from(slope * freqs[channel]);
                dfreqs.data[channel] += slope * x;
                dphases.data[channel] += slope;
            }
            dx.data[sample] = sum as f32;
        }
    }
}
