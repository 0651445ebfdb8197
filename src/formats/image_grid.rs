//! Many pictures in one: a batch of samples as a grid, the reverse process as a grid of states,
//! and the same process as an animation.

use std::path::Path;

use image::codecs::gif::{GifEncoder, Repeat};
use image::{Delay, DynamicImage, Frame, Rgb, RgbImage};

use super::picture::{Pictures, to_io, write_bytes, write_png};
use crate::{Error, Result};

/// What lies between the pictures.
const BACKGROUND: Rgb<u8> = Rgb([255, 255, 255]);
/// A picture file is not made larger than this, pixels a side.
const MAX_SIDE: u64 = 32_767;
/// Small pictures are magnified to about this many pixels a side, so that they can be looked at.
const COMFORTABLE: usize = 128;

/// How pictures are put together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Pictures in a row.
    pub columns: usize,
    /// Pixels between pictures and around all of them.
    pub gap: u32,
    /// Each pixel becomes a square of this many pixels a side.
    pub zoom: u32,
}

impl Layout {
    /// A grid of `count` pictures of `height` × `width` that is about square: as many columns as
    /// make its width nearest to its height, gaps of a sixteenth of a picture, and pictures below
    /// 128 pixels magnified a whole number of times.
    pub fn square(count: usize, height: usize, width: usize) -> Self {
        let (height, width) = (height.max(1), width.max(1));
        let ideal = (count as f64 * height as f64 / width as f64).sqrt();
        let columns = (ideal.round() as usize).clamp(1, count.max(1));
        Layout { columns, ..Self::with_columns(columns, height, width) }
    }

    /// As [`Self::square`], with a given number of columns.
    pub fn with_columns(columns: usize, height: usize, width: usize) -> Self {
        let side = height.max(width).max(1);
        let zoom = (COMFORTABLE / side).max(1) as u32;
        let gap = (side as u32 * zoom / 16).clamp(1, 8);
        Layout { columns: columns.max(1), gap, zoom }
    }
}

