//! Replays reference cases on a device: what `cyanea compare` runs.

mod attributes;
mod edm;
mod operations;
mod recipe;
mod schedulers;
mod training;

pub use attributes::Attributes;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::formats::reference_case::ReferenceCase;
use crate::formats::verdict::{
    Precision, TensorVerdict, Verdict, first_divergence, intermediates, judge,
};
use recipe::{Produced, Recipe};
use std::path::Path;

/// What a replay showed.
#[derive(Clone, Debug)]
pub struct Report {
    pub op: String,
    pub verdict: Verdict,
    /// Kernels that were launched; empty on `cpu`.
    pub kernels: Vec<String>,
    /// The case's intermediates that the network has, in order of execution: not judged.
    pub intermediates: Vec<TensorVerdict>,
    /// When the case fails: the first intermediate outside the bound for whole networks.
    pub first_divergence: Option<String>,
}

/// Replays one case.
///
/// # Errors
/// A file that can't be read, an operation or setting that isn't supported, a device that can't
/// serve. A result that differs is no error but a verdict.
pub fn replay(path: &Path, device: &dyn Device, precision: Precision) -> Result<Report> {
    if precision != device.target().precision {
        return Err(Error::device(format!(
            "{} was opened for another precision than {precision:?}",
            device.name()
        )));
    }
    let case = ReferenceCase::read(path)?;
    let produced = run(&case, device).map_err(|error| in_file(path, error))?;
    let verdict = judge(&case, &produced.tensors, precision)?;
    let intermediates = intermediates(&case, &produced.tensors);
    let first = first_divergence(&intermediates).filter(|_| !verdict.pass).map(str::to_string);
    Ok(Report {
        op: case.op.clone(),
        verdict,
        kernels: produced.kernels,
        intermediates,
        first_divergence: first,
    })
}

fn run(case: &ReferenceCase, device: &dyn Device) -> Result<Produced> {
    let attributes = Attributes::new(case.attributes.clone());
    let mut recipe = Recipe::new(case);
    if operations::build(&case.op, &attributes, &mut recipe)?.is_some() {
        recipe.refuse_unread()?;
        // A network's configuration refuses unknown keys itself.
        if !["unet2d", "edm2_precond"].contains(&case.op.as_str()) {
            attributes.refuse_unread(&case.op)?;
        }
        return recipe.run(device);
    }
    match case.op.as_str() {
        "adamw" => training::adamw(case, &attributes, device),
        "edm_heun" => edm::edm_heun(case, &attributes, device),
        "power_ema" => edm::power_ema(case, &attributes, device),
        "training" => training::run(case, &attributes, device),
        "add_noise" => schedulers::add_noise(case, &attributes, device),
        "ddpm_step" => schedulers::ddpm_step(case, &attributes, device),
        "ddim" | "dpm_solver_pp_2m" => schedulers::sample(case, &attributes, device),
        other => Err(Error::invalid(format!(
            "the operation `{other}` can't be replayed by this version"
        ))),
    }
}

/// Names the file in errors that don't name one yet.
fn in_file(path: &Path, error: Error) -> Error {
    match error {
        Error::File { .. } | Error::Io { .. } | Error::Device(_) => error,
        other => Error::file(path, other.to_string()),
    }
}
