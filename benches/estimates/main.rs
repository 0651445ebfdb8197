//! The lab's launches: what a preset's sampling and training steps launch on a target, written out for an
//! estimate of cycles from the machine code (`estimate.py` beside this file). Nothing runs, and no GPU is
//! needed, but kernels compiled by scripts/cuda-toolchain.sh are.
//!
//! `cargo bench --bench estimates -- OUT [--preset NAME] [--batch N] [--target v100|a100|h100] [--precision
//! fp16|fp32]` writes `OUT/launches.json` and the machine code that it names.

use clap::Parser;
use cyanea::device::kernels::{Function, IMAGES, Image};
use cyanea::device::{KernelWork, Launch, Precision, Target, Work};
use cyanea::diffusion::denoiser;
use cyanea::graph::Plan;
use cyanea::training::config::Config;
use cyanea::training::objective::Task;
use cyanea::training::run::recipe;
use cyanea::training::trainer::{self, Recipe};
use cyanea::{Error, Result};
use serde_json::{Value, json};
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "estimates")]
struct Args {
    /// Folder to write to; without one nothing is done, so that a plain `cargo bench` passes by
    out: Option<PathBuf>,
    #[arg(long, default_value = "ddpm-64")]
    preset: String,
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// v100, a100 or h100
    #[arg(long, default_value = "v100")]
    target: String,
    #[arg(long, default_value = "fp16")]
    precision: String,
    /// Given by Cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let Some(out) = &args.out else {
        println!("estimates: give a folder to write a step's launches to");
        return ExitCode::SUCCESS;
    };
    match run(&args, out) {
        Ok(count) => {
            println!("{count} different launches");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args, out: &Path) -> Result<usize> {
    let precision = match args.precision.as_str() {
        "fp16" => Precision::Fp16,
        "fp32" => Precision::Fp32,
        other => {
            return Err(Error::invalid(format!("--precision {other}: it can be fp32 or fp16")));
        }
    };
    let target = Target::named(&args.target)?.with_precision(precision)?;
    let [sampling, training] = plans(&args.preset, args.batch, &target)?;
    let write = |name: &str, bytes: &[u8]| {
        let path = out.join(name);
        fs::write(&path, bytes).map_err(|why| Error::invalid(format!("{}: {why}", path.display())))
    };
    fs::create_dir_all(out).map_err(|why| Error::invalid(format!("{}: {why}", out.display())))?;

    let (mut rows, mut written): (Vec<Value>, _) = (Vec::new(), HashSet::new());
    for (step, plan) in [("sampling", &sampling), ("training", &training)] {
        for program in &plan.programs {
            for launch in &program.launches {
                let Work::Kernel(work) = &launch.work else {
                    return Err(Error::invalid(format!("{} launches no kernels", args.target)));
                };
                let (function, image) = code(work, &target)?;
                let name = format!("{}.{}.cubin", image.source, image.arch);
                if written.insert(name.clone()) {
                    write(&name, image.bytes)?;
                }
                let mut row = row(launch, work, &target, function, &name);
                row["step"] = step.into();
                row["program"] = program.name.clone().into();
                // What differs in its label alone is one launch, some times over.
                let same = |other: &&mut Value| {
                    let keys = ["step", "program", "kernel", "grid", "params", "pointers"];
                    keys.iter().all(|key| other[*key] == row[*key])
                };
                match rows.iter_mut().find(same) {
                    Some(other) => {
                        other["count"] = (other["count"].as_u64().unwrap_or(0) + 1).into()
                    }
                    None => rows.push(row),
                }
            }
        }
    }
    let json = json!({
        "preset": args.preset,
        "batch": args.batch,
        "target": args.target,
        "precision": args.precision,
        "launches": rows,
    });
    write("launches.json", format!("{json:#}\n").as_bytes())?;
    Ok(rows.len())
}

/// The plans of a sampling run and of training.
fn plans(preset: &str, batch: usize, target: &Target) -> Result<[Plan; 2]> {
    let config = Config::load(Some(preset), None, &[])?;
    let task = Task::new(&config.network(), &config.process())?;
    let shape = denoiser::Shape { batch, size: [config.data.size.height, config.data.size.width] };
    let sampling = denoiser::plan(task.network(), &config.sampler_table()?, shape, target)?;
    let recipe = Recipe { batch, ..recipe(&config) };
    Ok([sampling, trainer::plan(task.objective().as_ref(), &recipe, target)?])
}

/// The kernel of a launch in the machine code for the target's own architecture.
fn code(work: &KernelWork, target: &Target) -> Result<(&'static Function, &'static Image)> {
    let number = match target.name {
        "v100" => 70,
        "a100" => 80,
        _ => 90,
    };
    let images = IMAGES.iter().filter(|image| {
        (image.arch.number, image.arch.ptx) == (number, false)
            && image.code_path == target.code_path
    });
    let mut functions =
        images.flat_map(|image| image.functions.iter().map(move |function| (function, image)));
    let found = functions.find(|(function, _)| function.kernel.name == work.kernel);
    found.ok_or_else(|| {
        let what =
            format!("no kernels for sm_{number} in this build; run scripts/cuda-toolchain.sh");
        Error::invalid(what)
    })
}

/// A launch, with the times in which the chip could at best do its arithmetic and move its bytes.
fn row(
    launch: &Launch,
    work: &KernelWork,
    target: &Target,
    function: &Function,
    cubin: &str,
) -> Value {
    let speed = target.speed().expect("a target with kernels is a chip");
    let peak = if function.kernel.in_half() { speed.flops_f16 } else { speed.flops_f32 };
    let params: String = work.params.iter().map(|byte| format!("{byte:02x}")).collect();
    let first_written = work.pointers.len() - work.written;
    let pointers: Vec<Value> = (work.pointers.iter().enumerate())
        .map(|(index, (field, view))| {
            json!({
                "field": field,
                "bytes": view.ty.bytes(),
                "dtype": format!("{:?}", view.ty.dtype),
                "written": index >= first_written,
            })
        })
        .collect();
    json!({
        "operation": launch.operation,
        "label": launch.label,
        "count": 1,
        "kernel": work.kernel,
        "symbol": function.symbol,
        "cubin": cubin,
        "grid": work.grid,
        "block": work.block,
        "shared_bytes": work.shared_bytes,
        "flops_floor_us": launch.flops as f64 / peak * 1e6,
        "bytes_floor_us": launch.bytes as f64 / speed.bytes * 1e6,
        "params": params,
        "pointers": pointers,
    })
}
