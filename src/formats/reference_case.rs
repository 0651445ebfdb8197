//! Reference cases: safetensors files that hold what is needed to replay an operation, a network,
//! a sampler or a training run, and what another implementation got for it. What counts as
//! agreement is in [`verdict`](super::verdict).

use super::tensors::{Tensor, TensorData, Tensors};
use crate::error::{Error, Result};
use crate::models::json_config::{did_you_mean, shorten};
use half::f16;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Operations that are judged by the narrow bounds of single operations.
const SINGLE: [&str; 19] = [
    "conv2d",
    "conv_transpose2d",
    "group_norm",
    "group_norm_silu",
    "silu",
    "upsample_nearest2d",
    "linear",
    "mse_loss",
    "attention",
    "norm_silu_conv2d",
    "pixel_norm",
    "mp_silu",
    "clip",
    "mp_sum",
    "mp_cat",
    "mp_conv2d",
    "mp_linear",
    "mp_fourier",
    "add_noise",
];

const COMPOSITE: [&str; 13] = [
    "adamw",
    "ddpm_step",
    "ddim",
    "dpm_solver_pp_2m",
    "unet2d",
    "autoencoder_kl.encode",
    "autoencoder_kl.decode",
    "vq_model.encode",
    "vq_model.decode",
    "edm2_precond",
    "edm_heun",
    "power_ema",
    "training",
];

/// Tensors of one kind, under the names they have without their prefix.
pub type Named = BTreeMap<String, Tensor>;

/// What is judged apart: results and gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Output,
    Gradient,
}

/// A tensor that a replay has to reproduce.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// With its prefix, e.g. `output.y` or `grad_parameter.weight`.
    pub name: &'a str,
    pub kind: Kind,
    /// In PyTorch's layout.
    pub shape: &'a [usize],
    pub want: &'a [f32],
    /// What PyTorch's own float16 run gave.
    pub half: Option<&'a [f16]>,
}

/// A reference case, read and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct ReferenceCase {
    pub path: PathBuf,
    /// One of the names that the format knows; whether it can be replayed is another question.
    pub op: String,
    /// Without `intermediates`, which is no setting of the operation.
    pub attributes: Map<String, Value>,
    /// Float32 or int64, as all tensors but half twins.
    pub inputs: Named,
    pub parameters: Named,
    pub grad_outputs: Named,
    /// Expected outputs and gradients, under their full names.
    pub wanted: Named,
    /// Float16 twins of `wanted`, under the same full names.
    pub half: Named,
    /// Outputs of submodules in order of execution, by path.
    pub intermediates: Vec<(String, Tensor)>,
    /// Overrides of the default tolerances; `atol` is absolute.
    pub rtol: Option<f64>,
    pub atol: Option<f64>,
}

