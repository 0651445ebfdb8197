//! The numbers of a training run, each as a line of JSON, a line of CSV and a TensorBoard event.
//! A run that is resumed from an earlier step goes on from there: what was written beyond it, or
//! only half written when a machine went down, is removed first.

use super::atomic::write_atomic;
use super::event_file::EventFile;
use super::run_folder::RunFolder;
use crate::error::{Error, Result};
use serde_json::{Map, Value};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// The three logs of a run, open at their ends.
pub struct Metrics {
    jsonl: Lines,
    csv: Lines,
    columns: Vec<String>,
    events: EventFile,
}

impl Metrics {
    /// Opens the logs of a run. `columns` are the names that may be logged, in the order of the
    /// CSV file; `after` is the number of steps that are done, 0 for a new run. Lines and events
    /// of later steps are removed.
    ///
    /// # Errors
    /// What the operating system says, with the file; and a CSV file with other columns.
    pub fn open(run: &RunFolder, columns: &[&str], after: u64) -> Result<Self> {
        let header = std::iter::once("step").chain(columns.iter().copied());
        let header = header.map(quoted).collect::<Vec<_>>().join(",");
        let csv_path = run.metrics_csv();
        let mut first = true;
        cut(&csv_path, |line| {
            let is_header = std::mem::take(&mut first);
            let step = line.split(',').next().and_then(|step| step.parse().ok());
            is_header || step.is_some_and(|step: u64| step <= after)
        })?;
        let mut csv = Lines::open(csv_path)?;
        match first_line(&csv.path)? {
            None => csv.write(&header)?,
            Some(found) if found == header => {}
            Some(_) => {
                let what = format!("has other columns than {header}; move it away");
                return Err(Error::file(&csv.path, what));
            }
        }
        let jsonl_path = run.metrics_jsonl();
        cut(&jsonl_path, |line| {
            let step = serde_json::from_str::<Value>(line).ok().and_then(|v| v["step"].as_u64());
            step.is_some_and(|step| step <= after)
        })?;
        Ok(Metrics {
            jsonl: Lines::open(jsonl_path)?,
            csv,
            columns: columns.iter().map(ToString::to_string).collect(),
            events: EventFile::open(&run.tensorboard(), after)?,
        })
    }

    /// Logs values at a step (the number of steps done). JSON has no word for NaN and infinities:
    /// there they are `null`, in CSV they are words.
    ///
    /// # Errors
    /// A name that is no column, and what the operating system says, such as that the disk is full.
    pub fn log(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        if let Some((name, _)) =
            values.iter().find(|(name, _)| !self.columns.iter().any(|c| c == name))
        {
            return Err(Error::invalid(format!("\"{name}\" is no column of the metrics")));
        }
        let mut object = Map::new();
        object.insert("step".into(), step.into());
        for (name, value) in values {
            object.insert(name.to_string(), Value::from(*value));
        }
        self.jsonl.write(&Value::Object(object).to_string())?;
        let mut line = step.to_string();
        for column in &self.columns {
            line.push(',');
            if let Some((_, value)) = values.iter().find(|(name, _)| name == column) {
                line.push_str(&value.to_string());
            }
        }
        self.csv.write(&line)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
        self.events.write(now, step, values)
    }
}

/// A text file that grows by whole lines.
struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    fn open(path: PathBuf) -> Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(&path);
        file.map_err(|error| Error::io(&path, error)).map(|file| Lines { path, file })
    }

    fn write(&mut self, line: &str) -> Result<()> {
        // One call, so that a reader never sees half a line.
        let line = format!("{line}\n");
        self.file.write_all(line.as_bytes()).map_err(|error| Error::io(&self.path, error))
    }
}

fn first_line(path: &Path) -> Result<Option<String>> {
    let file = File::open(path).map_err(|error| Error::io(path, error))?;
    BufReader::new(file).lines().next().transpose().map_err(|error| Error::io(path, error))
}

/// A log is read as a whole when a run goes on; more than this is none of ours.
const MOST_BYTES: u64 = 1 << 30;

/// The bytes of a log, `None` where there is none yet.
///
/// # Errors
/// Something that is no file, a file beyond 1 GiB, and what the operating system says.
pub(super) fn read_log(path: &Path) -> Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path, error)),
    };
    let about = file.metadata().map_err(|error| Error::io(path, error))?;
    if !about.is_file() || about.len() > MOST_BYTES {
        return Err(Error::file(
            path,
            "is no log of a run (a file of at most 1 GiB); move it away",
        ));
    }
    let mut bytes = Vec::new();
    // Bounded, though the file may grow while it is read.
    let read = file.take(MOST_BYTES).read_to_end(&mut bytes);
    read.map_err(|error| Error::io(path, error)).map(|_| Some(bytes))
}

/// Removes every line that `keep` refuses, and an unfinished last one. A file that isn't there
/// stays away; one that needs no change is not touched.
fn cut(path: &Path, mut keep: impl FnMut(&str) -> bool) -> Result<()> {
    let Some(bytes) = read_log(path)? else { return Ok(()) };
    let mut kept = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let whole = line.strip_suffix(b"\n").and_then(|line| std::str::from_utf8(line).ok());
        if whole.is_some_and(&mut keep) {
            kept.extend_from_slice(line);
        }
    }
    if kept.len() == bytes.len() {
        return Ok(());
    }
    write_atomic(path, |out| out.write_all(&kept))
}

/// A name as a CSV field (RFC 4180).
fn quoted(name: &str) -> String {
    if name.contains([',', '"', '\n', '\r']) {
        return format!("\"{}\"", name.replace('"', "\"\""));
    }
    name.to_string()
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
