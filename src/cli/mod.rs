//! The command line: one file a subcommand.
//!
//! Results go to standard output; progress, notes and errors to standard error. Exit codes: 0 done,
//! 1 results differ from what was expected, 2 any other error, 130 interrupted.

mod bench;
mod compare;
mod completions;
mod config;
mod doctor;
mod ema;
mod export;
mod figures;
mod fresh_folder;
mod import;
mod interruption;
mod kernels;
mod model_folder;
mod output;
mod plan;
mod plan_figures;
mod precision;
mod prediction;
mod progress;
mod quickstart;
mod sample;
mod settings;
mod synth;
mod timing;
mod train;
mod training_run;

use crate::device::cpu::Simd;
use crate::device::{Precision, check_name, open_by_name, open_by_name_with};
use crate::{Error, Result};
use clap::Parser;
use interruption::Interruption;
use precision::Wanted;
use std::process::ExitCode;

const ABOUT: &str = "\
Trains and samples diffusion U-Nets, repeatable to the bit

Runs on the CPU (the default), on an NVIDIA GPU, or on an emulator that runs the GPU's kernels on \
the CPU. Every subcommand has a --help with examples.";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 results differ from what was expected (compare); 2 any other error, with one
line that says what to do; 130 interrupted, after the work was saved.

Environment: RAYON_NUM_THREADS sets the number of CPU threads, CYANEA_SIMD the highest SIMD
level to use (avx512, avx2 or scalar).";

#[derive(Debug, clap::Parser)]
#[command(name = "cyanea", version, long_about = ABOUT, after_long_help = EXIT_CODES)]
#[command(about = "Trains and samples diffusion U-Nets, repeatable to the bit")]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// Where to compute: cpu, emulated[:v100|:a100|:h100] or cuda:N
    ///
    /// `emulated` runs the kernels of an NVIDIA GPU on the CPU, slowly and exactly; alone it is
    /// emulated:h100. `cyanea doctor` says which devices can serve here.
    #[arg(long, global = true, value_name = "DEVICE", default_value = "cpu")]
    device: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Quickstart(quickstart::Args),
    Synth(synth::Args),
    Train(train::Args),
    Sample(sample::Args),
    Config(config::Args),
    Plan(plan::Args),
    Bench(bench::Args),
    Compare(compare::Args),
    Kernels(kernels::Args),
    Doctor(doctor::Args),
    Import(import::Args),
    Export(export::Args),
    Ema(ema::Args),
    Completions(completions::Args),
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => return answer(&message),
    };
    match run(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&format!("error: {error}"));
            ExitCode::from(match error {
                Error::Mismatch(_) => 1,
                Error::Interrupted => interruption::EXIT_CODE,
                _ => 2,
            })
        }
    }
}

/// Help and version go to standard output with code 0, usage errors to standard error with 2.
fn answer(message: &clap::Error) -> ExitCode {
    match message.print() {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => ExitCode::from(2),
        _ if message.use_stderr() => ExitCode::from(2),
        _ => ExitCode::SUCCESS,
    }
}

fn run(cli: &Cli) -> Result<()> {
    // Also for commands that need no device: a name or a level that is none is a mistake.
    check_name(&cli.device)?;
    Simd::limit()?;
    // Commands that have nothing to save are simply ended by Ctrl-C.
    let listen = Interruption::listen;
    let device = || open_by_name(&cli.device);
    let open = |wanted: Wanted| open_by_name_with(&cli.device, Precision::from(wanted));
    match &cli.command {
        Command::Quickstart(args) => quickstart::run(args, device()?.as_ref(), &listen()),
        Command::Synth(args) => synth::run(args, &listen()),
        Command::Train(args) => train::run(args, || open(args.precision), &listen()),
        Command::Sample(args) => {
            sample::run(args, open_by_name_with(&cli.device, args.numerics())?.as_ref(), &listen())
        }
        Command::Config(args) => config::run(args),
        Command::Plan(args) => plan::run(args, &cli.device),
        Command::Bench(args) => bench::run(args, &cli.device),
        Command::Compare(args) => compare::run(args, &cli.device),
        Command::Kernels(args) => kernels::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Import(args) => import::run(args),
        Command::Export(args) => export::run(args),
        Command::Ema(args) => ema::run(args, &listen()),
        Command::Completions(args) => completions::run(args),
    }
}
