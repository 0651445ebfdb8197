//! Printing that survives a closed pipe and a full disk.

use crate::{Error, Result};
use std::io::{self, Write};

/// Writes text to standard output as it stands. A reader that has gone away (`cyanea plan | head`)
/// is no error: the rest is not wanted.
///
/// # Errors
/// Any other failure to write, such as a full disk.
pub fn say(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::io("standard output", error))
        }
        _ => Ok(()),
    }
}

/// As [`say`], a line.
///
/// # Errors
/// As [`say`].
pub fn say_line(line: &str) -> Result<()> {
    say(&format!("{line}\n"))
}

/// A note for the person at the terminal, on standard error. Whether it arrives changes nothing.
pub fn note(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}
