//! Models as commands load them: a diffusers folder, or a run folder with one in `model/`.

use crate::formats::diffusers::{self, Model};
use crate::models::{self, Network, Weights};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A model whose weights are exactly those that its network needs, in float32.
pub struct Checked {
    pub model: Model,
    pub network: Box<dyn Network>,
    pub weights: Weights,
}

impl Checked {
    pub fn parameters(&self) -> usize {
        self.weights.tensors.iter().map(|(_, _, values)| values.len()).sum()
    }
}

/// The model folder that `folder` is or has.
pub fn locate(folder: &Path) -> PathBuf {
    let inner = folder.join("model");
    if !folder.join("model_index.json").is_file() && inner.join("model_index.json").is_file() {
        return inner;
    }
    folder.to_path_buf()
}

/// Reads a model and checks its weights: every name, every shape, float32 or what becomes it.
///
/// # Errors
/// What [`diffusers::read`] refuses, and tensors that are missing, surplus or of another shape.
pub fn load(folder: &Path) -> Result<Checked> {
    let mut model = diffusers::read(locate(folder))?;
    let network = model.process.network(&model.unet)?;
    let multiple = model.unet.size_multiple();
    let size = model.unet.sample_size().unwrap_or([multiple; 2]);
    let path = model.weights_path.clone();
    let parameters = models::saved(network.as_ref(), size)
        .map_err(|error| Error::file(&path, error.to_string()))?;
    let weights = model.weights.take_weights(parameters, &path)?;
    Ok(Checked { model, network, weights })
}
