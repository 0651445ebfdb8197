//! Model folders as diffusers' pipelines have them:
//!
//! ```text
//! model_index.json
//! unet/config.json
//! unet/diffusion_pytorch_model.safetensors
//! scheduler/scheduler_config.json
//! ```
//!
//! Older folders keep everything in the root, and name the attention's layers differently; both are
//! read. What is written is what `DDPMPipeline.from_pretrained` loads, where diffusers has the network:
//! the EDM2 U-Net, which it lacks, is kept in the same layout.

use super::atomic::{create_folder, write_atomic};
use super::tensors::Tensors;
use crate::diffusion::Process;
use crate::error::{Error, Result};
use crate::models::NetworkConfig;
use crate::models::json_config::shorten;
use serde_json::{Map, Value, json};
use std::borrow::Cow;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

const WEIGHTS: &str = "diffusion_pytorch_model.safetensors";

/// The version of diffusers whose files these are.
const DIFFUSERS_VERSION: &str = "0.32.0";

/// A trained U-Net and the process that it was trained for.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    pub unet: NetworkConfig,
    pub process: Process,
    /// Weights under today's diffusers names, in PyTorch's layout, all finite. Whether they fit
    /// the configuration is for the network to say ([`Tensors::require_names`],
    /// [`Tensors::take_f32`]).
    pub weights: Tensors,
    /// The file the weights came from or go to, for messages.
    pub weights_path: PathBuf,
}

/// Reads a model folder.
///
/// # Errors
/// A folder that is none, files that are missing, damaged or describe another kind of model, and
/// weights that are NaN or infinite.
pub fn read(folder: impl AsRef<Path>) -> Result<Model> {
    let folder = folder.as_ref();
    let (unet, process) = read_configs(folder)?;
    let weights_path = weights_path(&component(folder, "unet"))?;
    let weights = canonical(Tensors::read(&weights_path)?);
    weights.require_finite(&weights_path)?;
    Ok(Model { unet, process, weights, weights_path })
}

/// Reads the two configurations of a model folder, without its weights.
///
/// # Errors
/// As [`read`].
pub fn read_configs(folder: impl AsRef<Path>) -> Result<(NetworkConfig, Process)> {
    let folder = folder.as_ref();
    if !folder.is_dir() {
        let what = if folder.exists() { "is no folder" } else { "does not exist" };
        let remedy = "a model folder with model_index.json, unet/ and scheduler/ is needed";
        return Err(Error::file(folder, format!("{what}; {remedy}")));
    }
    let index = folder.join("model_index.json");
    if index.is_file() {
        check_index(&index)?;
    }
    let unet_path = component(folder, "unet").join("config.json");
    let object = read_settings(&unet_path, "the network's settings")?;
    let unet = NetworkConfig::from_json(&object).map_err(|error| in_file(&unet_path, error))?;
    let scheduler_path = component(folder, "scheduler").join("scheduler_config.json");
    let object = read_settings(&scheduler_path, "the settings of its noise schedule")?;
    let process = Process::from_json(&object).map_err(|error| in_file(&scheduler_path, error))?;
    Ok((unet, process))
}

/// Writes a model folder. A new folder appears whole or not at all; in one that is a model folder
/// already each file is replaced whole.
///
/// # Errors
/// A folder that holds something else, an invalid configuration, weights that are NaN or infinite,
/// and what the operating system says.
pub fn write(
    folder: impl AsRef<Path>,
    unet: &NetworkConfig,
    process: &Process,
    weights: &Tensors,
) -> Result<()> {
    let folder = folder.as_ref();
    unet.validate()?;
    process.validate()?;
    weights.require_finite(&folder.join("unet").join(WEIGHTS))?;
    let occupied = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(Error::io(folder, error)),
    };
    if occupied && !folder.join("model_index.json").is_file() {
        let what = "holds something other than a model; choose an empty or a new folder";
        return Err(Error::file(folder, what));
    }
    let parent = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    create_folder(parent)?;
    let staging = tempfile::Builder::new()
        .prefix(".cyanea-model-")
        .tempdir_in(parent)
        .map_err(|error| Error::io(parent, error))?;
    let written = write_files(staging.path(), unet, process, weights);
    // The user knows the final name, not the temporary one.
    written.map_err(|error| match error {
        Error::Io { source, .. } => Error::io(folder, source),
        Error::File { what, .. } => Error::file(folder, what),
        other => other,
    })?;
    publish(staging.path(), folder)
}

fn write_files(
    folder: &Path,
    unet: &NetworkConfig,
    process: &Process,
    weights: &Tensors,
) -> Result<()> {
    let [library, class] = unet.class();
    let [process_library, process_class] = process.class();
    let index = json!({
        "_class_name": "DDPMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": [process_library, process_class],
        "unet": [library, class],
    });
    let notes = |class: &str, settings: Map<String, Value>| {
        let mut object = Map::new();
        object.insert("_class_name".into(), class.into());
        object.insert("_diffusers_version".into(), DIFFUSERS_VERSION.into());
        object.extend(settings);
        Value::Object(object)
    };
    create_folder(folder.join("unet"))?;
    create_folder(folder.join("scheduler"))?;
    write_json(&folder.join("model_index.json"), &index)?;
    write_json(&folder.join("unet/config.json"), &notes(class, unet.to_json()))?;
    write_json(
        &folder.join("scheduler/scheduler_config.json"),
        &notes(process_class, process.to_json()),
    )?;
    // diffusers refuses safetensors files that don't say which framework's layout they have.
    let mut metadata = weights.metadata.clone();
    metadata.insert("format".into(), "pt".into());
    weights.write_with(folder.join("unet").join(WEIGHTS), &metadata)
}

