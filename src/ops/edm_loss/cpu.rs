//! EDM2's loss on the CPU: sums as of the mean squared error, the rest in float64.

use super::{EdmLoss, EdmLossGrad, weight};
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::mse_loss::{cpu::differences, cpu::sample_squares, slices};

impl CpuKernel for EdmLoss {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [log_variance, sigma] = [2, 3].map(|index| io.inputs[index].data);
        let [loss, squares] = io.outputs else { unreachable!("two outputs") };
        let elements = io.inputs[0].data.len() / sigma.len();
        let mut sum = 0.0;
        let samples = sample_squares(cpu, &io.inputs[..2], io.scratch).enumerate();
        for (sample, square) in samples {
            squares.data[sample] = square as f32;
            let weight = weight(self.sigma_data, sigma[sample], log_variance[sample]);
            sum += weight * square + elements as f64 * f64::from(log_variance[sample]);
        }
        loss.data[0] = (sum / sigma.len() as f64) as f32;
    }
}

impl CpuKernel for EdmLossGrad {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let [dloss, log_variance, sigma, squares] = [0, 3, 4, 5].map(|index| io.inputs[index].data);
        let (denoised, target) = (io.inputs[1], io.inputs[2].data);
        let [dd, du] = io.outputs else { unreachable!("two outputs") };
        let (batch, slices) = slices(denoised.shape);
        let elements = denoised.data.len() / batch;
        let upstream = f64::from(dloss[0]) / batch as f64;
        let weight = |sample: usize| weight(self.sigma_data, sigma[sample], log_variance[sample]);
        for (sample, du) in du.data.iter_mut().enumerate() {
            let error = weight(sample) * f64::from(squares[sample]);
            *du = (upstream * (elements as f64 - error)) as f32;
        }
        let cut = Cut { data: &mut *dd.data, sample: elements, slice: slices.pixels };
        cpu.cut_mut(batch, slices.count, [cut], &|sample, slice, [dd]| {
            let at = sample * elements + slice * slices.pixels;
            let (x, target) = (&denoised.data[at..][..dd.len()], &target[at..][..dd.len()]);
            differences(cpu.simd(), x, target, (2.0 * upstream * weight(sample)) as f32, dd);
        });
    }
}
