//! Folders of good and bad pictures.

use std::fs;
use std::path::{Path, PathBuf};

use image::{ImageFormat, Luma, Rgb, RgbImage};
use tempfile::TempDir;

use super::*;

/// A picture that differs from pixel to pixel, so that decoders and orders can be told apart.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 5 + seed * 40) as u8, (y * 7) as u8, (x + y + seed) as u8])
    })
}

fn save(folder: &Path, name: &str, image: &RgbImage) -> PathBuf {
    let path = folder.join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.save(&path).unwrap();
    path
}

fn bytes_of(image: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn read(folder: &Path) -> Result<Loaded> {
    load(folder, &FolderOptions::new(16, 16), &|_, _| {})
}

fn names(loaded: &Loaded) -> Vec<&str> {
    (0..loaded.dataset.len()).map(|i| loaded.dataset.name(i)).collect()
}

/// A folder with three good pictures, so that one bad one is reported and does not end the run.
fn folder_with(name: &str, bytes: &[u8]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    (0..3).for_each(|i| {
        save(folder.path(), &format!("good{i}.png"), &picture(16, 16, i));
    });
    fs::write(folder.path().join(name), bytes).unwrap();
    folder
}

fn reason_for(name: &str, bytes: &[u8]) -> String {
    let folder = folder_with(name, bytes);
    let loaded = read(folder.path()).unwrap();
    assert_eq!(loaded.dataset.len(), 3, "{name}");
    assert_eq!(loaded.skipped.len(), 1, "{name}");
    let skipped = &loaded.skipped[0];
    assert_eq!(skipped.path, folder.path().join(name));
    assert!(skipped.to_string().contains(name));
    skipped.reason.clone()
}

#[test]
fn every_format_by_content_in_the_order_of_paths() {
    let folder = tempfile::tempdir().unwrap();
    let formats = [
        ("sub/b.jpg", ImageFormat::Jpeg),
        ("a.png", ImageFormat::Png),
        ("sub/deeper/c.WEBP", ImageFormat::WebP),
        ("d.bmp", ImageFormat::Bmp),
        ("e.tiff", ImageFormat::Tiff),
        ("no_extension", ImageFormat::Png),
        ("wrong_name.jpg", ImageFormat::Bmp),
        ("z.gif", ImageFormat::Gif),
    ];
    for (i, (name, format)) in formats.into_iter().enumerate() {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes_of(&picture(20, 18, i as u32), format)).unwrap();
    }
    save(folder.path(), ".hidden.png", &picture(16, 16, 0));
    save(folder.path(), ".hidden/x.png", &picture(16, 16, 0));
    fs::write(folder.path().join("notes.txt"), "not a picture").unwrap();
    let loaded = read(folder.path()).unwrap();
    assert_eq!(loaded.skipped, []);
    let order = [
        "a.png",
        "d.bmp",
        "e.tiff",
        "no_extension",
        "sub/b.jpg",
        "sub/deeper/c.WEBP",
        "wrong_name.jpg",
        "z.gif",
    ];
    assert_eq!(names(&loaded), order);
    assert_eq!(loaded.dataset.fingerprint(), read(folder.path()).unwrap().dataset.fingerprint());
}

#[test]
fn folders_without_pictures_are_errors() {
    let folder = tempfile::tempdir().unwrap();
    let message = |path: &Path| read(path).unwrap_err().to_string();
    assert!(message(folder.path()).contains("holds no pictures"));
    assert!(message(&folder.path().join("missing")).contains("no such folder"));
    let text = folder.path().join("a.txt");
    fs::write(&text, "words").unwrap();
    assert!(message(folder.path()).contains("holds no pictures"));
    assert!(message(&text).contains("is a file"));
    assert!(message(folder.path()).contains(folder.path().to_str().unwrap()));
    // Text that calls itself a picture.
    fs::write(folder.path().join("a.png"), "words").unwrap();
    let all = message(folder.path());
    assert!(all.contains("1 of its 1") && all.contains("a.png"), "{all}");
}

