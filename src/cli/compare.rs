//! `cyanea compare`: replays reference cases and says how far off each tensor is.

use super::figures::Table;
use super::output;
use super::precision::Wanted;
use crate::compare::{self, Report};
use crate::device::{Device, Precision, open_by_name_with};
use crate::formats::verdict::TensorVerdict;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const EXAMPLES: &str = "\
Examples:
  cyanea compare tests/fixtures/*.safetensors
  cyanea compare case.safetensors --device emulated:v100
  cyanea compare case.safetensors --device cuda:0 --precision fp16 --json

A case is made from PyTorch code with tests/reference/export_case.py.

What comes out: for each file its tensors with the largest absolute error, where that is, the error
as a share of what is allowed (1 and below passes), and the verdict. When a network fails, the first
submodule that is outside the bound is named: that is where to look. --json prints an array with,
per file, file, op, device, precision, kernels, pass and tensors; a NaN is null there.

Exit code 0: all pass; 1: some differ; 2: a file can't be read or replayed.";

/// Replay reference cases and compare with what PyTorch got
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Reference cases (.safetensors)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Precision of activations and weights
    #[arg(long, value_enum, default_value = "fp32")]
    precision: Wanted,
    /// Print a JSON array instead of tables
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, device: &str) -> Result<()> {
    let precision = Precision::from(args.precision);
    let device = open_by_name_with(device, precision)?;
    let device = device.as_ref();
    let mut replayed: Vec<(&Path, Report)> = Vec::new();
    let mut failures: Vec<Error> = Vec::new();
    for file in &args.files {
        match compare::replay(file, device, precision) {
            Ok(report) => {
                if !args.json {
                    output::say(&text(file, &report, device, args.precision))?;
                }
                replayed.push((file, report));
            }
            // The device won't serve the next file either.
            Err(error @ Error::Device(_)) => return Err(error),
            Err(error) => failures.push(error),
        }
    }
    if args.json {
        let all = replayed.iter().map(|(file, report)| json(file, report, device, args.precision));
        output::say_line(&format!("{:#}", Value::Array(all.collect())))?;
    }
    let (mut differ, mut unjudged) = (Vec::new(), Vec::new());
    for (file, report) in replayed.iter().filter(|(_, report)| !report.verdict.pass) {
        let to = if judged(report) { &mut differ } else { &mut unjudged };
        to.push(file.display().to_string());
    }
    // A file that can't be replayed outweighs one that differs; each is told.
    if let Some(last) = failures.pop() {
        failures.iter().for_each(|error| output::note(&format!("error: {error}")));
        return Err(last);
    }
    let say = |files: Vec<String>, what: &str| {
        let count = format!("{} of {} cases {what}", files.len(), args.files.len());
        (!files.is_empty()).then(|| format!("{count}: {}", files.join(", ")))
    };
    let said = [
        say(differ, "differ from the reference"),
        say(unjudged, "have no value of the reference in this precision to be judged by"),
    ];
    match said.into_iter().flatten().collect::<Vec<_>>() {
        said if said.is_empty() => Ok(()),
        said => Err(Error::Mismatch(said.join("; "))),
    }
}

/// Whether there was anything to judge by.
fn judged(report: &Report) -> bool {
    report.verdict.tensors.iter().any(|tensor| tensor.pass.is_some())
}

fn verdict(pass: Option<bool>) -> &'static str {
    match pass {
        Some(true) => "pass",
        Some(false) => "DIFFERS",
        None => "not judged",
    }
}

fn text(file: &Path, report: &Report, device: &dyn Device, precision: Wanted) -> String {
    let mut text = format!(
        "{}: {} on {}, {}: {}\n",
        file.display(),
        report.op,
        device.name(),
        precision.name(),
        verdict(judged(report).then_some(report.verdict.pass))
    );
    let titles = ["  tensor", "largest error", "at", "share of allowed", "verdict"];
    let mut table = Table::new(&titles, &[0, 2, 4]);
    for TensorVerdict { name, max_abs_error, at, allowed_share, pass } in &report.verdict.tensors {
        table.row([
            format!("  {name}"),
            format!("{max_abs_error:.3e}"),
            format!("{at:?}"),
            allowed_share.map_or("-".into(), |share| format!("{share:.3}")),
            verdict(*pass).into(),
        ]);
    }
    for TensorVerdict { name, max_abs_error, at, allowed_share, .. } in &report.intermediates {
        table.row([
            format!("  intermediate.{name}"),
            format!("{max_abs_error:.3e}"),
            format!("{at:?}"),
            allowed_share.map_or("-".into(), |share| format!("{share:.3}")),
            "not judged".into(),
        ]);
    }
    text += &table.to_string();
    if let Some(path) = &report.first_divergence {
        text += &format!("  the first submodule outside the bound is {path}\n");
    }
    text
}

fn json(file: &Path, report: &Report, device: &dyn Device, precision: Wanted) -> Value {
    let tensor = |tensor: &TensorVerdict| {
        json!({
            "name": tensor.name,
            "max_abs_error": tensor.max_abs_error,
            "at": tensor.at,
            "allowed_share": tensor.allowed_share,
            "pass": tensor.pass,
        })
    };
    json!({
        "file": file.display().to_string(),
        "op": report.op,
        "device": device.name(),
        "precision": precision.name(),
        "kernels": report.kernels,
        "pass": report.verdict.pass,
        "first_divergence": report.first_divergence,
        "intermediates": report.intermediates.iter().map(tensor).collect::<Vec<_>>(),
        "tensors": report.verdict.tensors.iter().map(tensor).collect::<Vec<_>>(),
    })
}
