//! Pictures in memory and the batches drawn from them.
//!
//! What a batch holds is a function of (seed, sample number) alone. Samples are numbered through
//! the whole run; each `len` of them are an epoch, in which every picture comes once, in an order
//! given by a keyed permutation. A resumed run needs nothing but its step, and a different batch
//! size or split of a batch meets the same samples in the same order.

use std::path::Path;
use std::sync::Arc;

use image::RgbImage;

use super::counter::{Permutation, Stream, below, hash, mix};
use super::transforms::Crop;
use crate::{Error, Result};

/// What a random number is for, so that no two uses share one.
const ORDER: u64 = 1;
const CHANGE: u64 = 2;
const SPLIT: u64 = 3;

/// One picture: RGB bytes, row after row. At least as large as the data set's pictures.
#[derive(Debug)]
pub struct Picture {
    /// Path below the folder, with `/` between its parts.
    pub name: String,
    pub height: u32,
    pub width: u32,
    pub pixels: Box<[u8]>,
}

/// Pictures of `height` × `width` pixels to draw batches from. Cloning and splitting share the
/// pixels.
#[derive(Clone, Debug)]
pub struct Dataset {
    pictures: Arc<[Picture]>,
    /// Which of the pictures belong to this data set, ascending.
    members: Arc<[u32]>,
    height: usize,
    width: usize,
    crop: Crop,
    /// Of each picture, where they have one.
    classes: Option<Arc<[u32]>>,
}

impl Dataset {
    /// The number of channels: RGB.
    pub const CHANNELS: usize = 3;

    /// # Errors
    /// Where there are no pictures, or one is smaller than `height` × `width` or has not three
    /// bytes a pixel; names it.
    pub fn new(pictures: Vec<Picture>, height: u32, width: u32, crop: Crop) -> Result<Self> {
        if pictures.is_empty() || height == 0 || width == 0 {
            return Err(Error::invalid("a data set needs at least one picture of at least 1x1"));
        }
        for picture in &pictures {
            let bytes = picture.height as usize * picture.width as usize * Self::CHANNELS;
            if picture.height < height || picture.width < width || picture.pixels.len() != bytes {
                return Err(Error::invalid(format!(
                    "{}: {}x{} pixels in {} bytes can't give {height}x{width} RGB pixels",
                    picture.name,
                    picture.height,
                    picture.width,
                    picture.pixels.len()
                )));
            }
        }
        let count = u32::try_from(pictures.len())
            .map_err(|_| Error::invalid("a data set holds at most 4,294,967,295 pictures"))?;
        Ok(Dataset {
            pictures: pictures.into(),
            members: (0..count).collect(),
            height: height as usize,
            width: width as usize,
            crop,
            classes: None,
        })
    }

