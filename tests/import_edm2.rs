//! Snapshots of NVlabs' EDM2 as models: `scripts/import-edm2.py` on snapshots that the test makes itself,
//! of the structure that NVlabs' code saves.

#![cfg(unix)]

#[path = "common/command.rs"]
mod command;

use command::cyanea;
use cyanea::formats::reference_case::ReferenceCase;
use cyanea::formats::tensors::{Tensor, Tensors};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A sampling run that NVlabs' code made of a network whose weights float16 holds.
const CASE: &str = "tests/fixtures/edm_heun_tiny.safetensors";

fn in_project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn python_is_missing() -> bool {
    let missing = Command::new("python3").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: the script needs python3, which is not installed");
    }
    missing
}

/// Writes a snapshot, with a fault if one is named.
fn snapshot(folder: &Path, fault: &str) -> PathBuf {
    let path = folder.join(format!("snapshot{fault}.pkl"));
    let mut command = Command::new("python3");
    command.arg(in_project("tests/common/edm2_snapshot.py")).arg(in_project(CASE)).arg(&path);
    if !fault.is_empty() {
        command.arg(fault);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    path
}

fn import(snapshot: &Path, out: &Path) -> Output {
    let mut command = Command::new("python3");
    command.arg(in_project("scripts/import-edm2.py")).arg(snapshot).arg(out);
    command.output().unwrap()
}

#[test]
fn a_snapshot_becomes_a_model_that_samples_as_nvlabs_code_does() {
    if python_is_missing() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let model = place.path().join("made/model");
    let output = import(&snapshot(place.path(), ""), &model);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("CC BY-NC-SA 4.0") && said.contains("not for commercial use"), "{said}");

    // Every weight and buffer to the bit, and nothing else.
    let case = ReferenceCase::read(in_project(CASE)).unwrap();
    let file = model.join("unet/diffusion_pytorch_model.safetensors");
    let weights = Tensors::read(&file).unwrap();
    assert_eq!(weights.len(), case.parameters.len());
    for (name, wanted) in &case.parameters {
        let got = weights.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!((&got.shape, got.to_f32()), (&wanted.shape, wanted.to_f32()), "{name}");
    }
    assert!(weights.metadata["license"].contains("not for commercial use"));
    cyanea().arg("import").arg(&model).assert().success();

    let noise = place.path().join("noise.safetensors");
    let start: Tensors =
        [("noise".to_string(), case.inputs["noise"].clone())].into_iter().collect();
    start.write(&noise).unwrap();
    let out = place.path().join("samples");
    let mut sample = cyanea();
    sample.arg("sample").arg("--model").arg(&model).arg("--noise").arg(&noise);
    sample.arg("--out").arg(&out).args(["--steps", "6", "--raw", "--size", "8x6"]);
    sample.assert().success();
    let samples = Tensors::read(out.join("samples.safetensors")).unwrap();
    let values = |tensor: Option<&Tensor>| tensor.unwrap().to_f32().unwrap();
    let got = values(samples.get("samples"));
    let want = values(case.wanted.get("output.x_0"));
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() <= 1e-4 + 1e-3 * want.abs(), "{got} is not {want}");
    }
}

#[test]
fn what_is_no_such_snapshot_is_refused_and_nothing_of_it_is_run() {
    if python_is_missing() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let out = place.path().join("model");
    let refused = |path: &Path, words: &[&str]| {
        let output = import(path, &out);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(!said.contains("Traceback"), "{said}");
        for word in words.iter().copied().chain([path.to_str().unwrap()]) {
            assert!(said.contains(word), "`{word}` is missing from: {said}");
        }
        assert!(!out.exists());
    };
    for (fault, words) in [
        ("command", &["posix.system", "nothing was loaded"][..]),
        ("class", &["EDMPrecond", "Precond can be imported"]),
        ("module", &["unet is SongUNet", "no part of EDM2"]),
        ("setting", &["augment_dim"]),
        ("filter", &["[1, 3, 3, 1]", "[1, 1]"]),
        ("balance", &["unet has concat_balance = 0.25", "0.5"]),
        ("turned", &["strides [1, 8]", ".contiguous()"]),
        ("missing", &["loss_fn", "`ema`"]),
    ] {
        refused(&snapshot(place.path(), fault), words);
    }
    assert!(!place.path().join("snapshotcommand.pkl.ran").exists(), "a command was run");

    let whole = fs::read(snapshot(place.path(), "")).unwrap();
    let written = |name: &str, content: &[u8]| {
        let path = place.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    refused(&written("cut.pkl", &whole[..whole.len() / 2]), &["is it complete?"]);
    refused(&written("state.pt", b"PK\x03\x04"), &["PyTorch checkpoint", "network-snapshot"]);
    refused(&written("picture.png", b"\x89PNG"), &["no pickle"]);
    refused(&place.path().join("absent.pkl"), &["No such file"]);

    // What is there already stays, and nothing temporary beside it.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("mine"), "kept").unwrap();
    let output = import(&written("snapshot.pkl", &whole), &out);
    assert!(String::from_utf8_lossy(&output.stderr).contains("exists; choose a new folder"));
    assert_eq!(fs::read_to_string(out.join("mine")).unwrap(), "kept");
    let names: Vec<String> = (fs::read_dir(place.path()).unwrap())
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(names.is_empty(), "{names:?}");
}
