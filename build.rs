//! Builds the kernels: `kernels/manifest.toml` says which there are. Each `.cu` file is compiled by
//! the host's C++ compiler for the `emulated` device and, where a CUDA 12 compiler is found, by
//! NVRTC for NVIDIA GPUs. No GPU is needed or looked for.

#[path = "build/cache.rs"]
mod cache;
#[path = "build/cubin.rs"]
mod cubin;
#[path = "build/generate.rs"]
mod generate;
#[path = "build/host.rs"]
mod host;
#[path = "build/manifest.rs"]
mod manifest;
#[path = "build/nvrtc.rs"]
mod nvrtc;
#[path = "build/probes.rs"]
mod probes;
#[path = "build/ptx.rs"]
mod ptx;

use std::path::PathBuf;
use std::process::ExitCode;

/// Which variant of a kernel is compiled; the macro `CYANEA_CODE_PATH` in the kernels.
pub const CODE_PATHS: [u32; 2] = [70, 80];

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for path in ["build.rs", "build", "kernels"] {
        println!("cargo:rerun-if-changed={path}");
    }
    let variable = |name: &str| {
        std::env::var_os(name).map(PathBuf::from).ok_or(format!("cargo did not set {name}"))
    };
    let root = variable("CARGO_MANIFEST_DIR")?;
    let out = variable("OUT_DIR")?;
    let sources = manifest::Sources::read(&root.join("kernels"))?;
    let cache = cache::Cache::beside(&out)?;

    host::build(&sources, &cache, &out)?;
    let gpu = nvrtc::build(&root, &sources, &cache, &out)?;
    probes::build(&root, &cache, &out)?;
    generate::write(&sources, &gpu, &out)
}
