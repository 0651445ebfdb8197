//! The command line as a user meets it: help, results, exit codes.

use assert_cmd::Command;
use predicates::prelude::*;
use std::fs;
use std::path::Path;

fn cyanea() -> Command {
    let mut command = Command::cargo_bin("cyanea").expect("the binary is built with the tests");
    command.env("RAYON_NUM_THREADS", "2");
    command
}

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const SUBCOMMANDS: &[&str] = &["synth", "kernels", "doctor", "completions"];

#[test]
fn each_subcommand_teaches() {
    let all = cyanea().arg("--help").assert().success().get_output().stdout.clone();
    let all = String::from_utf8(all).unwrap();
    for subcommand in SUBCOMMANDS {
        assert!(all.contains(&format!("\n  {subcommand} ")), "{subcommand} is missing:\n{all}");
        cyanea().args([subcommand, "--help"]).assert().success().stdout(
            predicate::str::contains("Examples:")
                .and(predicate::str::contains(format!("cyanea {subcommand}"))),
        );
    }
    let listed = all.lines().skip_while(|line| *line != "Commands:").skip(1);
    let count =
        listed.take_while(|line| !line.is_empty()).filter(|l| !l.contains("  help")).count();
    assert_eq!(count, SUBCOMMANDS.len(), "a subcommand that no test knows:\n{all}");
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        &["no-such-command"][..],
        &["synth"],
        &["synth", "--out"],
        &["synth", "--out", "x", "--no-such-option"],
        &["completions", "no-such-shell"],
        &[],
    ] {
        let assert = cyanea().args(arguments).assert().code(2);
        assert!(!assert.get_output().stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    cyanea()
        .arg("--version")
        .assert()
        .success()
        .stdout(format!("cyanea {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn synth_writes_the_pictures_that_seed_index_and_size_name() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("new/pictures");
    let synth = |out: &Path, count: &str, seed: &str| {
        cyanea()
            .args(["synth", "--size", "16", "--count", count, "--seed", seed, "--out"])
            .arg(out)
            .assert()
            .success()
            .stderr("");
    };
    synth(&out, "3", "5");
    assert_eq!(names(&out), ["00000.png", "00001.png", "00002.png"]);
    for index in 0..3 {
        let picture = image::open(out.join(format!("{index:05}.png"))).unwrap().into_rgb8();
        assert_eq!(picture, cyanea::data::synthetic::render(5, index, 16).unwrap());
    }
    // An empty folder will do, and a larger count keeps the pictures.
    let more = root.path().join("more");
    fs::create_dir(&more).unwrap();
    synth(&more, "4", "5");
    let read = |folder: &Path| fs::read(folder.join("00002.png")).unwrap();
    assert_eq!(read(&more), read(&out));
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        cyanea()
            .args(["completions", shell])
            .assert()
            .success()
            .stdout(predicate::str::contains("synth").and(predicate::str::contains("count")));
    }
}

#[test]
fn doctor_names_threads_and_simd() {
    cyanea().arg("doctor").env("CYANEA_SIMD", "scalar").assert().success().stdout(
        predicate::str::contains("threads    2 of")
            .and(predicate::str::is_match("SIMD +scalar").unwrap()),
    );
    cyanea()
        .arg("doctor")
        .env("RAYON_NUM_THREADS", "many")
        .assert()
        .success()
        .stdout(predicate::str::contains("RAYON_NUM_THREADS is no positive number"));
}

#[test]
fn doctor_says_of_each_device_whether_it_can_serve() {
    let output = cyanea().arg("doctor").assert().success().get_output().clone();
    let said = String::from_utf8(output.stdout).unwrap();
    for name in ["cyanea", "processor", "threads", "SIMD", "cpu", "emulated", "kernels", "cuda"] {
        assert!(said.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {said}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn kernels_lists_each_kernel_as_a_table_and_as_json() {
    let table = cyanea().arg("kernels").assert().success().get_output().stdout.clone();
    let table = String::from_utf8(table).unwrap();
    let json = cyanea().args(["kernels", "--json"]).assert().success().get_output().stdout.clone();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(table.lines().count(), rows.len() + 1, "{table}");
    for kernel in cyanea::device::kernels::KERNELS {
        assert!(table.contains(kernel.name), "{table}");
        assert!(rows.iter().any(|row| row["kernel"] == kernel.name), "{json:#}");
    }
    for row in rows {
        let known = row["architecture"].as_str().is_some_and(|arch| arch.starts_with("sm_"));
        assert_eq!(row["registers"].is_u64(), known, "{row}");
        assert_eq!(row["occupancy"].is_f64(), known, "{row}");
    }
}

/// Every byte goes into a pipe whose reader has left: no panic, no error.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::{Command, Stdio};
    for arguments in
        [&["completions", "bash"][..], &["--help"], &["doctor"], &["kernels", "--json"]]
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_cyanea"))
            .args(arguments)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
    }
}
