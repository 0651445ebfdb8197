//! Snapshots of the averages of a run, and any other average from them (Karras et al. 2024,
//! arXiv:2312.02696, section 3.2).

use super::power_ema::{Profile, exponent, reconstruction};
use crate::error::{Error, Result};
use crate::formats::tensors::{Tensor, Tensors};
use crate::models::Weights;
use std::path::{Path, PathBuf};

const FORMAT: &str = "cyanea-averages/1";

fn prefix(number: usize) -> String {
    format!("average{number}.")
}

/// Writes a snapshot: the averages of `widths` after so many images. It appears whole or not at all.
///
/// # Errors
/// When the file can't be written.
pub fn write(path: &Path, images: u64, widths: &[f64], averages: &[Weights]) -> Result<()> {
    if let Some(folder) = path.parent() {
        crate::formats::atomic::create_folder(folder)?;
    }
    let mut tensors = Tensors::new();
    for (number, average) in averages.iter().enumerate() {
        for (name, shape, values) in &average.tensors {
            let name = format!("{}{name}", prefix(number));
            tensors.insert(name, Tensor::f32(shape.clone(), values.clone()));
        }
    }
    let widths: Vec<String> = widths.iter().map(f64::to_string).collect();
    for (key, value) in
        [("format", FORMAT.into()), ("images", images.to_string()), ("widths", widths.join(","))]
    {
        tensors.metadata.insert(key.to_string(), value);
    }
    tensors.write(path)
}

/// The averages that a snapshot holds, from its metadata alone.
fn profiles(path: &Path) -> Result<Vec<Profile>> {
    let metadata = Tensors::read_metadata(path)?;
    let note = |key: &str| metadata.get(key).map_or("", String::as_str);
    if note("format") != FORMAT {
        return Err(Error::file(path, format!("holds no averages of the format {FORMAT}")));
    }
    let bad = |key: &str| {
        let shown: String = note(key).chars().take(40).collect();
        Error::file(path, format!("its metadata has `{key}` = \"{shown}\", which can't be"))
    };
    let images: Option<u64> = note("images").parse().ok().filter(|&images| images > 0);
    let images = images.ok_or_else(|| bad("images"))? as f64;
    let widths: Option<Vec<f64>> =
        note("widths").split(',').map(|width| width.parse().ok()).collect();
    let profile = |width| {
        let gamma = exponent(width).map_err(|error| Error::file(path, error.to_string()))?;
        Ok(Profile { gamma, images })
    };
    widths.ok_or_else(|| bad("widths"))?.into_iter().map(profile).collect()
}

/// The average of width `std` at the end of the last of the snapshots, as the best sum of all that they
/// hold; `parameters` are those of the network. `observe` is told how many snapshots of all are done.
/// Sums are in float64.
///
/// # Errors
/// Snapshots that can't be read or are of another network, a width out of reach, and what `observe`
/// returns.
pub fn reconstruct(
    snapshots: &[PathBuf],
    std: f64,
    parameters: &[(String, Vec<usize>)],
    observe: &mut dyn FnMut(usize, usize) -> Result<()>,
) -> Result<Weights> {
    let gamma = exponent(std)?;
    let each = snapshots.iter().map(|path| profiles(path)).collect::<Result<Vec<_>>>()?;
    let profiles = each.concat();
    let Some(images) = profiles.iter().map(|p| p.images).reduce(f64::max) else {
        return Err(Error::invalid("there are no snapshots to make an average from"));
    };
    if let Some(late) = each.windows(2).position(|pair| pair[0][0].images >= pair[1][0].images) {
        let what = "has seen no more images than the snapshot before it; is it of another run?";
        return Err(Error::file(&snapshots[late + 1], what));
    }
    let shares = reconstruction(&profiles, Profile { gamma, images })?;
    let mut shares = shares.into_iter();
    let mut sums: Vec<Vec<f64>> =
        parameters.iter().map(|(_, shape)| vec![0.0; shape.iter().product()]).collect();
    for (done, (path, averages)) in snapshots.iter().zip(&each).enumerate() {
        let mut snapshot = Tensors::read(path)?;
        snapshot.require_finite(path)?;
        let names: Vec<String> = (0..averages.len())
            .flat_map(|number| parameters.iter().map(move |(name, _)| prefix(number) + name))
            .collect();
        snapshot.require_names(names.iter().map(String::as_str), path)?;
        for (number, share) in shares.by_ref().take(averages.len()).enumerate() {
            for (sum, (name, shape)) in sums.iter_mut().zip(parameters) {
                let name = format!("{}{name}", prefix(number));
                let values = snapshot.take_f32(&name, shape, path)?;
                for (sum, value) in sum.iter_mut().zip(values) {
                    *sum += share * f64::from(value);
                }
            }
        }
        observe(done + 1, snapshots.len())?;
    }
    let tensors = parameters.iter().zip(sums).map(|((name, shape), sum)| {
        (name.clone(), shape.clone(), sum.into_iter().map(|value| value as f32).collect())
    });
    Ok(Weights { tensors: tensors.collect() })
}
