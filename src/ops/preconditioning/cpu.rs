//! Preconditioning on the CPU.

use super::{Preconditioning, PreconditioningGrad};
use crate::device::cpu::{Cpu, CpuKernel, Io};

impl CpuKernel for Preconditioning {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        for (sample, &sigma) in io.inputs[0].data.iter().enumerate() {
            for (output, value) in io.outputs.iter_mut().zip(self.values(sigma)) {
                let each = output.data.len() / io.inputs[0].data.len();
                output.data[sample * each..(sample + 1) * each].fill(value);
            }
        }
    }
}

impl CpuKernel for PreconditioningGrad {
    fn run(&self, _: &Cpu, io: Io<'_, '_>) {
        let (grads, sigmas) = io.inputs.split_at(io.inputs.len() - 1);
        let sigmas = sigmas[0].data;
        for (sample, &sigma) in sigmas.iter().enumerate() {
            let slopes = self.of.slopes(sigma).into_iter().zip(self.given);
            let mut sum = 0.0f32;
            for (grad, (slope, _)) in grads.iter().zip(slopes.filter(|(_, given)| *given)) {
                let each = grad.data.len() / sigmas.len();
                let grad: f32 = grad.data[sample * each..(sample + 1) * each].iter().sum();
                sum += slope * grad;
            }
            io.outputs[0].data[sample] = sum;
        }
    }
}
