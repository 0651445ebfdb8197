//! From presets, files and `section.key=value` to a [`Config`], and back to TOML.

use super::keys::{KEYS, SECTIONS, explanation};
use super::{Config, PRESETS};
use crate::error::{Error, Result};
use crate::models::json_config::{did_you_mean, shorten};
use std::fmt::Write;
use std::io::Read;
use std::path::Path;
use toml::{Table, Value};

/// Settings from one source.
struct Layer {
    /// As named in messages, e.g. `run.toml` or `--set training.steps=0`.
    source: String,
    settings: Table,
}

impl Config {
    /// The settings of a preset, over them those of a file, over them `section.key=value`s; all
    /// validated, and nothing else read.
    ///
    /// # Errors
    /// An unknown preset, a file that can't be read, unknown keys (with the nearest known name),
    /// wrong types and values that can't be used; each names source, key, value and remedy.
    pub fn load(preset: Option<&str>, file: Option<&Path>, overrides: &[String]) -> Result<Config> {
        let mut layers = Vec::new();
        if let Some(name) = preset {
            layers.push(preset_layer(name)?);
        }
        if let Some(path) = file {
            layers.push(file_layer(path)?);
        }
        for text in overrides {
            layers.push(override_layer(text)?);
        }
        let mut merged = Table::new();
        for layer in &layers {
            check_keys(layer)?;
            // Each source by itself first, so that a wrong type is told where it stands.
            read(&layer.settings).map_err(|what| said(&layer.source, &what))?;
            for (section, settings) in &layer.settings {
                let target = merged.entry(section).or_insert_with(|| Value::Table(Table::new()));
                if let (Value::Table(target), Value::Table(settings)) = (target, settings) {
                    target.extend(settings.clone());
                }
            }
        }
        let config = read(&merged).map_err(Error::Invalid)?;
        config.check().map_err(|problem| {
            let has = |layer: &&Layer| {
                problem.keys.iter().any(|name| match name.split_once('.') {
                    None => layer.settings.contains_key(*name),
                    Some((section, key)) => {
                        layer.settings.get(section).is_some_and(|keys| keys.get(key).is_some())
                    }
                })
            };
            let source = layers.iter().rev().find(has).map_or("the defaults", |l| &l.source);
            said(source, &problem.what)
        })?;
        Ok(config)
    }

    /// The whole configuration as TOML, each key with its explanation.
    ///
    /// # Errors
    /// A `data.path` that is no UTF-8, which TOML can't hold.
    pub fn to_toml(&self) -> Result<String> {
        let all = Table::try_from(self).map_err(|_| {
            let path = self.data.path.display();
            Error::invalid(format!("data.path is {path}; a configuration file needs UTF-8 there"))
        })?;
        let mut text = String::new();
        for (section, about) in SECTIONS {
            let start = if text.is_empty() { "" } else { "\n" };
            let _ = write!(text, "{start}# {about}.\n[{section}]\n");
            for (_, key, meaning) in KEYS.iter().filter(|(s, ..)| *s == section) {
                let value = all.get(section).and_then(|settings| settings.get(*key));
                let value = value.map_or_else(String::new, Value::to_string);
                let _ = writeln!(text, "# {meaning}\n{key} = {value}");
            }
        }
        Ok(text)
    }
}

fn said(source: &str, what: &str) -> Error {
    Error::invalid(format!("{source}: {what}"))
}

fn preset_layer(name: &str) -> Result<Layer> {
    let Some((_, _, text)) = PRESETS.iter().find(|(known, ..)| *known == name) else {
        let known: Vec<&str> = PRESETS.iter().map(|(name, ..)| *name).collect();
        return Err(Error::invalid(format!(
            "\"{}\" is no preset; there are {}",
            shorten(name),
            known.join(", ")
        )));
    };
    let source = format!("preset {name}");
    parse(text, &source).map(|settings| Layer { source: source.clone(), settings })
}

