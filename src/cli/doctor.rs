//! `cyanea doctor`: what this machine and this build can do.

use super::output;
use crate::Result;
use crate::device::cpu::{Cpu, Simd};
use crate::device::emulated::Emulated;
use crate::device::{Device, Target, cuda, kernels, open_by_name};

const EXAMPLES: &str = "\
Examples:
  cyanea doctor
  RAYON_NUM_THREADS=4 cyanea doctor

What comes out: one line a fact. Put it into a report of a problem.";

/// Say what this machine and this build can do
///
/// Names the processor, threads and SIMD level, and for each device whether it can serve and, where
/// not, what to run. Never fails because something is missing.
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {}

pub fn run(_: &Args) -> Result<()> {
    let mut facts = vec![
        ("cyanea", format!("{} ({} {})", version(), std::env::consts::ARCH, std::env::consts::OS)),
        ("processor", processor()),
        ("threads", threads()),
        ("SIMD", simd()),
        ("cpu", "ready".into()),
        ("emulated", emulated()),
        ("kernels", built_in()),
    ];
    facts.extend(gpus().into_iter().map(|fact| ("cuda", fact)));
    let text: String = facts.iter().map(|(name, fact)| format!("{name:<10} {fact}\n")).collect();
    output::say(&text)
}

fn emulated() -> String {
    match Emulated::new(Target::H100) {
        Ok(_) => format!("ready, with {} kernels", kernels::KERNELS.len()),
        Err(why) => why.to_string(),
    }
}

/// Which GPU architectures this build has machine code for.
fn built_in() -> String {
    let mut archs: Vec<String> = Vec::new();
    for image in kernels::IMAGES {
        let name = image.arch.to_string();
        if !archs.contains(&name) {
            archs.push(name);
        }
    }
    match kernels::GPU_COMPILER {
        Some(compiler) if !archs.is_empty() => {
            format!("built in for {}, by {compiler}", archs.join(", "))
        }
        _ => "not built in for any GPU; run scripts/cuda-toolchain.sh and build again".into(),
    }
}

/// What the NVIDIA driver says, a line a GPU.
fn gpus() -> Vec<String> {
    let count = match cuda::devices() {
        Ok(count) => count,
        Err(why) => return vec![why.to_string()],
    };
    let describe = |number: u32| {
        let name = format!("cuda:{number}");
        match open_by_name(&name) {
            Ok(device) => format!("{name} ready, with {}", described(device.as_ref())),
            Err(why) => why.to_string(),
        }
    };
    (0..count).map(describe).collect()
}

fn described(device: &dyn Device) -> String {
    let target = device.target();
    format!(
        "{} multiprocessors and {} KiB of shared memory a block, planned for as {}",
        target.multiprocessors,
        target.shared_bytes >> 10,
        target.name
    )
}

fn version() -> String {
    let profile = if cfg!(debug_assertions) { ", with debug assertions" } else { "" };
    format!("{}{profile}", env!("CARGO_PKG_VERSION"))
}

/// The processor's name, as far as the system tells.
fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = text.lines().find(|line| line.starts_with("model name"));
    let name = name.and_then(|line| line.split_once(':')).map(|(_, name)| name.trim());
    match name {
        Some(name) if !name.is_empty() => name.to_string(),
        _ => format!("{} (the system does not tell its name)", std::env::consts::ARCH),
    }
}

fn threads() -> String {
    let used = Cpu::shared().threads();
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let why = match std::env::var("RAYON_NUM_THREADS") {
        Ok(value) if value.parse::<usize>().is_ok_and(|n| n > 0) => "as RAYON_NUM_THREADS says",
        Ok(_) => "RAYON_NUM_THREADS is no positive number and is ignored",
        Err(_) => "RAYON_NUM_THREADS sets another number",
    };
    format!("{used} of {processors} processors; {why}")
}

fn simd() -> String {
    let (used, best) = (Cpu::shared().simd(), Simd::available());
    let name = |level| match level {
        Simd::Scalar => "scalar, what the compilation target guarantees",
        Simd::Avx2 => "AVX2, 8 lanes of float32",
        Simd::Avx512 => "AVX-512, 16 lanes of float32",
    };
    if used == best {
        name(used).into()
    } else {
        format!("{}, as CYANEA_SIMD says; this processor has {}", name(used), name(best))
    }
}
