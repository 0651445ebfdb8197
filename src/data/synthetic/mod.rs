//! Procedural pictures of jellyfish to train on where there are no pictures yet.
//!
//! A picture is a function of (seed, index, size): it can be made again, alone, on any machine
//! and by any number of threads, to the byte. What varies: pose, size, shape, phase of the stroke
//! and colour of the animal, its company in the distance, water, light, and marine snow. The
//! broad forms are smooth, so that a small network learns them in minutes; threads, frills, ribs
//! and flakes are down to two pixels wide.

mod jellyfish;
mod paint;
mod water;

use image::RgbImage;
use rayon::prelude::*;

use super::counter::Stream;
use crate::{Error, Result};
use jellyfish::Jellyfish;
use paint::Canvas;
use water::Water;

/// The smallest picture in which a jellyfish can be recognised, pixels a side.
pub const MIN_SIZE: u32 = 8;
/// The largest picture, pixels a side.
pub const MAX_SIZE: u32 = 4096;

/// Picture `index` of the collection `seed`: `size` × `size` pixels, sRGB.
///
/// # Errors
/// Where `size` is not in [`MIN_SIZE`]`..=`[`MAX_SIZE`].
pub fn render(seed: u64, index: u64, size: u32) -> Result<RgbImage> {
    check_size(size)?;
    Ok(paint_picture(seed, index, size))
}

/// Pictures `0..count` of the collection `seed`, made in parallel.
///
/// # Errors
/// As [`render`].
pub fn render_many(seed: u64, count: usize, size: u32) -> Result<Vec<RgbImage>> {
    check_size(size)?;
    Ok((0..count as u64).into_par_iter().map(|index| paint_picture(seed, index, size)).collect())
}

fn check_size(size: u32) -> Result<()> {
    if (MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Ok(());
    }
    Err(Error::invalid(format!(
        "synthetic pictures can't be {size} pixels wide: choose a size from {MIN_SIZE} to \
         {MAX_SIZE}"
    )))
}

fn paint_picture(seed: u64, index: u64, size: u32) -> RgbImage {
    // One stream a purpose: a change in one part leaves the other parts as they were.
    let stream = |purpose: u64| Stream::new(&[seed, index, purpose]);
    let mut canvas = Canvas::new(size as usize);
    let water = Water::new(&mut stream(0));
    water.paint(&mut canvas);

    let mut company = stream(1);
    let others = [0, 0, 0, 0, 0, 0, 0, 0, 1, 2][company.index(10)];
    let mut distances: Vec<f32> = (0..others).map(|_| company.range(0.65, 1.0)).collect();
    distances.sort_by(|a, b| b.total_cmp(a));
    for (i, distance) in distances.into_iter().enumerate() {
        let mut own = stream(16 + i as u64);
        Jellyfish::new(&mut own, canvas.size, distance).paint(&mut canvas, &mut own);
    }
    let mut own = stream(2);
    let distance = 0.35 * own.unit() * own.unit();
    Jellyfish::new(&mut own, canvas.size, distance).paint(&mut canvas, &mut stream(3));
    water.snow(&mut canvas, &mut stream(4));
    canvas.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_picture_depends_on_seed_index_and_size_alone() {
        let many = render_many(5, 24, 32).unwrap();
        for (index, picture) in many.iter().enumerate() {
            assert_eq!(picture, &render(5, index as u64, 32).unwrap(), "picture {index}");
        }
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(many, pool.install(|| render_many(5, 24, 32).unwrap()));
        assert_ne!(many[0], render(6, 0, 32).unwrap());
    }

    #[test]
    fn the_bytes_are_those_of_every_other_machine() {
        // FNV-1a over pictures 0 to 7; it changes only when the pictures are redesigned.
        let pictures = render_many(0, 8, 32).unwrap();
        let bytes = pictures.iter().flat_map(|p| p.as_raw().iter());
        let digest = bytes.fold(0xcbf2_9ce4_8422_2325u64, |state, &byte| {
            (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        assert_eq!(digest, 0x2940_6c09_acaa_88ca, "{digest:#x}");
    }

    #[test]
    fn no_two_alike() {
        let distinct: HashSet<Vec<u8>> =
            render_many(0, 400, 32).unwrap().into_iter().map(RgbImage::into_raw).collect();
        assert_eq!(distinct.len(), 400);
    }

    #[test]
    fn sizes_have_limits() {
        for size in [0, 7, 4097, u32::MAX] {
            assert!(render(0, 0, size).is_err(), "{size}");
        }
        for size in [8, 33, 96] {
            assert_eq!(render(0, 0, size).unwrap().dimensions(), (size, size));
        }
    }

    #[test]
    fn pictures_hold_an_animal_and_not_water_alone() {
        for (index, picture) in render_many(11, 100, 32).unwrap().iter().enumerate() {
            // Mean squared difference between the corners and the middle, over the channels.
            let at = |x, y| picture.get_pixel(x, y).0.map(f32::from);
            let corner = at(0, 31);
            let different = (8..24)
                .flat_map(|y| (8..24).map(move |x| (x, y)))
                .filter(|&(x, y)| {
                    let p = at(x, y);
                    (0..3).map(|c| (p[c] - corner[c]).powi(2)).sum::<f32>() > 900.0
                })
                .count();
            assert!(different > 40, "picture {index}: {different} of 256 pixels differ");
        }
    }
}
