//! Every reference case in `tests/fixtures`, replayed on the CPU, and on the kernels themselves for
//! both code paths.

use cyanea::compare::replay;
use cyanea::device::cpu::CpuDevice;
use cyanea::device::{Device, Precision, open_by_name, open_by_name_with};
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

fn every_case_passes(device: &dyn Device) {
    let mut failed = Vec::new();
    let mut closest = (0.0f64, String::new());
    let mut passed = 0;
    for path in cases() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match replay(&path, device, Precision::Fp32) {
            Err(error) => failed.push(format!("{name}: {error}")),
            Ok(report) => {
                passed += usize::from(report.verdict.pass);
                for tensor in &report.verdict.tensors {
                    let share = tensor.allowed_share.unwrap_or(0.0);
                    if tensor.pass == Some(false) {
                        failed.push(format!("{name}: {} is {share:.3} of the limit", tensor.name));
                    } else if share > closest.0 {
                        closest = (share, format!("{name} {}", tensor.name));
                    }
                }
                if report.verdict.tensors.is_empty() {
                    failed.push(format!("{name}: nothing was judged"));
                }
                if report.kernels.is_empty() != device.target().is_cpu() {
                    failed.push(format!("{name}: the kernels are {:?}", report.kernels));
                }
            }
        }
    }
    println!("{passed} cases pass on {}", device.name());
    println!("the closest call is {} with {:.3} of what is allowed", closest.1, closest.0);
    assert!(passed > 100, "only {passed} cases pass");
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn every_case_passes_on_the_cpu() {
    every_case_passes(&CpuDevice::new());
}

#[test]
fn every_case_passes_on_the_path_of_volta() {
    every_case_passes(&*open_by_name("emulated:v100").unwrap());
}

#[test]
fn every_case_passes_on_the_path_of_hopper() {
    every_case_passes(&*open_by_name("emulated:h100").unwrap());
}

/// Every case that has PyTorch's own float16 results is within twice their error. The others, of
/// float32 whatever the precision, are replayed all the same.
fn every_case_passes_in_float16(target: &str) {
    let device = open_by_name_with(target, Precision::Fp16).unwrap();
    let mut failed = Vec::new();
    let mut closest = (0.0f64, String::new());
    let (mut judged, mut in_half) = (0, 0);
    for path in cases() {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match replay(&path, device.as_ref(), Precision::Fp16) {
            Err(error) => failed.push(format!("{name}: {error}")),
            Ok(report) => {
                let tensors = &report.verdict.tensors;
                judged += usize::from(tensors.iter().any(|tensor| tensor.pass.is_some()));
                in_half += usize::from(report.kernels.iter().any(|name| name.contains("_f16")));
                for tensor in tensors {
                    let share = tensor.allowed_share.unwrap_or(0.0);
                    if tensor.pass == Some(false) {
                        failed.push(format!("{name}: {} is {share:.3} of the limit", tensor.name));
                    } else if share > closest.0 {
                        closest = (share, format!("{name} {}", tensor.name));
                    }
                }
            }
        }
    }
    println!("{judged} cases are judged in float16 on {target}");
    println!("the closest call is {} with {:.3} of what is allowed", closest.1, closest.0);
    assert!(failed.is_empty(), "{} failures:\n{}", failed.len(), failed.join("\n"));
    assert!(judged > 70, "only {judged} cases were judged");
    assert!(in_half > 70, "only {in_half} cases launched kernels of float16");
}

#[test]
fn every_case_passes_in_float16_on_the_path_of_volta() {
    every_case_passes_in_float16("emulated:v100");
}

#[test]
fn every_case_passes_in_float16_on_the_path_of_hopper() {
    every_case_passes_in_float16("emulated:h100");
}
