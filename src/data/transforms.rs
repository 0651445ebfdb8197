//! From a decoded picture of any kind to 8-bit RGB of the wanted size.

use image::imageops::{self, FilterType};
use image::{DynamicImage, RgbImage};

/// The smallest picture that is taken is a quarter of the wanted size: enlarging it further would
/// teach a network blur.
pub const MAX_ENLARGEMENT: u32 = 4;

/// A resized picture is kept at most this many times as long as what is cut from it, so that a
/// panorama doesn't take the memory of a hundred pictures. Its middle is kept.
const MAX_OVERHANG: u64 = 4;

/// How a picture whose proportions differ from the wanted ones is made to fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Crop {
    /// The middle, the same each time.
    #[default]
    Centre,
    /// Somewhere else each time the picture is drawn.
    Random,
}

/// 8-bit RGB. Greyscale is repeated into three channels, 16-bit and floating-point samples are
/// rounded to 8 bits, and what is transparent is laid over white. Colour profiles are not applied:
/// samples are taken to be sRGB.
pub fn to_rgb(picture: DynamicImage) -> RgbImage {
    if !picture.color().has_alpha() {
        return picture.into_rgb8();
    }
    let with_alpha = picture.into_rgba8();
    let (width, height) = with_alpha.dimensions();
    let mut rgb = RgbImage::new(width, height);
    for (out, pixel) in rgb.pixels_mut().zip(with_alpha.pixels()) {
        let [r, g, b, alpha] = pixel.0.map(u32::from);
        // Rounded (c·α + 255·(255 − α)) / 255.
        let over_white = |c: u32| ((c * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        out.0 = [over_white(r), over_white(g), over_white(b)];
    }
    rgb
}

/// The size to which a picture of `from` (width, height) is resized so that it just covers `to`:
/// one side fits, the other is as long or longer.
///
/// # Panics
/// Where a side of `from` is 0.
pub fn covering_size(from: (u32, u32), to: (u32, u32)) -> (u32, u32) {
    let (fw, fh, tw, th) = (u64::from(from.0), u64::from(from.1), u64::from(to.0), u64::from(to.1));
    // Wider than wanted: the height fits. Cross-multiplied, because a ratio would be rounded.
    let long = |side: u64, num: u64, den: u64| -> u32 {
        u32::try_from((side * num + den / 2) / den).unwrap_or(u32::MAX)
    };
    if fw * th >= fh * tw {
        (long(fw, th, fh).max(to.0), to.1)
    } else {
        (to.0, long(fh, tw, fw).max(to.1))
    }
}

/// Resizes `picture` to cover `to` (width, height), antialiased (Catmull-Rom, widened when
/// shrinking). With [`Crop::Centre`] the middle of exactly that size remains; with
/// [`Crop::Random`] what sticks out stays, up to four times the wanted length.
///
/// # Errors
/// A reason, where the picture is so small that it would be enlarged more than
/// [`MAX_ENLARGEMENT`] times, or a side of `to` is 0.
pub fn cover(picture: RgbImage, to: (u32, u32), crop: Crop) -> Result<RgbImage, String> {
    let (width, height) = picture.dimensions();
    let least = |side: u32| side.div_ceil(MAX_ENLARGEMENT);
    if to.0 == 0 || to.1 == 0 || width < least(to.0) || height < least(to.1) {
        return Err(format!(
            "it is {width}x{height} pixels, too small for {}x{}; use pictures of at least {}x{}",
            to.0,
            to.1,
            least(to.0),
            least(to.1)
        ));
    }
    // Cut away first what would stick out too far: resizing a strip of 1 by 100,000 pixels to its
    // whole length would take memory for nothing.
    let keep = if crop == Crop::Random { MAX_OVERHANG } else { 1 };
    let longest = |short: u32, to_long: u32, to_short: u32| -> u32 {
        let kept = u64::from(short) * u64::from(to_long) * keep;
        u32::try_from(kept.div_ceil(u64::from(to_short))).unwrap_or(u32::MAX)
    };
    let picture = centre(
        picture,
        width.min(longest(height, to.0, to.1)),
        height.min(longest(width, to.1, to.0)),
    );
    let (w, h) = covering_size(picture.dimensions(), to);
    let resized = if (w, h) == picture.dimensions() {
        picture
    } else {
        imageops::resize(&picture, w, h, FilterType::CatmullRom)
    };
    Ok(match crop {
        Crop::Centre => centre(resized, to.0, to.1),
        Crop::Random => resized,
    })
}

/// The middle `width` × `height` pixels; where a rest is odd, the part cut off at the right or
/// bottom is the longer one.
fn centre(picture: RgbImage, width: u32, height: u32) -> RgbImage {
    if picture.dimensions() == (width, height) {
        return picture;
    }
    let (x, y) = ((picture.width() - width) / 2, (picture.height() - height) / 2);
    imageops::crop_imm(&picture, x, y, width, height).to_image()
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{Luma, LumaA, Rgb, Rgba};
    use proptest::prelude::*;

    #[test]
    fn transparency_is_laid_over_white() {
        let mut picture = image::RgbaImage::new(3, 1);
        picture.put_pixel(0, 0, Rgba([200, 0, 100, 0]));
        picture.put_pixel(1, 0, Rgba([200, 0, 100, 255]));
        picture.put_pixel(2, 0, Rgba([0, 0, 255, 128]));
        let rgb = to_rgb(picture.into());
        assert_eq!(rgb.into_raw(), [255, 255, 255, 200, 0, 100, 127, 127, 255]);
    }

    #[test]
    fn grey_and_sixteen_bits() {
        let grey = image::ImageBuffer::from_pixel(2, 2, Luma([0x8080u16]));
        assert_eq!(to_rgb(grey.into()).get_pixel(0, 0), &Rgb([128, 128, 128]));
        let clear = image::ImageBuffer::from_pixel(2, 2, LumaA([0u16, 0]));
        assert_eq!(to_rgb(clear.into()).get_pixel(0, 0), &Rgb([255, 255, 255]));
    }

    #[test]
    fn shrinking_averages() {
        // A checkerboard of single pixels has nothing to show at an eighth of its size but grey.
        let board = RgbImage::from_fn(64, 64, |x, y| Rgb([((x + y) % 2 * 255) as u8; 3]));
        let small = cover(board, (8, 8), Crop::Centre).unwrap();
        assert!(small.pixels().all(|p| p.0.iter().all(|&c| c.abs_diff(127) <= 2)));
    }

    #[test]
    fn the_middle_is_kept() {
        let striped = RgbImage::from_fn(30, 10, |x, _| Rgb([(x / 10 * 100) as u8; 3]));
        let middle = cover(striped.clone(), (10, 10), Crop::Centre).unwrap();
        assert!(middle.pixels().all(|p| p.0 == [100; 3]));
        assert_eq!(cover(striped.clone(), (10, 10), Crop::Random).unwrap(), striped);
        let long = RgbImage::new(1000, 10);
        assert_eq!(cover(long, (10, 10), Crop::Random).unwrap().dimensions(), (40, 10));
    }

    #[test]
    fn a_speck_is_refused() {
        let reason = cover(RgbImage::new(1, 1), (32, 32), Crop::Centre).unwrap_err();
        assert!(reason.contains("1x1") && reason.contains("8x8"), "{reason}");
        assert!(cover(RgbImage::new(8, 8), (32, 32), Crop::Centre).is_ok());
        assert!(cover(RgbImage::new(8, 8), (0, 4), Crop::Centre).is_err());
    }

    proptest! {
        #[test]
        fn sizes_always_fit(w in 1u32..200, h in 1u32..200, tw in 1u32..40, th in 1u32..40) {
            let picture = RgbImage::new(w, h);
            match cover(picture.clone(), (tw, th), Crop::Centre) {
                Ok(exact) => prop_assert_eq!(exact.dimensions(), (tw, th)),
                Err(_) => prop_assert!(w * MAX_ENLARGEMENT < tw || h * MAX_ENLARGEMENT < th),
            }
            if let Ok(kept) = cover(picture, (tw, th), Crop::Random) {
                prop_assert!(kept.width() >= tw && kept.height() >= th);
                // One source pixel too many is kept at most, enlarged at most four times.
                prop_assert!(kept.width() <= tw * 4 + 4 && kept.height() <= th * 4 + 4);
                prop_assert!(kept.width() == tw || kept.height() == th
                    || kept.dimensions() == (w, h));
            }
        }
    }
}
