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

/// [`fill`] for areas 16 channels wide.
#[inline(always)]
pub(super) fn fill16(conv: &Conv, source: &Source, area: &Area, out: &mut [f32]) {
    let [first, second] = conv.channels;
    let (from, channel, channels) = if area.channel + 16 <= first {
        (source.x, area.channel, first)
    } else if area.channel >= first && area.channel + 16 <= first + second {
        (source.x2, area.channel - first, second)
    } else {
        return fill(conv, source, area, out);
    };
    let mut rows = Rows { conv, from, channel, channels, area, scale: [0.0; 16], shift: [0.0; 16] };
    if source.affine.is_empty() {
        return if source.silu {
            rows.copy::<false, true>(out)
        } else {
            rows.copy::<false, false>(out)
        };
    }
    let all = first + second;
    let row = if source.affine.len() == 2 * all { 0 } else { area.sample };
    let at = 2 * row * all + area.channel;
    rows.scale.copy_from_slice(&source.affine[at..at + 16]);
    rows.shift.copy_from_slice(&source.affine[at + all..at + all + 16]);
    if source.silu { rows.copy::<true, true>(out) } else { rows.copy::<true, false>(out) }
}

/// 16 channels of one source.
struct Rows<'a> {
    conv: &'a Conv,
    from: &'a [f32],
    /// First channel, and all channels of the source.
    channel: usize,
    channels: usize,
    area: &'a Area,
    scale: [f32; 16],
    shift: [f32; 16],
}

impl Rows<'_> {
    /// Const parameters and no closure, because the body must be inlined for certain.
    #[inline(always)]
    fn copy<const AFFINE: bool, const SILU: bool>(&self, out: &mut [f32]) {
        let area = self.area;
        let up = usize::from(self.conv.upsample);
        let [height, width] = self.conv.input;
        // Columns of the area that lie inside the image.
        let left = (-area.x).clamp(0, area.columns as isize) as usize;
        let inside = (width << up) as isize - area.x;
        let right = inside.clamp(left as isize, area.columns as isize) as usize;
        for (row, to) in out.chunks_exact_mut(area.columns * 16).enumerate() {
            let y = area.y + row as isize;
            if y < 0 || y as usize >= height << up {
                to.fill(0.0);
                continue;
            }
            to[..left * 16].fill(0.0);
            to[right * 16..].fill(0.0);
            let line = (area.sample * height + (y as usize >> up)) * width;
            let columns = (area.x + left as isize) as usize..;
            for (x, to) in columns.zip(to[left * 16..right * 16].chunks_exact_mut(16)) {
                let at = (line + (x >> up)) * self.channels + self.channel;
                let from = &self.from[at..at + 16];
                for lane in 0..16 {
                    let mut value = from[lane];
                    if AFFINE {
                        value = value.mul_add(self.scale[lane], self.shift[lane]);
                    }
                    if SILU {
                        value = simd::silu(value);
                    }
                    to[lane] = value;
                }
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