    /// A data set of pictures that are all of the same size already, named by number.
    ///
    /// # Errors
    /// Where there are none or their sizes differ.
    pub fn from_images(images: Vec<RgbImage>) -> Result<Self> {
        let (width, height) = images.first().map_or((0, 0), RgbImage::dimensions);
        let named = images.into_iter().enumerate().map(|(i, image)| Picture {
            name: format!("{i:06}"),
            height: image.height(),
            width: image.width(),
            pixels: image.into_raw().into_boxed_slice(),
        });
        let pictures: Vec<Picture> = named.collect();
        if let Some(other) = pictures.iter().find(|p| (p.width, p.height) != (width, height)) {
            return Err(Error::invalid(format!(
                "picture {} is {}x{} pixels and the first one {width}x{height}",
                other.name, other.width, other.height
            )));
        }
        Self::new(pictures, height, width, Crop::Centre)
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Never true: a data set holds at least one picture.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Pixels.
    pub fn height(&self) -> usize {
        self.height
    }

    /// Pixels.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The number of values in one sample: height · width · 3.
    pub fn sample_len(&self) -> usize {
        self.height * self.width * Self::CHANNELS
    }

    pub fn name(&self, index: usize) -> &str {
        &self.picture(index).name
    }

    fn picture(&self, index: usize) -> &Picture {
        &self.pictures[self.members[index] as usize]
    }

    /// Takes `held_out` pictures aside: (to train on, held out), both in their old order. Which
    /// ones depends on their number, their order and the seed.
    ///
    /// # Errors
    /// Where nothing would be left to train on.
    pub fn split(&self, held_out: usize, seed: u64) -> Result<(Dataset, Dataset)> {
        if held_out == 0 || held_out >= self.len() {
            return Err(Error::invalid(format!(
                "{held_out} pictures can't be held out of {}: hold out at least 1 and leave at \
                 least 1 to train on",
                self.len()
            )));
        }
        let permutation = Permutation::new(self.len(), hash(&[seed, SPLIT]));
        let mut aside = vec![false; self.len()];
        (0..held_out).for_each(|i| aside[permutation.at(i)] = true);
        let part = |wanted: bool| {
            let members = self.members.iter().zip(&aside);
            let members = members.filter(|&(_, &a)| a == wanted).map(|(&m, _)| m).collect();
            Dataset { members, ..self.clone() }
        };
        Ok((part(false), part(true)))
    }

    /// Samples `step · batch_size …` of a run: NHWC, `batch_size` × [`Self::sample_len`] values in
    /// [−1, 1] (byte / 127.5 − 1). With `flip`, half of them are mirrored left to right; with
    /// [`Crop::Random`] each is cut from somewhere else.
    pub fn batch(&self, step: u64, batch_size: usize, seed: u64, flip: bool) -> Vec<f32> {
        let mut values = vec![0.0; batch_size * self.sample_len()];
        self.fill(step.wrapping_mul(batch_size as u64), seed, flip, &mut values);
        values
    }

    /// As [`Self::batch`], from sample number `first` on, into memory that is there already; as
    /// many samples as fit.
    ///
    /// # Panics
    /// Where `values` is not a whole number of samples long.
    pub fn fill(&self, first: u64, seed: u64, flip: bool, values: &mut [f32]) {
        let each = self.sample_len();
        assert_eq!(values.len() % each, 0, "a batch holds whole samples");
        let drawn = self.drawn(first, seed);
        for (out, (sample, index)) in values.chunks_exact_mut(each).zip(drawn) {
            let picture = self.picture(index);
            let mut stream = Stream::new(&[seed, CHANGE, sample]);
            let mirrored = flip && stream.chance(0.5);
            let (top, left) = match self.crop {
                Crop::Centre => self.middle(picture),
                Crop::Random => {
                    let mut within = |long: u32, short: usize| {
                        below(stream.bits(), u64::from(long) - short as u64 + 1) as usize
                    };
                    (within(picture.height, self.height), within(picture.width, self.width))
                }
            };
            self.cut(picture, top, left, mirrored, out);
        }
    }

    /// Picture `index`, its middle, not mirrored, as [`Self::batch`] lays it out.
    ///
    /// # Panics
    /// Where `out` is not [`Self::sample_len`] long or there is no such picture.
    pub fn read(&self, index: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.sample_len(), "one sample");
        let picture = self.picture(index);
        let (top, left) = self.middle(picture);
        self.cut(picture, top, left, false, out);
    }

