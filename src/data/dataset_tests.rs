//! Batches, epochs and splits.

use image::{Rgb, RgbImage};

use super::*;

/// Picture i is one pixel whose first channel is i.
fn numbered(count: u8) -> Dataset {
    let images = (0..count).map(|i| RgbImage::from_pixel(1, 1, Rgb([i, 0, 255]))).collect();
    Dataset::from_images(images).unwrap()
}

fn numbers(values: &[f32]) -> Vec<u8> {
    values.chunks(3).map(|p| ((p[0] + 1.0) * 127.5).round() as u8).collect()
}

#[test]
fn bytes_become_the_unit_range() {
    let data = numbered(2);
    let mut out = [0.0; 3];
    data.read(1, &mut out);
    assert_eq!(out, [1.0 / 127.5 - 1.0, -1.0, 1.0]);
    assert_eq!(data.read_all().len(), 6);
}

#[test]
fn an_epoch_holds_each_picture_once() {
    let data = numbered(10);
    for epoch in 0..5 {
        let mut drawn = numbers(&data.batch(epoch, 10, 3, false));
        assert_ne!(drawn, (0..10).collect::<Vec<u8>>(), "epoch {epoch} is in order");
        drawn.sort_unstable();
        assert_eq!(drawn, (0..10).collect::<Vec<u8>>());
    }
    assert_ne!(data.batch(0, 10, 3, false), data.batch(1, 10, 3, false));
    assert_ne!(data.batch(0, 10, 3, false), data.batch(0, 10, 4, false));
}

#[test]
fn the_batch_size_does_not_change_the_samples() {
    let images = (0..7).map(|i| super::super::synthetic::render(1, i, 16).unwrap()).collect();
    let data = Dataset::from_images(images).unwrap();
    let long = data.batch(0, 60, 9, true);
    for size in [1, 4, 15] {
        let parts: Vec<f32> =
            (0..60 / size as u64).flat_map(|step| data.batch(step, size, 9, true)).collect();
        assert_eq!(long, parts, "batches of {size}");
    }
    // A run that resumes at step 5 asks for step 5.
    assert_eq!(data.batch(5, 4, 9, true), long[20 * data.sample_len()..24 * data.sample_len()]);
    assert_eq!(data.batch(u64::MAX, 3, 9, true).len(), 3 * data.sample_len());
}

#[test]
fn half_of_the_samples_are_mirrored() {
    let image = RgbImage::from_fn(2, 1, |x, _| Rgb([(x * 255) as u8, 7, (255 - x * 255) as u8]));
    let data = Dataset::from_images(vec![image]).unwrap();
    let values = data.batch(0, 1000, 0, true);
    let (mut mirrored, seven) = (0, 7.0 / 127.5 - 1.0);
    for sample in values.chunks(6) {
        match sample[0] {
            1.0 => {
                mirrored += 1;
                assert_eq!(sample, [1.0, seven, -1.0, -1.0, seven, 1.0]);
            }
            _ => assert_eq!(sample, [-1.0, seven, 1.0, 1.0, seven, -1.0]),
        }
    }
    assert!((420..580).contains(&mirrored), "{mirrored}");
    assert!(data.batch(0, 100, 0, false).chunks(6).all(|s| s[0] == -1.0));
}

#[test]
fn random_crops_reach_every_place() {
    let pixels: Vec<u8> = (0..4 * 5u8).flat_map(|i| [i; 3]).collect();
    let picture = Picture { name: "p".into(), height: 4, width: 5, pixels: pixels.into() };
    let data = Dataset::new(vec![picture], 3, 3, Crop::Random).unwrap();
    let corners: std::collections::BTreeSet<u8> =
        data.batch(0, 200, 1, false).chunks(27).map(|s| numbers(s)[0]).collect();
    assert_eq!(corners.into_iter().collect::<Vec<u8>>(), [0, 1, 2, 5, 6, 7]);
    let mut middle = vec![0.0; 27];
    data.read(0, &mut middle);
    assert_eq!(numbers(&middle), [1, 2, 3, 6, 7, 8, 11, 12, 13]);
}

#[test]
fn splits_are_disjoint_and_repeat() {
    let data = numbered(40);
    let (train, held) = data.split(8, 5).unwrap();
    assert_eq!((train.len(), held.len()), (32, 8));
    let (a, b) = (numbers(&train.read_all()), numbers(&held.read_all()));
    assert!(a.is_sorted() && b.is_sorted());
    let mut all = [a.clone(), b.clone()].concat();
    all.sort_unstable();
    assert_eq!(all, (0..40).collect::<Vec<u8>>());
    assert_eq!(numbers(&data.split(8, 5).unwrap().1.read_all()), b);
    assert_ne!(numbers(&data.split(8, 6).unwrap().1.read_all()), b);
    assert!(numbers(&train.batch(0, 32, 1, false)).iter().all(|n| a.contains(n)));
    for impossible in [0, 40, 41] {
        let message = data.split(impossible, 0).unwrap_err().to_string();
        assert!(message.contains("40"), "{message}");
    }
}

#[test]
fn fingerprints_tell_data_apart() {
    let images = |last| {
        let make = |i| RgbImage::from_pixel(3, 3, Rgb([i; 3]));
        Dataset::from_images(vec![make(1), make(2), make(last)]).unwrap().fingerprint()
    };
    assert_eq!(images(3), images(3));
    assert_ne!(images(3), images(4));
    let data = numbered(4);
    assert_ne!(data.fingerprint(), data.split(1, 0).unwrap().0.fingerprint());
}

#[test]
fn unusable_pictures_are_refused() {
    assert!(Dataset::from_images(Vec::new()).is_err());
    assert!(Dataset::from_images(vec![RgbImage::new(2, 2), RgbImage::new(2, 3)]).is_err());
    let short = Picture { name: "p".into(), height: 2, width: 2, pixels: vec![0; 11].into() };
    assert!(Dataset::new(vec![short], 2, 2, Crop::Centre).unwrap_err().to_string().contains("p: "));
}
