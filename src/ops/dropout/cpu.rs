//! Dropping activations on the CPU, slices of pixels as tasks.

use super::Dropout;
use crate::device::cpu::{Cpu, CpuKernel, Cut, Io};
use crate::ops::noise::philox::philox4x32;
use crate::ops::shape::{Extent, Slices};
use crate::ops::state;

impl CpuKernel for Dropout {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (x, state) = (io.inputs[0], io.inputs[1].data);
        let (threshold, scale) = (self.threshold(), self.scale());
        let extent = Extent::of(x.shape);
        let (pixels, channels) = (extent.pixels, extent.channels);
        let slices = Slices::new(pixels, channels);
        let slice = slices.pixels * channels;
        let cut = Cut { data: &mut *io.outputs[0].data, sample: extent.sample(), slice };
        let (key, step) = (state::seed(state), state::word(state, state::STEP));
        let first = state::word(state, state::SAMPLE);
        cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, part, [y]| {
            let x = &x.data[sample * extent.sample() + part * slice..][..y.len()];
            let sample = first.wrapping_add(sample as u32);
            for channel in 0..channels {
                let (mut quad, mut words) = (u32::MAX, [0; 4]);
                for (row, pixel) in slices.range(part).enumerate() {
                    // Elements are numbered as in NCHW, so that four pixels share a draw.
                    let element = (channel * pixels + pixel) as u32;
                    if element / 4 != quad {
                        quad = element / 4;
                        words = philox4x32([quad, sample, step, self.purpose], key);
                    }
                    let at = row * channels + channel;
                    let stays = words[element as usize % 4] >= threshold;
                    y[at] = if stays { scale * x[at] } else { 0.0 };
                }
            }
        });
    }
}
