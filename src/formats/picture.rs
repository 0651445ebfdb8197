//! From a network's numbers to picture files.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use image::codecs::png::PngEncoder;
use image::{ExtendedColorType, ImageEncoder, ImageError, RgbImage};

use super::atomic::write_atomic;
use crate::{Error, Result};

/// A batch of 8-bit pictures of one size, NHWC, with 1 (grey) or 3 (RGB) channels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pictures {
    count: usize,
    height: usize,
    width: usize,
    channels: usize,
    bytes: Vec<u8>,
}

/// The byte for a value: (x + 1) · 127.5, clamped to 0…255 and rounded half to even. `None` for
/// what is not a finite number. Undoes byte / 127.5 − 1 exactly.
pub fn to_byte(value: f32) -> Option<u8> {
    value.is_finite().then(|| ((value + 1.0) * 127.5).clamp(0.0, 255.0).round_ties_even() as u8)
}

impl Pictures {
    /// The longest side of a picture, pixels.
    pub const MAX_SIDE: usize = 65_535;

    /// From bytes, `count` × `height` × `width` × `channels`.
    ///
    /// # Errors
    /// Where a size is 0 or too large, `channels` is neither 1 nor 3, or the length doesn't fit.
    pub fn from_bytes(
        bytes: Vec<u8>,
        count: usize,
        height: usize,
        width: usize,
        channels: usize,
    ) -> Result<Self> {
        check(bytes.len(), count, height, width, channels)?;
        Ok(Pictures { count, height, width, channels, bytes })
    }

    /// From values in [−1, 1], NHWC; what lies outside is clamped.
    ///
    /// # Errors
    /// As [`Self::from_bytes`]; and `Error::NonFinite` that says which picture and pixel, where a
    /// value is a NaN or an infinity.
    pub fn from_values(
        values: &[f32],
        count: usize,
        height: usize,
        width: usize,
        channels: usize,
    ) -> Result<Self> {
        check(values.len(), count, height, width, channels)?;
        let mut bytes = Vec::with_capacity(values.len());
        for (i, &value) in values.iter().enumerate() {
            let byte = to_byte(value).ok_or_else(|| {
                let pixel = i / channels;
                Error::NonFinite(format!(
                    "picture {} holds {value} at row {}, column {}, channel {}: the network has \
                     diverged; sample from an earlier checkpoint or train with a lower rate",
                    pixel / (height * width),
                    pixel / width % height,
                    pixel % width,
                    i % channels
                ))
            })?;
            bytes.push(byte);
        }
        Ok(Pictures { count, height, width, channels, bytes })
    }

    pub fn len(&self) -> usize {
        self.count
    }

    /// Never true: there is at least one picture.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Picture `index`, grey repeated into three channels.
    ///
    /// # Panics
    /// Where there is no such picture.
    pub fn rgb(&self, index: usize) -> RgbImage {
        let each = self.height * self.width * self.channels;
        let bytes = &self.bytes[index * each..(index + 1) * each];
        RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let at = (y as usize * self.width + x as usize) * self.channels;
            let pixel = &bytes[at..at + self.channels];
            image::Rgb(if self.channels == 3 {
                [pixel[0], pixel[1], pixel[2]]
            } else {
                [pixel[0]; 3]
            })
        })
    }

    /// Writes each picture into `folder`, which must exist, named by `name`; returns the paths.
    ///
    /// # Errors
    /// Names the file that could not be written.
    pub fn write_each(
        &self,
        folder: &Path,
        name: impl Fn(usize) -> String,
    ) -> Result<Vec<PathBuf>> {
        let write = |index| {
            let path = folder.join(name(index));
            write_png(&path, &self.rgb(index)).map(|()| path)
        };
        (0..self.count).map(write).collect()
    }
}

