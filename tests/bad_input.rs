//! Bad input: one clear error that names the file, the value and the remedy; exit code 2; nothing
//! half-written.

use assert_cmd::Command;
use std::fs;
use std::path::Path;

fn cyanea() -> Command {
    let mut command = Command::cargo_bin("cyanea").expect("the binary is built with the tests");
    command.env("RAYON_NUM_THREADS", "2");
    command
}

/// Runs the command, expects code 2, and returns its error, which must be one line.
fn error(command: &mut Command) -> String {
    let assert = command.assert().code(2);
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{said}");
    said
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Whether the text holds each of the words.
#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing from: {text}");
    }
}

#[test]
fn synth_refuses_a_folder_that_holds_something() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("mine.txt"), "mine").unwrap();
    let said = error(cyanea().args(["synth", "--count", "2", "--out"]).arg(root.path()));
    holds(&said, &[&root.path().display().to_string(), "already holds", "choose another folder"]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);

    let file = root.path().join("mine.txt");
    holds(&error(cyanea().args(["synth", "--out"]).arg(&file)), &["mine.txt", "is a file"]);
    holds(&error(cyanea().args(["synth", "--out"]).arg(file.join("below"))), &["mine.txt"]);
    assert_eq!(fs::read_to_string(file).unwrap(), "mine");
}

#[test]
fn synth_refuses_sizes_and_counts_that_make_no_sense() {
    let root = tempfile::tempdir().unwrap();
    for (option, value) in [
        ("--size", "0"),
        ("--size", "-3"),
        ("--size", "7"),
        ("--size", "50000"),
        ("--size", "large"),
        ("--count", "0"),
        ("--count", "-1"),
        ("--seed", "-1"),
        ("--out", ""),
    ] {
        let out = root.path().join("out");
        let mut command = cyanea();
        command.arg("synth").args([option, value]);
        if option != "--out" {
            command.arg("--out").arg(&out);
        }
        let assert = command.assert().code(2);
        let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        holds(&said, &["error: ", option.trim_start_matches("--"), value]);
        assert!(is_empty(root.path()), "{option} {value}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    // Output that can't be written anywhere: /dev/full always says that the disk is full.
    for arguments in [&["completions", "bash"][..], &["doctor"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cyanea"))
            .args(arguments)
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        holds(&said, &["error: standard output: ", "No space left"]);
    }
    // Folders can't be made there.
    let said = error(cyanea().args(["synth", "--out", "/dev/full/pictures"]));
    holds(&said, &["/dev/full"]);
}