#[test]
fn more_than_half_unusable_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for i in 0..3 {
        save(folder.path(), &format!("good{i}.png"), &picture(16, 16, i));
        fs::write(folder.path().join(format!("bad{i}.png")), "").unwrap();
    }
    assert_eq!(read(folder.path()).unwrap().skipped.len(), 3);
    fs::write(folder.path().join("bad3.png"), "").unwrap();
    let message = read(folder.path()).unwrap_err().to_string();
    assert!(message.contains("4 of its 7") && message.contains("bad0.png"), "{message}");
}

#[test]
fn damaged_files_are_named_with_the_reason() {
    assert!(reason_for("bad.png", b"").contains("0 bytes"));
    assert!(reason_for("bad.png", b"some words").contains("not PNG"));
    assert!(reason_for("bad.png", &bytes_of(&picture(1, 1, 0), ImageFormat::Png)).contains("1x1"));
    use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
    for format in [Png, Jpeg, WebP, Bmp, Tiff, Gif] {
        let whole = bytes_of(&picture(64, 64, 3), format);
        for share in [0.2, 0.5, 0.9] {
            let cut = &whole[..(whole.len() as f64 * share) as usize];
            let reason = reason_for("bad.png", cut);
            assert!(reason.contains("cut short"), "{format:?} at {share}: {reason}");
        }
    }
}

/// A PNG that is nothing but a header: what a decoder must not allocate for.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut ihdr = b"IHDR".to_vec();
    ihdr.extend(width.to_be_bytes());
    ihdr.extend(height.to_be_bytes());
    ihdr.extend([8, 2, 0, 0, 0]);
    // CRC-32 of the chunk, bit by bit (PNG specification, annex D).
    let crc = ihdr.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| (c >> 1) ^ (0xedb8_8320 * (c & 1)))
    });
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    png.extend(13u32.to_be_bytes());
    png.extend(ihdr);
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\0\x08IDAT\x78\x9c\x03\x00\x00\x00\x00\x01");
    png
}

#[test]
fn huge_sizes_are_refused_from_the_header() {
    let mut bmp = bytes_of(&picture(4, 4, 0), ImageFormat::Bmp);
    bmp[18..22].copy_from_slice(&50_000u32.to_le_bytes());
    bmp[22..26].copy_from_slice(&50_000u32.to_le_bytes());
    let mut jpeg = bytes_of(&picture(16, 16, 0), ImageFormat::Jpeg);
    let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
    jpeg[frame + 5..frame + 9].copy_from_slice(&[0xc3, 0x50, 0xc3, 0x50]);
    for (name, bytes) in
        [("huge.png", png_header(50_000, 50_000)), ("huge.bmp", bmp), ("huge.jpg", jpeg)]
    {
        let started = std::time::Instant::now();
        let reason = reason_for(name, &bytes);
        assert!(reason.contains("50000x50000") && reason.contains("100 million"), "{reason}");
        assert!(started.elapsed().as_secs() < 5, "{name}");
    }
}

#[test]
fn unusual_pictures_are_read() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pictures");
    let colour = |name: &str, want: [u8; 3]| {
        let picture = decode_file(&fixtures.join(name)).unwrap();
        let got = picture.get_pixel(8, 8).0;
        assert!((0..3).all(|c| got[c].abs_diff(want[c]) <= 3), "{name}: {got:?}, {want:?}");
    };
    colour("cmyk_red.jpg", [255, 0, 0]);
    colour("animated_green_first.webp", [0, 200, 0]);
    colour("animated_green_first.png", [0, 200, 0]);
    let grey = image::ImageBuffer::from_pixel(16, 16, Luma([0x4040u16]));
    let folder = tempfile::tempdir().unwrap();
    grey.save(folder.path().join("grey16.png")).unwrap();
    image::RgbaImage::new(16, 16).save(folder.path().join("clear.png")).unwrap();
    let loaded = read(folder.path()).unwrap();
    assert_eq!(names(&loaded), ["clear.png", "grey16.png"]);
    let mut values = vec![0.0; 16 * 16 * 3];
    loaded.dataset.read(0, &mut values);
    assert!(values.iter().all(|&v| v == 1.0));
    loaded.dataset.read(1, &mut values);
    assert!(values.iter().all(|&v| v == 64.0 / 127.5 - 1.0));
}