/// Moves finished files to where they are looked for.
fn publish(staging: &Path, folder: &Path) -> Result<()> {
    for inner in ["unet", "scheduler"] {
        create_folder(folder.join(inner))?;
    }
    for file in [
        Path::new("unet").join(WEIGHTS),
        PathBuf::from("unet/config.json"),
        PathBuf::from("scheduler/scheduler_config.json"),
        PathBuf::from("model_index.json"),
    ] {
        let to = folder.join(&file);
        fs::rename(staging.join(&file), &to).map_err(|error| Error::io(&to, error))?;
    }
    Ok(())
}

/// The folder of a pipeline's component: one of its own, or the root.
fn component(folder: &Path, name: &str) -> PathBuf {
    let own = folder.join(name);
    if own.is_dir() { own } else { folder.to_path_buf() }
}

/// Whether a pipeline consists of a U-Net and a scheduler alone.
fn check_index(path: &Path) -> Result<()> {
    for (name, value) in read_object(path)? {
        // What belongs to the pipeline itself, and components that are absent.
        if name.starts_with('_') || !value.is_array() || value == json!([null, null]) {
            continue;
        }
        let class = value[1].as_str().unwrap_or("?").to_string();
        match (name.as_str(), class.as_str()) {
            ("unet", class) if NetworkConfig::knows(class) => {}
            ("scheduler", _) => {}
            ("unet", _) => {
                let what = format!(
                    "its U-Net is a {}; supported is UNet2DModel or Edm2Unet",
                    shorten(&class)
                );
                return Err(Error::file(path, what));
            }
            _ => {
                let what = format!(
                    "the pipeline has a part `{}` ({}); supported are pipelines of a U-Net and a \
                     scheduler alone",
                    shorten(&name),
                    shorten(&class)
                );
                return Err(Error::file(path, what));
            }
        }
    }
    Ok(())
}

fn weights_path(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(WEIGHTS);
    if path.is_file() {
        return Ok(path);
    }
    let remedy = if folder.join("diffusion_pytorch_model.bin").is_file() {
        "is missing; diffusion_pytorch_model.bin beside it may run code when it is read, so save \
         the model in Python with safe_serialization=True"
    } else if folder.join(format!("{WEIGHTS}.index.json")).is_file() {
        "is missing; the weights are split over several files, so save the model in Python with a \
         larger max_shard_size"
    } else {
        "is missing; a model folder has its weights there"
    };
    Err(Error::file(&path, remedy))
}

/// Weights under today's names. Before version 0.15 diffusers called an attention's layers
/// `query`, `key`, `value` and `proj_attn`.
pub fn canonical(weights: Tensors) -> Tensors {
    let metadata = weights.metadata.clone();
    let mut renamed: Tensors = weights
        .into_iter()
        .map(|(name, tensor)| (canonical_name(&name).into_owned(), tensor))
        .collect();
    renamed.metadata = metadata;
    renamed
}

/// Today's name of a weight.
pub fn canonical_name(name: &str) -> Cow<'_, str> {
    let today = |layer| match layer {
        "query" => Some("to_q"),
        "key" => Some("to_k"),
        "value" => Some("to_v"),
        "proj_attn" => Some("to_out.0"),
        _ => None,
    };
    let mut parts: Vec<&str> = name.split('.').collect();
    if let [.., attentions, number, layer, _] = parts.as_mut_slice()
        && *attentions == "attentions"
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && let Some(new) = today(*layer)
    {
        *layer = new;
        return Cow::Owned(parts.join("."));
    }
    Cow::Borrowed(name)
}

/// [`read_object`] for what every model folder must have.
fn read_settings(path: &Path, what: &str) -> Result<Map<String, Value>> {
    if path.exists() {
        return read_object(path);
    }
    Err(Error::file(
        path,
        format!(
            "is missing; a model folder has {what} there, so save the whole pipeline in Python \
             (DDPMPipeline's save_pretrained), not the U-Net alone"
        ),
    ))
}

/// Reads a JSON object. Python writes `Infinity` and `NaN`, which JSON has no words for; here they
/// are `null`.
fn read_object(path: &Path) -> Result<Map<String, Value>> {
    const LONGEST: u64 = 4 << 20;
    let mut bytes = Vec::new();
    fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::file(path, "is longer than any configuration; is it the right file?"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::file(path, "is no text; a JSON object is needed"))?;
    match serde_json::from_str(&without_infinities(&text)) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(Error::file(path, "is JSON, but no object; settings in { } are needed")),
        Err(error) => {
            Err(Error::file(path, format!("is no valid JSON ({error}); correct it there")))
        }
    }
}

fn without_infinities(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut quoted = false;
    while let Some(first) = rest.chars().next() {
        let word = ["-Infinity", "Infinity", "NaN"].iter().find(|word| rest.starts_with(**word));
        if let Some(word) = word.filter(|_| !quoted) {
            out.push_str("null");
            rest = &rest[word.len()..];
            continue;
        }
        let mut taken = first.len_utf8();
        match first {
            '"' => quoted = !quoted,
            '\\' if quoted => taken += rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => {}
        }
        out.push_str(&rest[..taken]);
        rest = &rest[taken..];
    }
    out
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_atomic(path, |out| writeln!(out, "{value:#}"))
}

/// An error about settings, with the file that has them.
fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::Invalid(what) => Error::file(path, what),
        other => other,
    }
}

#[cfg(test)]
#[path = "diffusers_tests.rs"]
mod tests;
