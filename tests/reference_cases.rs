//! Every reference case in `tests/fixtures`, replayed on the CPU and on the emulator.

use cyanea::compare::replay;
use cyanea::device::cpu::CpuDevice;
use cyanea::device::{Device, open_by_name};
use cyanea::formats::verdict::Precision;
use std::path::PathBuf;

/// The fixtures that are reference cases, in order of their names.
fn cases() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("the fixtures")
        .map(|entry| entry.expect("a file").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    files.sort();
    assert!(files.len() > 100, "only {} fixtures", files.len());
    files
}

#[test]
fn every_case_passes_on_the_cpu() {
    check(&CpuDevice::new());
}

#[test]
fn every_case_passes_on_both_code_paths_of_the_emulator() {
    for name in ["emulated:v100", "emulated:h100"] {
        check(open_by_name(name).expect("the emulator is always there").as_ref());
    }
}

fn check(device: &dyn Device) {
    let mut failed = Vec::new();
    let mut closest = (0.0f64, String::new());
    for path in cases() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match replay(&path, device, Precision::Fp32) {
            Err(error) => failed.push(format!("{name}: {error}")),
            Ok(report) => {
                for tensor in &report.verdict.tensors {
                    let share = tensor.allowed_share.unwrap_or(0.0);
                    if tensor.pass == Some(false) {
                        failed.push(format!(
                            "{name}: {} is {share:.3} of what is allowed; first divergence: {:?}",
                            tensor.name, report.first_divergence
                        ));
                    } else if share > closest.0 {
                        closest = (share, format!("{name} {}", tensor.name));
                    }
                }
                if !report.verdict.pass && report.verdict.tensors.is_empty() {
                    failed.push(format!("{name}: nothing was judged"));
                }
            }
        }
    }
    println!(
        "{}: the closest call is {} with {:.3} of what is allowed",
        device.name(),
        closest.1,
        closest.0
    );
    assert!(
        failed.is_empty(),
        "{} failures on {}:\n{}",
        failed.len(),
        device.name(),
        failed.join("\n")
    );
}
