//! Dropping activations on the CPU, slices of pixels as tasks.

use super::Dropout;
use crate::device::cpu::{Cpu, CpuKernel, Io};
use crate::ops::noise::normal::Stream;
use crate::ops::shape::{Extent, Slices};

impl CpuKernel for Dropout {
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>) {
        let (x, state) = (io.inputs[0], io.inputs[1].data);
        let (threshold, scale) = (self.threshold(), self.scale());
        let extent = Extent::of(x.shape);
        let (pixels, channels) = (extent.pixels, extent.channels);
        let slices = Slices::new(pixels, channels);
        let slice = slices.pixels * channels;
        let cut = slices.cut(extent, &mut *io.outputs[0].data);
        cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, part, [y]| {
            let x = &x.data[sample * extent.sample() + part * slice..][..y.len()];
            let stream = Stream::of_run(self.purpose, state, sample);
            for channel in 0..channels {
                let (mut quad, mut words) = (u32::MAX, [0; 4]);
                for (row, pixel) in slices.range(part).enumerate() {
                    // Elements are numbered as in NCHW, so that four pixels share a draw.
                    let element = (channel * pixels + pixel) as u32;
                    if element / 4 != quad {
                        quad = element / 4;
                        words = stream.words(quad);
                    }
                    let at = row * channels + channel;
                    let stays = words[element as usize % 4] >= threshold;
                    y[at] = if stays { scale * x[at] } else { 0.0 };
                }
            }
        });
    }
}
