//! `cyanea completions`: scripts for shells.

use super::{Cli, output};
use crate::Result;
use clap::CommandFactory;

const EXAMPLES: &str = "\
Examples:
  cyanea completions bash > ~/.local/share/bash-completion/completions/cyanea
  cyanea completions zsh > \"${fpath[1]}/_cyanea\"
  cyanea completions fish > ~/.config/fish/completions/cyanea.fish";

/// Print the completion script of a shell
///
/// The script completes subcommands, options and their values when you press Tab.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Shell to complete in
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "cyanea", &mut script);
    output::say(&String::from_utf8_lossy(&script))
}