#[test]
fn exif_orientation_is_applied() {
    // TIFF structure with the one entry "orientation: 6", a quarter turn clockwise.
    let exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
    let upper_half_white = RgbImage::from_fn(32, 16, |_, y| Rgb([255 * u8::from(y < 8); 3]));
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, 95);
    image::ImageEncoder::set_exif_metadata(&mut encoder, exif.to_vec()).unwrap();
    encoder.encode_image(&upper_half_white).unwrap();
    let upright = super::super::decode::decode_bytes(&bytes).unwrap();
    assert_eq!(upright.dimensions(), (16, 32));
    assert!(upright.get_pixel(12, 16).0[0] > 200 && upright.get_pixel(3, 16).0[0] < 50);
}

#[cfg(unix)]
#[test]
fn links_may_form_a_loop() {
    use std::os::unix::fs::symlink;
    let folder = tempfile::tempdir().unwrap();
    save(folder.path(), "a/one.png", &picture(16, 16, 1));
    symlink(folder.path(), folder.path().join("a/back")).unwrap();
    symlink(folder.path().join("a"), folder.path().join("again")).unwrap();
    symlink("nowhere", folder.path().join("lost.png")).unwrap();
    let loaded = read(folder.path()).unwrap();
    assert_eq!(names(&loaded), ["a/one.png"]);
    assert_eq!(loaded.skipped.len(), 1);
    assert!(loaded.skipped[0].reason.contains("can't be read"));
}

#[test]
fn memory_and_size_have_limits() {
    let folder = folder_with("more.png", &bytes_of(&picture(40, 16, 5), ImageFormat::Png));
    let mut options = FolderOptions::new(16, 16);
    options.max_bytes = 4 * 16 * 16 * 3;
    assert!(load(folder.path(), &options, &|_, _| {}).is_ok());
    options.max_bytes -= 1;
    let message = load(folder.path(), &options, &|_, _| {}).unwrap_err().to_string();
    assert!(message.contains("memory") && message.contains("smaller size"), "{message}");
    options.max_bytes = 1;
    assert!(load(folder.path(), &options, &|_, _| {}).is_err());
    assert!(load(folder.path(), &FolderOptions::new(0, 16), &|_, _| {}).is_err());
    assert!(load(folder.path(), &FolderOptions::new(16, 100_000), &|_, _| {}).is_err());
}

#[test]
fn sizes_need_not_be_square_and_progress_is_told() {
    let folder = folder_with("more.png", &bytes_of(&picture(40, 16, 5), ImageFormat::Png));
    let last = std::sync::Mutex::new(Vec::new());
    let mut options = FolderOptions::new(8, 12);
    options.crop = Crop::Random;
    let loaded =
        load(folder.path(), &options, &|done, all| last.lock().unwrap().push((done, all))).unwrap();
    let mut seen = last.into_inner().unwrap();
    seen.sort_unstable();
    assert_eq!(seen, [(1, 4), (2, 4), (3, 4), (4, 4)]);
    let data = loaded.dataset;
    assert_eq!((data.height(), data.width(), data.sample_len()), (8, 12, 8 * 12 * 3));
    assert_eq!(data.batch(3, 5, 1, true).len(), 5 * 8 * 12 * 3);
}

mod arbitrary {
    use super::super::super::decode::decode_bytes;
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Neither noise behind a signature nor a damaged picture makes the decoders panic.
        #[test]
        fn bytes_never_panic(
            kind in 0usize..6,
            noise in proptest::collection::vec(any::<u8>(), 0..300),
            hits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            cut in any::<prop::sample::Index>(),
        ) {
            use ImageFormat::{Bmp, Gif, Jpeg, Png, Tiff, WebP};
            let format = [Png, Jpeg, WebP, Bmp, Tiff, Gif][kind];
            let mut bytes = bytes_of(&picture(12, 9, 1), format);
            let signed = [&bytes[..12], &noise[..]].concat();
            let _ = decode_bytes(&signed);
            let _ = decode_bytes(&noise);
            for (at, value) in hits {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            bytes.truncate(cut.index(bytes.len()) + 1);
            if let Ok(decoded) = decode_bytes(&bytes) {
                prop_assert!(decoded.width() > 0 && decoded.height() > 0);
            }
        }
    }
}