fn file_layer(path: &Path) -> Result<Layer> {
    const LONGEST: u64 = 1 << 20;
    let mut bytes = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::io(path, error))?;
    if bytes.len() as u64 > LONGEST {
        return Err(Error::file(path, "is longer than any configuration; is it the right file?"));
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Error::file(path, "is no text; a configuration in TOML is needed"))?;
    let source = path.display().to_string();
    parse(&text, &source).map(|settings| Layer { source: source.clone(), settings })
}

fn parse(text: &str, source: &str) -> Result<Table> {
    text.parse::<Table>().map_err(|error| {
        said(source, &format!("is no valid TOML: {}", error.to_string().trim_end()))
    })
}

/// `section.key=value`; the value as in TOML, or plain text where the key holds text.
fn override_layer(text: &str) -> Result<Layer> {
    let source = format!("--set {}", shorten(text));
    let name = text.split_once('=').and_then(|(name, value)| {
        let (section, key) = name.trim().split_once('.')?;
        Some((section.trim(), key.trim(), value.trim()))
    });
    let Some((section, key, value)) = name else {
        let what = "must look like section.key=value, for instance training.steps=2000";
        return Err(said(&source, what));
    };
    let holds_text = Table::try_from(Config::default())
        .ok()
        .and_then(|all| Some(all.get(section)?.get(key)?.is_str()))
        .unwrap_or(false);
    let parsed = format!("value = {value}").parse::<Table>().ok();
    let parsed = parsed.filter(|table| table.len() == 1).and_then(|mut t| t.remove("value"));
    let value = match parsed {
        Some(parsed) if parsed.is_str() || !holds_text => parsed,
        _ => Value::String(value.to_string()),
    };
    let inner = Table::from_iter([(key.to_string(), value)]);
    let settings = Table::from_iter([(section.to_string(), Value::Table(inner))]);
    Ok(Layer { source, settings })
}

fn check_keys(layer: &Layer) -> Result<()> {
    for (section, settings) in &layer.settings {
        let sections = || SECTIONS.iter().map(|(name, _)| *name);
        if !sections().any(|known| known == section) {
            let elsewhere = KEYS.iter().find(|(_, key, _)| key == section);
            let hint = elsewhere.map_or_else(
                || did_you_mean(section, sections()),
                |(home, key, _)| format!("; `{key}` belongs under [{home}]"),
            );
            let what = format!("there is no section `{}`{hint}", shorten(section));
            return Err(said(&layer.source, &what));
        }
        let Value::Table(settings) = settings else {
            let what =
                format!("`{section}` is a section, written [{section}], and no single value");
            return Err(said(&layer.source, &what));
        };
        for key in settings.keys() {
            let keys = || KEYS.iter().filter(|(s, ..)| s == section).map(|(_, key, _)| *key);
            if keys().any(|known| known == key) {
                continue;
            }
            let elsewhere = KEYS.iter().find(|(_, known, _)| known == key);
            let hint = elsewhere.map_or_else(
                || did_you_mean(key, keys()),
                |(home, key, _)| format!("; `{key}` belongs under [{home}]"),
            );
            let what = format!("there is no key `{section}.{}`{hint}", shorten(key));
            return Err(said(&layer.source, &what));
        }
    }
    Ok(())
}

/// Reads a table whose keys are known, or says what is wrong with its types.
fn read(settings: &Table) -> std::result::Result<Config, String> {
    serde_path_to_error::deserialize(Value::Table(settings.clone())).map_err(|error| {
        let path = error.path().to_string();
        let name = path.split('[').next().unwrap_or(&path);
        let meaning = name
            .split_once('.')
            .and_then(|(section, key)| {
                let default = Table::try_from(Config::default()).ok()?;
                let default = default.get(section)?.get(key)?.clone();
                Some(format!(" ({}; by default {default})", explanation(section, key)?))
            })
            .unwrap_or_default();
        let inner = error.inner().to_string();
        format!("`{path}`: {}{meaning}", shorten(inner.lines().next().unwrap_or_default()))
    })
}