fn check(len: usize, count: usize, height: usize, width: usize, channels: usize) -> Result<()> {
    let sides = 1..=Pictures::MAX_SIDE;
    let expected = [height, width, channels]
        .iter()
        .try_fold(count, |product, &factor| product.checked_mul(factor));
    let possible = count > 0
        && sides.contains(&height)
        && sides.contains(&width)
        && matches!(channels, 1 | 3)
        && expected == Some(len);
    if possible {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "{len} values are not {count} pictures of {height}x{width} pixels (height x width) with \
         {channels} channels; a picture has sides from 1 to {} and 1 or 3 channels",
        Pictures::MAX_SIDE
    )))
}

/// Writes a PNG, whole or not at all.
///
/// # Errors
/// Names the file.
pub fn write_png(path: &Path, picture: &RgbImage) -> Result<()> {
    // Encoded in memory first: an encoder that writes its end when it is dropped can't report a
    // full disk.
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8)
        .map_err(|error| Error::io(path, to_io(error)))?;
    write_bytes(path, &bytes)
}

pub(super) fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |writer| writer.write_all(bytes))
}

pub(super) fn to_io(error: ImageError) -> io::Error {
    match error {
        ImageError::IoError(error) => error,
        other => io::Error::other(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bytes_survive_the_round_trip() {
        for byte in 0..=255u8 {
            assert_eq!(to_byte(f32::from(byte) / 127.5 - 1.0), Some(byte));
        }
    }

    #[test]
    fn halves_round_to_even_and_the_rest_is_clamped() {
        // (0 + 1)·127.5 = 127.5 lies between 127 and 128.
        assert_eq!(to_byte(0.0), Some(128));
        assert_eq!(to_byte(-5.0), Some(0));
        assert_eq!(to_byte(5.0), Some(255));
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert_eq!(to_byte(bad), None);
        }
    }

    #[test]
    fn a_nan_is_located() {
        let mut values = vec![0.0; 2 * 2 * 3 * 3];
        values[18 + 9 + 3 + 2] = f32::NAN;
        let message = Pictures::from_values(&values, 2, 2, 3, 3).unwrap_err().to_string();
        assert!(message.contains("picture 1 holds NaN at row 1, column 1, channel 2"), "{message}");
    }

    #[test]
    fn impossible_shapes_are_errors() {
        let make = |len, n, h, w, c| Pictures::from_bytes(vec![0; len], n, h, w, c);
        assert!(make(12, 1, 2, 2, 3).is_ok());
        assert!(make(12, 1, 2, 2, 4).is_err());
        assert!(make(16, 1, 2, 2, 4).is_err());
        assert!(make(0, 0, 2, 2, 3).is_err());
        assert!(make(0, 1, 0, 2, 3).is_err());
        assert!(make(12, usize::MAX, usize::MAX, 2, 3).is_err());
    }

    #[test]
    fn files_hold_the_pictures() {
        let folder = tempfile::tempdir().unwrap();
        let bytes: Vec<u8> = (0..24).collect();
        let colour = Pictures::from_bytes(bytes.clone(), 2, 2, 2, 3).unwrap();
        let paths = colour.write_each(folder.path(), |i| format!("{i:02}.png")).unwrap();
        assert_eq!(paths[1], folder.path().join("01.png"));
        assert_eq!(image::open(&paths[1]).unwrap().into_rgb8().into_raw(), bytes[12..]);
        let grey = Pictures::from_bytes(vec![7, 8], 1, 1, 2, 1).unwrap();
        assert_eq!(grey.rgb(0).into_raw(), [7, 7, 7, 8, 8, 8]);
        let missing = folder.path().join("missing/a.png");
        let message = write_png(&missing, &colour.rgb(0)).unwrap_err().to_string();
        assert!(message.contains("missing/a.png"), "{message}");
    }

    proptest! {
        #[test]
        fn any_value_gives_the_nearest_byte_or_none(bits: u32) {
            let value = f32::from_bits(bits);
            match to_byte(value) {
                None => prop_assert!(!value.is_finite()),
                Some(byte) => {
                    let exact = ((f64::from(value) + 1.0) * 127.5).clamp(0.0, 255.0);
                    prop_assert!((f64::from(byte) - exact).abs() <= 0.5 + 1e-4);
                }
            }
        }
    }
}
