//! Noise on the CPU, slices of pixels as tasks.

use super::normal::{Stream, fill_pixels};
use crate::device::cpu::{Cpu, Tensor};
use crate::ops::shape::{Extent, Slices};
use crate::ops::state;

/// The stream of one image of a sampling run.
pub fn seeded(purpose: u32, seeds: &Tensor, state: &[f32], sample: usize) -> Stream {
    let key = [seeds.data[2 * sample].to_bits(), seeds.data[2 * sample + 1].to_bits()];
    Stream { key, purpose, step: state::word(state, state::ROW), sample: 0 }
}

/// Fills `out` `[B, …, C]` with each sample's stream.
pub fn fill(cpu: &Cpu, extent: Extent, out: &mut [f32], stream: &(dyn Fn(usize) -> Stream + Sync)) {
    let slices = Slices::new(extent.pixels, extent.channels);
    let cut = slices.cut(extent, out);
    cpu.cut_mut(extent.batch, slices.count, [cut], &|sample, slice, [out]| {
        let pixels = slices.range(slice);
        fill_pixels(cpu.simd(), &stream(sample), pixels, extent.pixels, extent.channels, out);
    });
}
