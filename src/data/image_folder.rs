//! A folder of pictures, read once into memory.
//!
//! * Subfolders are read too; names that begin with a dot are not. Links are followed, and a
//!   folder that is reached twice is read once, so links may form a loop.
//! * A file counts as a picture when its extension or its first bytes say so; which format it is,
//!   the bytes alone decide. Other files are left alone.
//! * The order is that of the paths below the folder, compared byte by byte, whatever order the
//!   file system gives.
//! * A file that can't be used is skipped and named with the reason; more than half of them is an
//!   error.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use rayon::prelude::*;

use super::dataset::{Dataset, Picture};
use super::decode::{FORMATS, decode_file, format_of, has_image_extension};
use super::transforms::{Crop, cover};
use crate::{Error, Result};

/// How pictures are to be taken from a folder.
#[derive(Clone, Debug)]
pub struct FolderOptions {
    /// Pixels.
    pub height: u32,
    pub width: u32,
    pub crop: Crop,
    /// The most memory that the decoded pictures may take, bytes.
    pub max_bytes: u64,
}

impl FolderOptions {
    /// Eight GiB of decoded pictures: 2.8 million of 32 × 32, or 43,000 of 256 × 256.
    pub const DEFAULT_MAX_BYTES: u64 = 8 << 30;
    /// The largest side, pixels.
    pub const MAX_SIDE: u32 = 8192;

    pub fn new(height: u32, width: u32) -> Self {
        let max_bytes = Self::DEFAULT_MAX_BYTES;
        FolderOptions { height, width, crop: Crop::Centre, max_bytes }
    }
}

/// A file that is not used, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Skipped {
    pub path: PathBuf,
    pub reason: String,
}

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: skipped, because {}", self.path.display(), self.reason)
    }
}

/// What a folder gave.
#[derive(Debug)]
pub struct Loaded {
    pub dataset: Dataset,
    /// In the order of their paths.
    pub skipped: Vec<Skipped>,
}

/// Reads all pictures below `folder`, decoding in parallel. `progress` is called, from any
/// thread, after each file with how many of how many are done.
///
/// # Errors
/// Names the folder and the remedy where it is missing or no folder, holds no pictures, more than
/// half of its pictures can't be used, or the pictures would take more than `options.max_bytes`.
pub fn load(
    folder: &Path,
    options: &FolderOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Loaded> {
    let sides = 1..=FolderOptions::MAX_SIDE;
    if !sides.contains(&options.height) || !sides.contains(&options.width) {
        return Err(Error::invalid(format!(
            "pictures can't be made {}x{} pixels (height x width): each side must be from 1 to {}",
            options.height,
            options.width,
            FolderOptions::MAX_SIDE
        )));
    }
    let mut skipped = Vec::new();
    let files = find(folder, &mut skipped)?;
    if files.is_empty() && skipped.is_empty() {
        let what = format!("holds no pictures; put {FORMATS} files into it or its subfolders");
        return Err(Error::file(folder, what));
    }
    let each = u64::from(options.height) * u64::from(options.width) * 3;
    let usable = AtomicU64::new(0);
    let done = AtomicUsize::new(0);
    let too_large = || {
        let what = format!(
            "its {} pictures at {}x{} (height x width) take more than the limit of {} bytes of \
             memory; use fewer pictures, a smaller size or a higher limit",
            files.len(),
            options.height,
            options.width,
            options.max_bytes
        );
        Error::file(folder, what)
    };
    let read = |file: &PathBuf| -> Result<std::result::Result<Picture, String>> {
        let to = (options.width, options.height);
        let picture = decode_file(file).and_then(|p| cover(p, to, options.crop));
        let picture = picture.map(|p| {
            let (width, height) = p.dimensions();
            let name = below(folder, file);
            Picture { name, height, width, pixels: p.into_raw().into_boxed_slice() }
        });
        if let Ok(picture) = &picture {
            let bytes = picture.pixels.len() as u64;
            if usable.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > options.max_bytes
            {
                return Err(too_large());
            }
        }
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, files.len());
        Ok(picture)
    };
    // Nothing is decoded that can't fit; half of the files may yet turn out to be unusable.
    if (files.len() as u64).div_ceil(2).saturating_mul(each) > options.max_bytes {
        return Err(too_large());
    }
    let results: Vec<_> = files.par_iter().map(read).collect::<Result<_>>()?;
    let total = files.len() + skipped.len();
    let mut pictures = Vec::with_capacity(results.len());
    for (path, result) in files.into_iter().zip(results) {
        match result {
            Ok(picture) => pictures.push(picture),
            Err(reason) => skipped.push(Skipped { path, reason }),
        }
    }
    skipped.sort_by(|a, b| a.path.cmp(&b.path));
    if pictures.is_empty() || skipped.len() > total / 2 {
        return Err(too_many(folder, &skipped, total));
    }
    let dataset = Dataset::new(pictures, options.height, options.width, options.crop)?;
    Ok(Loaded { dataset, skipped })
}