    /// All pictures in order, NHWC, as by [`Self::read`]: for data sets that are held out.
    pub fn read_all(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.len() * self.sample_len()];
        let samples = values.chunks_exact_mut(self.sample_len());
        samples.enumerate().for_each(|(i, out)| self.read(i, out));
        values
    }

    fn middle(&self, picture: &Picture) -> (usize, usize) {
        let rest = |long: u32, short: usize| (long as usize - short) / 2;
        (rest(picture.height, self.height), rest(picture.width, self.width))
    }

    fn cut(&self, picture: &Picture, top: usize, left: usize, mirrored: bool, out: &mut [f32]) {
        let row = self.width * Self::CHANNELS;
        for (y, out) in out.chunks_exact_mut(row).enumerate() {
            let start = ((top + y) * picture.width as usize + left) * Self::CHANNELS;
            let bytes = &picture.pixels[start..start + row];
            let normal = |byte: u8| f32::from(byte) / 127.5 - 1.0;
            if mirrored {
                let pixels = bytes.rchunks_exact(Self::CHANNELS);
                for (to, from) in out.chunks_exact_mut(Self::CHANNELS).zip(pixels) {
                    to.iter_mut().zip(from).for_each(|(to, &from)| *to = normal(from));
                }
            } else {
                out.iter_mut().zip(bytes).for_each(|(to, &from)| *to = normal(from));
            }
        }
    }

    /// The numbers of a run's samples from `first` on, and the pictures that they are made from: each
    /// once an epoch, in an order of its own.
    fn drawn(&self, first: u64, seed: u64) -> impl Iterator<Item = (u64, usize)> {
        let (length, count) = (self.len(), self.len() as u64);
        let order = move |number| Permutation::new(length, hash(&[seed, ORDER, number]));
        let mut epoch = (first / count, order(first / count));
        (0..).map(move |i| {
            let sample = first.wrapping_add(i);
            if epoch.0 != sample / count {
                epoch = (sample / count, order(sample / count));
            }
            (sample, epoch.1.at((sample % count) as usize))
        })
    }

    /// The pictures with the folders that they lie in as their classes, in alphabetical order.
    ///
    /// # Errors
    /// Another number of folders than `count`, and a picture that lies in none.
    pub fn with_classes(self, count: usize) -> Result<Dataset> {
        let folder = |picture: &Picture| {
            let mut parts = Path::new(&picture.name).components();
            let first = parts.next().map(|part| part.as_os_str().to_string_lossy().into_owned());
            first.filter(|_| parts.next().is_some()).ok_or_else(|| {
                Error::invalid(format!(
                    "{} lies in no folder of its own; for model.classes = {count} each class needs a \
                     folder, or set model.classes to 0",
                    picture.name
                ))
            })
        };
        let folders: Vec<String> = self.pictures.iter().map(folder).collect::<Result<_>>()?;
        let mut names = folders.clone();
        names.sort();
        names.dedup();
        if names.len() != count {
            let some: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
            return Err(Error::invalid(format!(
                "model.classes is {count}, but the images lie in {} folders ({}{}); set it to {}",
                names.len(),
                some.join(", "),
                if names.len() > some.len() { ", …" } else { "" },
                names.len()
            )));
        }
        let class = |name: &String| names.binary_search(name).map_or(0, |class| class as u32);
        let classes = folders.iter().map(class).collect();
        Ok(Dataset { classes: Some(classes), ..self })
    }

    /// The class of a picture; `None` where pictures have none.
    pub fn label(&self, index: usize) -> Option<usize> {
        let classes = self.classes.as_ref()?;
        Some(classes[self.members[index] as usize] as usize)
    }

    /// The classes of the samples that [`Self::fill`] gives.
    pub fn labels(&self, first: u64, seed: u64, count: usize) -> Vec<Option<usize>> {
        self.drawn(first, seed).take(count).map(|(_, index)| self.label(index)).collect()
    }

    /// A number that changes when a picture, its class, its order or the size changes: a resumed run compares
    /// it with that of the run it continues.
    pub fn fingerprint(&self) -> u64 {
        let sides = [self.len() as u64, self.height as u64, self.width as u64, self.crop as u64];
        let mut state = hash(&sides);
        for index in 0..self.len() {
            let picture = self.picture(index);
            if let Some(label) = self.label(index) {
                state = hash(&[state, label as u64]);
            }
            state = hash(&[state, u64::from(picture.height), u64::from(picture.width)]);
            for chunk in picture.pixels.chunks(8) {
                let mut word = [0; 8];
                word[..chunk.len()].copy_from_slice(chunk);
                state = mix(state.rotate_left(5) ^ u64::from_le_bytes(word));
            }
        }
        state
    }
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