impl ReferenceCase {
    /// Reads and checks a case.
    ///
    /// # Errors
    /// A file that can't be read, is of another format, names an unknown operation or tensor, or
    /// whose tensors contradict each other in name, shape or type.
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_tensors(Tensors::read(path)?, path)
    }

    /// Checks tensors that were read from `path`.
    ///
    /// # Errors
    /// As [`ReferenceCase::read`].
    pub fn from_tensors(tensors: Tensors, path: &Path) -> Result<Self> {
        let refuse = |what: String| Err(Error::file(path, what));
        let note = |key: &str| tensors.metadata.get(key).map(String::as_str);
        match note("format") {
            Some("reference-case/1") => {}
            other => {
                return refuse(format!(
                    "is no reference case: its metadata has the format {}; reference-case/1 is \
                     needed",
                    other.map_or("(none)".into(), |name| format!("\"{}\"", shorten(name)))
                ));
            }
        }
        let known = || SINGLE.iter().chain(&COMPOSITE).copied();
        let Some(op) = note("op") else {
            return refuse("its metadata names no `op`; write the case anew".into());
        };
        if !known().any(|name| name == op) {
            return refuse(format!(
                "the operation `{}` is not known{}",
                shorten(op),
                did_you_mean(op, known())
            ));
        }
        let mut attributes = match note("attributes").map(serde_json::from_str) {
            Some(Ok(Value::Object(attributes))) => attributes,
            None => Map::new(),
            Some(Ok(_)) => return refuse("its `attributes` are no JSON object".into()),
            Some(Err(error)) => {
                return refuse(format!("its `attributes` are no valid JSON: {error}"));
            }
        };
        let tolerance = |key: &str| match note(key).map(|text| (text, text.trim().parse::<f64>())) {
            None => Ok(None),
            Some((_, Ok(value))) if value >= 0.0 && value.is_finite() => Ok(Some(value)),
            Some((text, _)) => Err(Error::file(
                path,
                format!("its `{key}` is \"{}\"; a number of at least 0 is needed", shorten(text)),
            )),
        };
        let order = attributes.shift_remove("intermediates");
        let mut case = ReferenceCase {
            path: path.to_path_buf(),
            op: op.to_string(),
            attributes,
            inputs: Named::new(),
            parameters: Named::new(),
            grad_outputs: Named::new(),
            wanted: Named::new(),
            half: Named::new(),
            intermediates: Vec::new(),
            rtol: tolerance("rtol")?,
            atol: tolerance("atol")?,
        };
        let mut intermediates = Named::new();
        for (name, tensor) in tensors {
            check_type(&name, &tensor, path)?;
            let (prefix, rest) = name.split_once('.').unwrap_or((name.as_str(), ""));
            let (group, key) = match prefix {
                _ if rest.is_empty() => {
                    return refuse(format!(
                        "the tensor `{}` has no known prefix such as `input.`",
                        shorten(&name)
                    ));
                }
                "input" => (&mut case.inputs, rest),
                "parameter" => (&mut case.parameters, rest),
                "grad_output" => (&mut case.grad_outputs, rest),
                "half" => (&mut case.half, rest),
                "intermediate" => (&mut intermediates, rest),
                "output" | "grad_input" | "grad_parameter" => (&mut case.wanted, name.as_str()),
                _ => {
                    return refuse(format!(
                        "the tensor `{}` has an unknown prefix{}",
                        shorten(&name),
                        did_you_mean(prefix, PREFIXES.into_iter())
                    ));
                }
            };
            group.insert(key.to_string(), tensor);
        }
        case.intermediates = in_order(intermediates, order, path)?;
        case.check_shapes()?;
        Ok(case)
    }

    /// Whether the narrow bounds of single operations hold for its outputs.
    pub fn is_single_operation(&self) -> bool {
        SINGLE.contains(&self.op.as_str())
    }

    /// Everything that a replay has to reproduce, in alphabetical order.
    pub fn wanted(&self) -> impl Iterator<Item = Wanted<'_>> {
        self.wanted.iter().filter_map(|(name, tensor)| {
            let TensorData::F32(want) = &tensor.data else { return None };
            let half = self.half.get(name).and_then(|twin| match &twin.data {
                TensorData::F16(values) => Some(values.as_slice()),
                _ => None,
            });
            let kind = if name.starts_with("output.") { Kind::Output } else { Kind::Gradient };
            Some(Wanted { name, kind, shape: &tensor.shape, want, half })
        })
    }

    /// A float32 input.
    ///
    /// # Errors
    /// An input that is missing or holds integers.
    pub fn input_f32(&self, name: &str) -> Result<(&[usize], &[f32])> {
        floats(&self.inputs, "input", name, &self.path)
    }

    /// # Errors
    /// An input or a parameter, under its name in the file, that the case's operation does not take.
    pub fn refuse_unless(&self, taken: impl Fn(&str) -> bool) -> Result<()> {
        let inputs = self.inputs.keys().map(|name| format!("input.{name}"));
        let parameters = self.parameters.keys().map(|name| format!("parameter.{name}"));
        match inputs.chain(parameters).find(|name| !taken(name)) {
            None => Ok(()),
            Some(name) => {
                let what = format!("`{name}` is nothing that `{}` takes", self.op);
                Err(Error::file(&self.path, what))
            }
        }
    }

    /// An int64 input.
    ///
    /// # Errors
    /// An input that is missing or holds floats.
    pub fn input_i64(&self, name: &str) -> Result<(&[usize], &[i64])> {
        let tensor = find(&self.inputs, "input", name, &self.path)?;
        match &tensor.data {
            TensorData::I64(values) => Ok((&tensor.shape, values)),
            _ => Err(Error::file(&self.path, format!("the tensor `input.{name}` must be I64"))),
        }
    }

    /// A float32 parameter.
    ///
    /// # Errors
    /// A parameter that is missing or holds integers.
    pub fn parameter_f32(&self, name: &str) -> Result<(&[usize], &[f32])> {
        floats(&self.parameters, "parameter", name, &self.path)
    }

    /// Gradients, upstream gradients and twins must be of something, and have its shape.
    fn check_shapes(&self) -> Result<()> {
        let same = |name: &str, tensor: &Tensor, of: &str, original: Option<&Tensor>| {
            let what = match original {
                None => format!("the tensor `{name}` belongs to `{of}`, which is missing"),
                Some(original) if original.shape != tensor.shape => format!(
                    "the tensor `{name}` has the shape {:?}, but `{of}` has {:?}",
                    tensor.shape, original.shape
                ),
                Some(_) => return Ok(()),
            };
            Err(Error::file(&self.path, what))
        };
        for (name, tensor) in &self.grad_outputs {
            let of = format!("output.{name}");
            same(&format!("grad_output.{name}"), tensor, &of, self.wanted.get(&of))?;
        }
        for (name, twin) in &self.half {
            same(&format!("half.{name}"), twin, name, self.wanted.get(name))?;
        }
        for (name, gradient) in &self.wanted {
            if let Some(of) = name.strip_prefix("grad_input.") {
                same(name, gradient, &format!("input.{of}"), self.inputs.get(of))?;
            } else if let Some(of) = name.strip_prefix("grad_parameter.") {
                same(name, gradient, &format!("parameter.{of}"), self.parameters.get(of))?;
            }
        }
        if self.wanted.is_empty() {
            let what = "has no `output.` and no gradient: there is nothing to compare";
            return Err(Error::file(&self.path, what));
        }
        Ok(())
    }
}

