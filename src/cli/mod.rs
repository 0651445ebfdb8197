//! The command line: one file a subcommand.
//!
//! Results go to standard output; progress, notes and errors to standard error. Exit codes: 0 done,
//! 1 results differ from what was expected, 2 any other error, 130 interrupted.

mod completions;
mod doctor;
mod figures;
mod fresh_folder;
mod interruption;
mod kernels;
mod output;
mod progress;
mod synth;

use crate::{Error, Result};
use clap::Parser;
use interruption::Interruption;
use std::process::ExitCode;

const ABOUT: &str = "\
Trains and samples diffusion U-Nets, repeatable to the bit

Every subcommand has a --help with examples.";

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 results differ from what was expected (compare); 2 any other error, with one
line that says what to do; 130 interrupted, after the work was saved.

Environment: RAYON_NUM_THREADS sets the number of CPU threads, CYANEA_SIMD a lower SIMD level.";

#[derive(Debug, clap::Parser)]
#[command(name = "cyanea", version, long_about = ABOUT, after_long_help = EXIT_CODES)]
#[command(about = "Trains and samples diffusion U-Nets, repeatable to the bit")]
#[command(propagate_version = true, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    Synth(synth::Args),
    Kernels(kernels::Args),
    Doctor(doctor::Args),
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
    let interruption = Interruption::listen();
    match &cli.command {
        Command::Synth(args) => synth::run(args, &interruption),
        Command::Kernels(args) => kernels::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Completions(args) => completions::run(args),
    }
}