fn too_many(folder: &Path, skipped: &[Skipped], total: usize) -> Error {
    const SHOWN: usize = 5;
    let mut what = format!(
        "{} of its {total} pictures can't be used; at least half must be. Repair or remove:",
        skipped.len()
    );
    for one in skipped.iter().take(SHOWN) {
        what += &format!("\n  {}: {}", one.path.display(), one.reason);
    }
    if skipped.len() > SHOWN {
        what += &format!("\n  and {} more", skipped.len() - SHOWN);
    }
    Error::file(folder, what)
}

fn below(folder: &Path, file: &Path) -> String {
    file.strip_prefix(folder).unwrap_or(file).to_string_lossy().replace('\\', "/")
}

/// The picture files below `folder`, sorted; entries that can't be looked at go to `skipped`.
fn find(folder: &Path, skipped: &mut Vec<Skipped>) -> Result<Vec<PathBuf>> {
    let kind = fs::metadata(folder).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            Error::file(folder, "there is no such folder; check the path of the pictures")
        }
        _ => Error::io(folder, source),
    })?;
    if !kind.is_dir() {
        let what = "is a file; give the folder that holds the pictures";
        return Err(Error::file(folder, what));
    }
    // The top folder must be readable; below it an unreadable folder is one unusable entry.
    fs::read_dir(folder).map_err(|source| Error::io(folder, source))?;
    let mut files = Vec::new();
    let mut seen = HashSet::new();
    let mut waiting = vec![folder.to_path_buf()];
    while let Some(current) = waiting.pop() {
        match list(&current, &mut seen) {
            Ok((found, folders)) => {
                files.extend(found);
                // The stack hands out the last one first.
                waiting.extend(folders.into_iter().rev());
            }
            Err(error) => {
                let reason = format!("the folder can't be read: {error}");
                skipped.push(Skipped { path: current, reason });
            }
        }
    }
    files.sort();
    Ok(files)
}

/// The pictures and the folders directly in `folder`, each sorted; nothing where it was listed before.
fn list(
    folder: &Path,
    seen: &mut HashSet<PathBuf>,
) -> std::io::Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    if !seen.insert(fs::canonicalize(folder)?) {
        return Ok((files, folders));
    }
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        let path = entry.path();
        match fs::metadata(&path) {
            Ok(kind) if kind.is_dir() => folders.push(path),
            Ok(kind) if kind.is_file() && looks_like_picture(&path) => files.push(path),
            // Sockets, pipes and devices: opening one could wait for ever.
            Ok(_) => {}
            // A link to nothing: reading it will give the reason, where its name is a picture's.
            Err(_) if has_image_extension(&path) => files.push(path),
            Err(_) => {}
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

fn looks_like_picture(path: &Path) -> bool {
    if has_image_extension(path) {
        return true;
    }
    let mut start = Vec::with_capacity(32);
    let read = File::open(path).and_then(|file| file.take(32).read_to_end(&mut start));
    read.is_ok() && format_of(&start).is_some()
}

#[cfg(test)]
#[path = "image_folder_tests.rs"]
mod tests;
