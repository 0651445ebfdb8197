//! The emulated device really runs the `.cu` files: a copy of the project in which one of them is
//! broken no longer passes the comparison that the untouched one passes.

use std::path::Path;
use std::process::{Command, Output};

/// Copies what a build needs.
fn copy_project(to: &Path) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for name in ["Cargo.toml", "Cargo.lock", "build.rs", "build", "kernels", "src", "benches"] {
        let from = root.join(name);
        if from.exists() {
            copy(&from, &to.join(name));
        }
    }
}

fn copy(from: &Path, to: &Path) {
    if from.is_dir() {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let entry = entry.unwrap();
            copy(&entry.path(), &to.join(entry.file_name()));
        }
    } else {
        std::fs::copy(from, to).unwrap();
    }
}

fn compare(binary: &Path, case: &str) -> Output {
    let case = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(case);
    Command::new(binary)
        .arg("compare")
        .arg(case)
        .args(["--device", "emulated:v100"])
        .output()
        .unwrap()
}

#[test]
fn a_broken_kernel_fails_the_comparison() {
    const CASE: &str = "mp_fourier_4x37.safetensors";
    let whole = compare(Path::new(env!("CARGO_BIN_EXE_cyanea")), CASE);
    assert!(whole.status.success(), "{}", String::from_utf8_lossy(&whole.stderr));

    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (project, target) = (scratch.join("broken-kernel"), scratch.join("broken-kernel-target"));
    if project.exists() {
        std::fs::remove_dir_all(&project).unwrap();
    }
    std::fs::create_dir_all(&project).unwrap();
    copy_project(&project);
    let kernel = project.join("kernels/common/angle.cuh");
    let text = std::fs::read_to_string(&kernel).unwrap();
    let broken = text.replace("return cosine ? c : s;", "return (cosine ? c : s) + 0.01;");
    assert_ne!(text, broken, "the line to break is gone; update this test");
    std::fs::write(&kernel, broken).unwrap();
    // What kernels compile to that don't include this header is known.
    let cache = target.join("kernel-cache");
    std::fs::create_dir_all(&cache).unwrap();
    // It lies elsewhere where Cargo is told a target; then all are compiled.
    let known = scratch.parent().unwrap().join("kernel-cache");
    let known = known.is_dir().then(|| std::fs::read_dir(known).unwrap());
    for object in known.into_iter().flatten().map(|entry| entry.unwrap().path()) {
        let own = cache.join(object.file_name().unwrap());
        if object.extension().is_some_and(|extension| extension == "o") && !own.exists() {
            std::fs::copy(object, own).unwrap();
        }
    }

    // Unoptimised and without GPU images, because it is built for one comparison.
    let built = Command::new(env!("CARGO"))
        .args(["build", "--offline", "--locked", "--bin", "cyanea"])
        .current_dir(&project)
        .env("CARGO_TARGET_DIR", &target)
        .env("CARGO_PROFILE_DEV_OPT_LEVEL", "0")
        .env("CARGO_PROFILE_DEV_DEBUG", "false")
        .env("CYANEA_CUDA_ARCHS", "")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    let output = compare(&target.join("debug/cyanea"), CASE);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}{}", String::from_utf8_lossy(&output.stderr));
}