/// Puts pictures side by side, row after row from the top left; the last row may be short.
///
/// # Errors
/// Where there are no pictures, they differ in size, or the result would be larger than 32,767
/// pixels a side.
pub fn grid(pictures: &[RgbImage], layout: Layout) -> Result<RgbImage> {
    let Some(first) = pictures.first() else {
        return Err(Error::invalid("a grid needs at least one picture"));
    };
    let (width, height) = first.dimensions();
    if let Some(other) = pictures.iter().find(|p| p.dimensions() != (width, height)) {
        return Err(Error::invalid(format!(
            "a grid of {width}x{height} pictures can't hold one of {}x{}",
            other.width(),
            other.height()
        )));
    }
    let columns = layout.columns.clamp(1, pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let (gap, zoom) = (u64::from(layout.gap), u64::from(layout.zoom.max(1)));
    let side = |count: usize, length: u32| -> u64 {
        let cell = u64::from(length).saturating_mul(zoom).saturating_add(gap);
        cell.saturating_mul(count as u64).saturating_add(gap)
    };
    let (total_width, total_height) = (side(columns, width), side(rows, height));
    if total_width > MAX_SIDE || total_height > MAX_SIDE {
        return Err(Error::invalid(format!(
            "a grid of {columns}x{rows} pictures would be {total_width}x{total_height} pixels; at \
             most {MAX_SIDE} a side can be written, so show fewer pictures"
        )));
    }
    let mut out = RgbImage::from_pixel(total_width as u32, total_height as u32, BACKGROUND);
    for (i, picture) in pictures.iter().enumerate() {
        let left = side(i % columns, width) as u32;
        let top = side(i / columns, height) as u32;
        let zoom = zoom as u32;
        for y in 0..height * zoom {
            for x in 0..width * zoom {
                out.put_pixel(left + x, top + y, *picture.get_pixel(x / zoom, y / zoom));
            }
        }
    }
    Ok(out)
}

/// A batch as one grid in a PNG file.
///
/// # Errors
/// As [`grid`], or names the file that could not be written.
pub fn write_grid(path: &Path, pictures: &Pictures) -> Result<()> {
    let layout = Layout::square(pictures.len(), pictures.height(), pictures.width());
    write_png(path, &grid(&all(pictures), layout)?)
}

/// The reverse process as one grid in a PNG file: a row is a picture, and time runs to the right,
/// from `states[0]` (noise) to the last.
///
/// # Errors
/// Where there are no states or they differ in number or size of pictures; as [`grid`]; or names
/// the file that could not be written.
pub fn write_process_grid(path: &Path, states: &[Pictures]) -> Result<()> {
    let first = same_batches(states)?;
    let cells: Vec<RgbImage> =
        (0..first.len()).flat_map(|i| states.iter().map(move |state| state.rgb(i))).collect();
    let layout = Layout::with_columns(states.len(), first.height(), first.width());
    write_png(path, &grid(&cells, layout)?)
}

/// The reverse process as an animation that repeats: each frame is the grid of one state, shown
/// for `milliseconds`, and the last one for two seconds. Each frame has a palette of its own.
///
/// # Errors
/// As [`write_process_grid`].
pub fn write_process_gif(path: &Path, states: &[Pictures], milliseconds: u32) -> Result<()> {
    let first = same_batches(states)?;
    let layout = Layout::square(first.len(), first.height(), first.width());
    let mut bytes = Vec::new();
    let failed = |error| Error::io(path, to_io(error));
    // The middle of the quality scale: one tenth of the pixels train the palette, which is ample
    // for zoomed pictures.
    let mut encoder = GifEncoder::new_with_speed(&mut bytes, 10);
    encoder.set_repeat(Repeat::Infinite).map_err(failed)?;
    for (i, state) in states.iter().enumerate() {
        let picture = DynamicImage::from(grid(&all(state), layout)?).into_rgba8();
        let shown = if i + 1 == states.len() { 2000 } else { milliseconds };
        let delay = Delay::from_numer_denom_ms(shown, 1);
        encoder.encode_frame(Frame::from_parts(picture, 0, 0, delay)).map_err(failed)?;
    }
    drop(encoder);
    write_bytes(path, &bytes)
}

/// Which of `count` states to show in `columns` columns: evenly spaced, the first and the last
/// among them, ascending, none twice. Empty where either is 0.
pub fn evenly_spaced(count: usize, columns: usize) -> Vec<usize> {
    match (count.min(columns), count) {
        (0, _) => Vec::new(),
        (1, _) => vec![count - 1],
        (shown, _) => {
            (0..shown).map(|i| (i * (count - 1) + (shown - 1) / 2) / (shown - 1)).collect()
        }
    }
}

fn all(pictures: &Pictures) -> Vec<RgbImage> {
    (0..pictures.len()).map(|i| pictures.rgb(i)).collect()
}

fn same_batches(states: &[Pictures]) -> Result<&Pictures> {
    let Some(first) = states.first() else {
        return Err(Error::invalid("the reverse process has no states to show"));
    };
    let shape = |p: &Pictures| (p.len(), p.height(), p.width());
    if states.iter().any(|state| shape(state) != shape(first)) {
        return Err(Error::invalid(
            "the states of a process must hold as many pictures of one size",
        ));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::AnimationDecoder;
    use image::codecs::gif::GifDecoder;

    fn flat(count: usize, height: usize, width: usize, first: u8) -> Pictures {
        let bytes = (0..count).flat_map(|i| vec![first + i as u8; height * width * 3]).collect();
        Pictures::from_bytes(bytes, count, height, width, 3).unwrap()
    }

    #[test]
    fn cells_are_where_they_belong() {
        let layout = Layout { columns: 2, gap: 1, zoom: 2 };
        let out = grid(&all(&flat(3, 2, 3, 10)), layout).unwrap();
        assert_eq!(out.dimensions(), (1 + 2 * 7, 1 + 2 * 5));
        let at = |x, y| out.get_pixel(x, y).0[0];
        assert_eq!(
            [at(0, 0), at(1, 1), at(6, 4), at(7, 1), at(8, 1), at(13, 4)],
            [255, 10, 10, 255, 11, 11]
        );
        assert_eq!([at(1, 6), at(6, 9), at(8, 6)], [12, 12, 255]);
    }

    #[test]
    fn layouts_are_about_square() {
        assert_eq!(Layout::square(64, 32, 32).columns, 8);
        assert_eq!(Layout::square(64, 32, 32).zoom, 4);
        assert_eq!(Layout::square(1, 32, 32).columns, 1);
        assert_eq!(Layout::square(16, 64, 16).columns, 8);
        assert_eq!(Layout::square(16, 256, 256), Layout { columns: 4, gap: 8, zoom: 1 });
        assert_eq!(Layout::square(0, 0, 0).columns, 1);
    }

    #[test]
    fn impossible_grids_are_errors() {
        let layout = Layout { columns: 1, gap: 1, zoom: 1 };
        assert!(grid(&[], layout).is_err());
        assert!(grid(&[RgbImage::new(1, 1), RgbImage::new(2, 1)], layout).is_err());
        let vast = Layout { columns: 1, gap: u32::MAX, zoom: u32::MAX };
        let message = grid(&[RgbImage::new(9, 9)], vast).unwrap_err().to_string();
        assert!(message.contains("fewer"), "{message}");
        let path = Path::new("never.png");
        assert!(write_process_grid(path, &[]).is_err());
        assert!(write_process_gif(path, &[flat(1, 2, 2, 0), flat(2, 2, 2, 0)], 50).is_err());
        assert!(!path.exists());
    }

    #[test]
    fn states_run_to_the_right() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("denoising.png");
        // Two pictures, three states: state s of picture i has the value 10·s + i.
        let states: Vec<Pictures> = (0..3).map(|s| flat(2, 128, 128, 10 * s)).collect();
        write_process_grid(&path, &states).unwrap();
        let picture = image::open(&path).unwrap().into_rgb8();
        assert_eq!(picture.dimensions(), (3 * 136 + 8, 2 * 136 + 8));
        for (row, column, value) in [(0, 0, 0), (0, 2, 20), (1, 1, 11), (1, 2, 21)] {
            let pixel = picture.get_pixel(column * 136 + 64, row * 136 + 64).0[0];
            assert_eq!(pixel, value, "row {row}, column {column}");
        }
    }

    #[test]
    fn animations_hold_every_state() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("denoising.gif");
        let states: Vec<Pictures> = (0..4).map(|s| flat(2, 8, 8, 60 * s)).collect();
        write_process_gif(&path, &states, 80).unwrap();
        let file = std::io::BufReader::new(std::fs::File::open(&path).unwrap());
        let frames = GifDecoder::new(file).unwrap().into_frames().collect_frames().unwrap();
        assert_eq!(frames.len(), 4);
        for (i, frame) in frames.iter().enumerate() {
            let shown = frame.delay().numer_denom_ms();
            assert_eq!(shown.0 / shown.1, if i == 3 { 2000 } else { 80 });
            let pixel = frame.buffer().get_pixel(60, 60).0;
            assert!(pixel[0].abs_diff(60 * i as u8) <= 2, "frame {i}: {pixel:?}");
        }
    }

    #[test]
    fn shown_states_include_both_ends() {
        assert_eq!(evenly_spaced(51, 6), [0, 10, 20, 30, 40, 50]);
        assert_eq!(evenly_spaced(3, 10), [0, 1, 2]);
        assert_eq!(evenly_spaced(7, 1), [6]);
        assert!(evenly_spaced(0, 4).is_empty() && evenly_spaced(4, 0).is_empty());
        for (count, columns) in [(50, 8), (1000, 11), (9, 8)] {
            let shown = evenly_spaced(count, columns);
            assert_eq!((shown[0], shown[shown.len() - 1]), (0, count - 1));
            assert!(shown.windows(2).all(|w| w[0] < w[1]));
        }
    }
}
