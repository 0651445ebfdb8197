//! Reading typed settings out of JSON objects written by other libraries: unknown keys are refused
//! with the nearest known name, wrong types are named with their key.

use crate::error::{Error, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// Reads `object` as a `T`, whose keys all have defaults. Keys that start with an underscore
/// (`_class_name`, `_diffusers_version`) are notes of the writer and carry no setting. Nor do
/// unknown keys that are `null`: so a later version of the other library writes what is unused.
///
/// # Errors
/// A key that `T` doesn't know, or a value of the wrong type; `what` names the settings read.
pub fn from_object<T>(what: &str, object: &Map<String, Value>) -> Result<T>
where
    T: Default + Serialize + DeserializeOwned,
{
    let Ok(Value::Object(known)) = serde_json::to_value(T::default()) else {
        return Err(Error::invalid(format!("{what}: these settings can't be written as JSON")));
    };
    let known: Vec<&str> = known.keys().map(String::as_str).collect();
    let mut settings = Map::new();
    for (key, value) in object {
        if key.starts_with('_') {
            continue;
        }
        if !known.contains(&key.as_str()) {
            if value.is_null() {
                continue;
            }
            return Err(Error::invalid(format!(
                "{what}: the key `{}` is not known{}",
                shorten(key),
                did_you_mean(key, known.iter().copied())
            )));
        }
        settings.insert(key.clone(), value.clone());
    }
    serde_path_to_error::deserialize(Value::Object(settings)).map_err(|error| {
        Error::invalid(format!(
            "{what}: `{}`: {}",
            error.path(),
            shorten(&error.inner().to_string())
        ))
    })
}

/// `; did you mean …?` with the known name nearest to `name`, or nothing when none is near.
pub fn did_you_mean<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    if name.len() > 200 {
        return String::new();
    }
    known
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness >= 0.7)
        .map_or_else(String::new, |(_, candidate)| format!("; did you mean `{candidate}`?"))
}

/// A text from a file, cut to a length that fits an error message.
pub fn shorten(text: &str) -> String {
    const LIMIT: usize = 300;
    if text.chars().count() <= LIMIT {
        return text.to_string();
    }
    text.chars().take(LIMIT).chain("…".chars()).collect()
}
