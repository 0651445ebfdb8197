//! `cyanea config`: every setting, its value and what it means.

use super::figures::Table;
use super::output;
use super::settings::Settings;
use crate::Result;
use crate::training::config::PRESETS;

const EXAMPLES: &str = "\
Examples:
  cyanea config > run.toml
  cyanea config --preset ddpm-32 --set training.steps=2000
  cyanea config --presets

What comes out: a complete TOML file in the sections [data] [model] [diffusion] [training]
[sampling], an explanation above each key. It can be read back with --config; keys that you delete
take their defaults.";

/// Print every setting with its default and its meaning
///
/// Checks the settings that it is given, and reads no images.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    settings: Settings,
    /// List the presets instead
    #[arg(long, conflicts_with_all = ["preset", "config", "set"])]
    presets: bool,
}

pub fn run(args: &Args) -> Result<()> {
    if args.presets {
        let mut table = Table::new(&["preset", "what it is"], &[0, 1]);
        for (name, about, _) in PRESETS {
            table.row([name.into(), about.into()]);
        }
        return output::say(&table.to_string());
    }
    output::say(&args.settings.load()?.to_toml()?)
}