const PREFIXES: [&str; 8] = [
    "input",
    "parameter",
    "output",
    "grad_output",
    "grad_input",
    "grad_parameter",
    "half",
    "intermediate",
];

fn check_type(name: &str, tensor: &Tensor, path: &Path) -> Result<()> {
    let needed = match (name.split('.').next(), &tensor.data) {
        (Some("half"), TensorData::F16(_)) => return Ok(()),
        (Some("half"), _) => "F16",
        (Some("input" | "parameter"), TensorData::F32(_) | TensorData::I64(_)) => return Ok(()),
        (Some("input" | "parameter"), _) => "F32 or I64",
        (_, TensorData::F32(_)) => return Ok(()),
        _ => "F32",
    };
    let what = format!(
        "the tensor `{}` is {}; a reference case needs {needed} there",
        shorten(name),
        tensor.data.type_name()
    );
    Err(Error::file(path, what))
}

/// Sorts intermediates by the attribute that lists them.
fn in_order(
    mut tensors: Named,
    order: Option<Value>,
    path: &Path,
) -> Result<Vec<(String, Tensor)>> {
    let listed = match order {
        None => Vec::new(),
        Some(Value::Array(listed)) => listed,
        Some(_) => {
            return Err(Error::file(path, "the attribute `intermediates` must be a list of paths"));
        }
    };
    let mut sorted = Vec::new();
    for name in listed {
        let found = name.as_str().and_then(|name| tensors.remove_entry(name));
        sorted.push(found.ok_or_else(|| {
            let name = shorten(&name.to_string());
            Error::file(
                path,
                format!("the attribute `intermediates` lists {name}, which is missing or repeated"),
            )
        })?);
    }
    if let Some((name, _)) = tensors.first_key_value() {
        let what = format!(
            "the tensor `intermediate.{}` is not listed in the attribute `intermediates`",
            shorten(name)
        );
        return Err(Error::file(path, what));
    }
    Ok(sorted)
}

fn find<'a>(group: &'a Named, prefix: &str, name: &str, path: &Path) -> Result<&'a Tensor> {
    group.get(name).ok_or_else(|| Error::file(path, format!("lacks the tensor `{prefix}.{name}`")))
}

fn floats<'a>(
    group: &'a Named,
    prefix: &str,
    name: &str,
    path: &Path,
) -> Result<(&'a [usize], &'a [f32])> {
    let tensor = find(group, prefix, name, path)?;
    match &tensor.data {
        TensorData::F32(values) => Ok((&tensor.shape, values)),
        _ => Err(Error::file(path, format!("the tensor `{prefix}.{name}` must be F32"))),
    }
}

#[cfg(test)]
#[path = "reference_case_tests.rs"]
mod tests;
