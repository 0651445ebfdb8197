//! Progress bars, on standard error, drawn where that is a terminal.

use indicatif::{ProgressBar, ProgressStyle};

/// Done, now, to do.
pub const CHARACTERS: &str = "━╸─";

/// A bar over `count` things of a kind, with their rate and the time left.
pub fn bar(count: u64, what: &str, unit: &str) -> ProgressBar {
    let template = format!(
        "{{prefix}} {{wide_bar}} {{pos}}/{{len}} {unit}, {{per_sec}}, {{eta}} left {{msg}}"
    );
    let style = ProgressStyle::with_template(&template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars(CHARACTERS);
    let bar = ProgressBar::new(count).with_style(style).with_prefix(what.to_string());
    bar.tick();
    bar
}
