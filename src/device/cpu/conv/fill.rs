//! Reading a source into working memory: concatenation, normalisation, SiLU, upsampling in the
//! index and zero borders happen here and nowhere else.

use super::super::simd;
use super::{Conv, Source};

/// A rectangle of input pixels (signed: it may reach over the borders) and a range of channels.
#[derive(Clone, Copy)]
pub(super) struct Area {
    pub sample: usize,
    pub y: isize,
    pub rows: usize,
    pub x: isize,
    pub columns: usize,
    pub channel: usize,
    /// Channels to write for each pixel; those that the source does not have become zero.
    pub width: usize,
}

/// Writes an area as `[rows][columns][width]`.
#[inline(always)]
pub(super) fn fill(conv: &Conv, source: &Source, area: &Area, out: &mut [f32]) {
    let up = usize::from(conv.upsample);
    let [height, width] = conv.input;
    let [first, second] = conv.channels;
    let channels = first + second;
    let end = channels.min(area.channel + area.width);
    // Where the range of channels changes from the first source to the second.
    let split = end.min(first).max(area.channel);
    let affine_row = if source.affine.len() == 2 * channels { 0 } else { area.sample };
    let (scale, shift) = if source.affine.is_empty() {
        (&[][..], &[][..])
    } else {
        source.affine[2 * affine_row * channels..][..2 * channels].split_at(channels)
    };
    let part = |from: usize, to: usize| -> (&[f32], &[f32]) {
        if scale.is_empty() { (&[], &[]) } else { (&scale[from..to], &shift[from..to]) }
    };
    let (affine_first, affine_second) = (part(area.channel, split), part(split, end));
    let mut pixels = out.chunks_exact_mut(area.width);
    for row in 0..area.rows {
        let y = area.y + row as isize;
        let y_inside = y >= 0 && (y as usize) < height << up;
        for column in 0..area.columns {
            let Some(to) = pixels.next() else { return };
            let x = area.x + column as isize;
            if !y_inside || x < 0 || x as usize >= width << up {
                to.fill(0.0);
                continue;
            }
            let pixel = (area.sample * height + (y as usize >> up)) * width + (x as usize >> up);
            let (to_first, rest) = to.split_at_mut(split - area.channel);
            let (to_second, to_zero) = rest.split_at_mut(end - split);
            if !to_first.is_empty() {
                let from = &source.x[pixel * first + area.channel..][..to_first.len()];
                activate(from, affine_first, source.silu, to_first);
            }
            if !to_second.is_empty() {
                let from = &source.x2[pixel * second + split - first..][..to_second.len()];
                activate(from, affine_second, source.silu, to_second);
            }
            if !to_zero.is_empty() {
                to_zero.fill(0.0);
            }
        }
    }
}

#[inline(always)]
fn activate(from: &[f32], (scale, shift): (&[f32], &[f32]), silu: bool, to: &mut [f32]) {
    let affine = !scale.is_empty();
    let mut done = 0;
    // Blocks of 16 have a length known at compile time, so that they become single vectors.
    while done + 16 <= to.len() {
        let mut block = [0.0f32; 16];
        block.copy_from_slice(&from[done..done + 16]);
        if affine {
            let (scale, shift) = (&scale[done..done + 16], &shift[done..done + 16]);
            for lane in 0..16 {
                block[lane] = block[lane].mul_add(scale[lane], shift[lane]);
            }
        }
        if silu {
            for value in &mut block {
                *value = simd::silu(*value);
            }
        }
        to[done..done + 16].copy_from_slice(&block);
        done += 16;
    }
    for at in done..to.len() {
        let value = if affine { from[at].mul_add(scale[at], shift[at]) } else { from[at] };
        to[at] = if silu { simd::silu(value) } else { value };
    }
}
