//! Options of every subcommand that starts from a configuration.

use crate::Result;
use crate::training::config::Config;
use std::path::{Path, PathBuf};

/// Where settings come from: the defaults, a preset or a file over them, `--set` over those.
#[derive(Debug, clap::Args)]
pub struct Settings {
    /// Start from a preset; `cyanea config --presets` lists them
    #[arg(long, value_name = "NAME")]
    preset: Option<String>,
    /// Read settings from a TOML file; `cyanea config` prints one with every key explained
    #[arg(long, value_name = "FILE", conflicts_with = "preset")]
    config: Option<PathBuf>,
    /// Set one key, for instance --set training.steps=2000; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    set: Vec<String>,
}

impl Settings {
    /// # Errors
    /// What [`Config::load`] refuses.
    pub fn load(&self) -> Result<Config> {
        Config::load(self.preset.as_deref(), self.config.as_deref(), &self.set)
    }

    /// The settings of a run's own file, changed by `--set` alone.
    ///
    /// # Errors
    /// As [`Settings::load`].
    pub fn load_from(&self, file: &Path) -> Result<Config> {
        Config::load(None, Some(file), &self.set)
    }

    /// A few words for headings: `preset ddpm-32`, `run.toml`, `the defaults`.
    pub fn name(&self) -> String {
        match (&self.preset, &self.config) {
            (Some(preset), _) => format!("preset {preset}"),
            (None, Some(file)) => file.display().to_string(),
            (None, None) => "the default settings".into(),
        }
    }
}
