//! Reading one image file that nobody vouches for.

use std::fs::File;
use std::io::{BufReader, Cursor, Read};
use std::path::Path;
use std::sync::Mutex;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits, RgbImage};

use super::transforms::to_rgb;

/// The largest picture that is decoded, pixels (width × height).
pub const MAX_PIXELS: u64 = 100_000_000;
/// The largest file that is read, bytes.
pub const MAX_FILE_BYTES: u64 = 1 << 30;
/// What one decoder may allocate, bytes: [`MAX_PIXELS`] of four 16-bit samples, and working room.
const MAX_DECODER_BYTES: u64 = MAX_PIXELS * 8 + (256 << 20);
/// Pictures above this many pixels are decoded one at a time, so that memory doesn't grow with the
/// number of threads.
const LARGE_PIXELS: u64 = 16_000_000;
static LARGE: Mutex<()> = Mutex::new(());

/// The formats that are read, for messages.
pub const FORMATS: &str = "PNG, JPEG, WebP, BMP, TIFF or GIF";

/// What a file's name says it holds.
pub fn has_image_extension(path: &Path) -> bool {
    const EXTENSIONS: [&str; 9] =
        ["png", "apng", "jpg", "jpeg", "webp", "bmp", "tif", "tiff", "gif"];
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
    EXTENSIONS.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// What a file's first bytes say it holds; the name doesn't count.
pub fn format_of(start: &[u8]) -> Option<ImageFormat> {
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    image::guess_format(start)
        .ok()
        .filter(|format| matches!(format, Png | Jpeg | WebP | Bmp | Tiff | Gif))
}

/// Decodes a file to RGB, upright (EXIF orientation applied where the format carries it). Of an
/// animation the first frame is taken. The size is checked before anything is decoded.
///
/// # Errors
/// The reason, a clause that begins in lower case, why this file is no usable picture.
pub fn decode_file(path: &Path) -> Result<RgbImage, String> {
    let io = |error: std::io::Error| format!("it can't be read: {error}");
    let file = File::open(path).map_err(io)?;
    let length = file.metadata().map_err(io)?.len();
    if length > MAX_FILE_BYTES {
        return Err(format!("it has {length} bytes; at most {MAX_FILE_BYTES} are read"));
    }
    // The limit holds for what is read, too: the file may be growing.
    let mut start = Vec::with_capacity(32);
    let mut reader = BufReader::new(file);
    reader.by_ref().take(32).read_to_end(&mut start).map_err(io)?;
    let format = check_start(&start)?;
    let mut bytes = start;
    reader.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
    decode(&bytes, format)
}

/// Decodes a file's bytes; as [`decode_file`].
///
/// # Errors
/// As [`decode_file`].
pub fn decode_bytes(bytes: &[u8]) -> Result<RgbImage, String> {
    decode(bytes, check_start(&bytes[..bytes.len().min(32)])?)
}

fn check_start(start: &[u8]) -> Result<ImageFormat, String> {
    if start.is_empty() {
        return Err("it is empty (0 bytes)".into());
    }
    format_of(start).ok_or_else(|| format!("its content is not {FORMATS}"))
}

fn decode(bytes: &[u8], format: ImageFormat) -> Result<RgbImage, String> {
    let broken = |error: ImageError| match error {
        ImageError::Limits(_) => format!("it needs too much memory to decode ({error})"),
        ImageError::Unsupported(_) => format!("its kind of {format:?} is not supported: {error}"),
        _ => format!("it is damaged or cut short: {error}"),
    };
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    let pixels = u64::from(width) * u64::from(height);
    if pixels == 0 {
        return Err(format!("it is {width}x{height} pixels: there is nothing in it"));
    }
    if pixels > MAX_PIXELS {
        return Err(format!(
            "it is {width}x{height} pixels; at most {} million are decoded, so make it smaller",
            MAX_PIXELS / 1_000_000
        ));
    }
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err("it is cut short: the JPEG has no end".into());
    }
    let _turn = (pixels > LARGE_PIXELS)
        .then(|| LARGE.lock().unwrap_or_else(std::sync::PoisonError::into_inner));
    // A damaged EXIF block says nothing about the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut picture = DynamicImage::from_decoder(decoder).map_err(broken)?;
    picture.apply_orientation(orientation);
    Ok(to_rgb(picture))
}

/// Whether the end-of-image marker is reached. The decoder fills what is missing with grey, which
/// a network would learn. Walks the markers (ITU-T T.81, B.1.1): a preview inside a segment has an
/// end marker of its own that must not count.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(skipped) = bytes.get(at..).and_then(|rest| rest.iter().position(|&b| b == 0xff))
    {
        at += skipped + 1;
        match bytes.get(at) {
            None => return false,
            Some(0xd9) => return true,
            // Fill bytes; a stuffed 255 of the compressed data; restart markers; no length follows.
            Some(0xff) => {}
            Some(0x00 | 0x01 | 0xd0..=0xd8) => at += 1,
            Some(_) => {
                let Some(length) = bytes.get(at + 1..at + 3) else { return false };
                at += 1 + usize::from(u16::from_be_bytes([length[0], length[1]]));
            }
        }
    }
    false
}
