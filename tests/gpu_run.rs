//! The runner for machines with a GPU, rehearsed on the emulator: what it writes, and that a run which
//! was killed goes on where it was.

#![cfg(unix)]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const CASES: [&str; 2] = ["silu_1", "mse_loss_vector"];
const PARTS: [&str; 5] = ["cases", "sanitizer", "probes", "benches", "profile"];

/// A small network for the benches.
const CONFIG: &str = "
[data]
size = 8
[model]
channels = [8]
attention = [false]
layers_per_block = 1
norm_groups = 4
";

/// What `gpu-pack.sh` makes, in small: links to the binary of this build and to a few cases, and probes,
/// compressed, that refuse.
fn pack(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let pack = folder.join("pack");
    for inner in ["bin", "cases"] {
        fs::create_dir_all(pack.join(inner)).unwrap();
    }
    symlink(env!("CARGO_BIN_EXE_cyanea"), pack.join("bin/cyanea")).unwrap();
    for case in CASES {
        let file = format!("{case}.safetensors");
        symlink(root.join("tests/fixtures").join(&file), pack.join("cases").join(&file)).unwrap();
    }
    fs::write(pack.join("bin/probes"), "#!/bin/sh\necho 'error: no GPU here' >&2\nexit 2\n")
        .unwrap();
    let compress = "import lzma, os, sys\n\
                    path = sys.argv[1]\n\
                    packed = lzma.compress(open(path, 'rb').read())\n\
                    open(path + '.xz', 'wb').write(packed)\n\
                    os.remove(path)";
    let mut python = Command::new("python3");
    assert!(python.args(["-c", compress]).arg(pack.join("bin/probes")).status().unwrap().success());
    symlink(root.join("scripts/gpu-run.py"), pack.join("run.py")).unwrap();
    fs::write(pack.join("pack.json"), r#"{"commit": "0123abc"}"#).unwrap();
    fs::write(folder.join("small.toml"), CONFIG).unwrap();
    pack
}

struct Rehearsal {
    folder: tempfile::TempDir,
    pack: PathBuf,
    out: PathBuf,
}

impl Rehearsal {
    fn new() -> Rehearsal {
        let folder = tempfile::tempdir().unwrap();
        let (pack, out) = (pack(folder.path()), folder.path().join("out"));
        Rehearsal { folder, pack, out }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = Command::new("python3");
        command.arg(self.pack.join("run.py")).arg("--pack").arg(&self.pack);
        command.arg("--out").arg(&self.out).args(["--device", "emulated", "--repetitions", "1"]);
        command.arg("--config").arg(self.folder.path().join("small.toml")).args(more);
        command.env("RAYON_NUM_THREADS", "2").stdout(Stdio::piped());
        command
    }

    fn read(&self, part: &str) -> Value {
        let path = self.out.join(format!("{part}.json"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        serde_json::from_str(&text).unwrap()
    }
}

/// Ends the process at the end of a test, whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn python_is_missing() -> bool {
    let missing = Command::new("python3").arg("--version").output().is_err();
    if missing {
        eprintln!("skipped: the runner needs python3, which is not installed");
    }
    missing
}

#[test]
fn a_killed_run_goes_on_with_the_next_part() {
    if python_is_missing() {
        return;
    }
    let rehearsal = Rehearsal::new();
    let state = || {
        let text = fs::read_to_string(rehearsal.out.join("state.json")).ok()?;
        serde_json::from_str::<Value>(&text).ok()
    };
    // Until the first part is done, then no further.
    let mut running = Running(rehearsal.command(&[]).spawn().unwrap());
    let started = Instant::now();
    while state().is_none_or(|state| state["parts"]["cases"]["complete"] != true) {
        assert!(started.elapsed() < Duration::from_secs(300), "the first part does not end");
        assert!(running.0.try_wait().unwrap().is_none(), "the run ended by itself");
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(running);
    let first = rehearsal.read("cases");

    let output = rehearsal.command(&[]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("cases: complete already"), "{said}");
    assert!(said.contains("everything is done"), "{said}");
    assert_eq!(rehearsal.read("cases"), first, "the first part was repeated");

    // Every case on both paths in both precisions, each with its figures.
    let items = first["items"].as_object().unwrap();
    assert_eq!(items.len(), 4 * CASES.len(), "{first:#}");
    for device in ["emulated", "emulated:v100"] {
        for precision in ["fp32", "fp16"] {
            for case in CASES {
                let item = &items[&format!("{device} {precision} {case}")];
                assert_eq!(item["status"], "pass", "{item:#}");
                assert!(!item["kernels"].as_array().unwrap().is_empty(), "{item:#}");
                assert!(item["tensors"][0]["max_abs_error"].is_f64(), "{item:#}");
                assert!(item["at"].as_str().unwrap().ends_with('Z'), "{item:#}");
            }
        }
    }
    assert_eq!(first["counts"]["pass"], items.len());

    // What can't be done here says why.
    for (part, status, why) in
        [("sanitizer", "skipped", "there is no GPU"), ("probes", "refused", "no GPU here")]
    {
        let report = rehearsal.read(part);
        let (_, item) = report["items"].as_object().unwrap().iter().next().unwrap();
        assert_eq!(item["status"], status, "{report:#}");
        assert!(item["why"].as_str().unwrap().contains(why), "{report:#}");
    }

    let benches = rehearsal.read("benches");
    for name in ["step", "train"] {
        for precision in ["fp32", "fp16"] {
            let item = &benches["items"][format!("{name} config 1 {precision} cyanea")];
            assert_eq!(item["status"], "done", "{item:#}");
            assert_eq!(item["measured"]["samples_ms"].as_array().unwrap().len(), 1, "{item:#}");
            assert!(item["gpu_log"].is_array(), "{item:#}");
        }
    }

    // The head of every part, and the state.
    for part in PARTS {
        let report = rehearsal.read(part);
        assert_eq!((&report["part"], &report["complete"]), (&part.into(), &true.into()));
        assert_eq!(report["commit"], "0123abc");
        for key in ["device", "gpu", "driver", "cuda"] {
            assert!(report.as_object().unwrap().contains_key(key), "{part} lacks {key}");
        }
        assert_eq!(state().unwrap()["parts"][part]["complete"], true);
    }

    // Results of another pack are not mixed with these.
    fs::write(rehearsal.pack.join("pack.json"), r#"{"commit": "other"}"#).unwrap();
    let refused = rehearsal.command(&[]).output().unwrap();
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("another pack"));
}

#[test]
fn time_that_is_up_leaves_the_rest_for_later() {
    if python_is_missing() {
        return;
    }
    let rehearsal = Rehearsal::new();
    let one_part = ["--part", "cases", "--minutes", "0.01"];
    let output = rehearsal.command(&one_part).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("out of time") && said.contains("to do: cases, sanitizer"), "{said}");
    assert_eq!(rehearsal.read("cases")["complete"], false);
    assert!(!rehearsal.out.join("benches.json").exists());
    let output = rehearsal.command(&["--part", "cases"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("cases: 8 items") && !said.contains("out of time"), "{said}");
    let list = Command::new("python3").arg(rehearsal.pack.join("run.py")).arg("--list").output();
    assert_eq!(String::from_utf8_lossy(&list.unwrap().stdout).lines().collect::<Vec<_>>(), PARTS);
}
