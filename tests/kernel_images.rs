//! What the compiler made of the kernels for GPUs: no local memory, matrix instructions where tensor
//! cores are promised, enough warps. Without a CUDA compiler in the build there is nothing to look at.

use cyanea::device::kernels::{Kernel, KernelRow, table};
use cyanea::device::{CodePath, Precision, Program, Target, Work};
use cyanea::diffusion::denoiser::{self, Shape};
use cyanea::training::config::Config;
use cyanea::training::objective::Task;
use cyanea::training::run::recipe;
use cyanea::training::trainer::{self, Recipe};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Kernels that still use local memory on some architecture. The list may only shrink.
const LOCAL_MEMORY: &[&str] = &[];

/// Kernels of products that only move elements.
const NO_PRODUCT: &[&str] = &["conv2d_pack_fwd_nhwc_f16", "conv2d_pack_fwd_nhwc_f32"];

/// Programs of `ddpm-64` in float16 may launch these although they leave tensor cores idle. The list
/// may only shrink.
const STILL_GENERAL: &[&str] = &[];

/// Kernels that occupy multiprocessors too thinly for some launch of `ddpm-64`, with the architecture.
/// The list may only shrink.
// At stride 2 the input of a tile takes 53 KiB of Volta's 96.
const THIN: &[(&str, u32)] = &[("conv2d_small_fwd_nhwc_f32", 70)];

fn rows() -> Option<Vec<KernelRow>> {
    let rows = table();
    if rows.is_empty() {
        eprintln!("skipped: built without GPU kernels; run scripts/cuda-toolchain.sh");
        return None;
    }
    Some(rows)
}

#[test]
fn no_kernel_uses_local_memory() {
    let Some(rows) = rows() else { return };
    let mut found = BTreeSet::new();
    let mut report = String::new();
    for row in &rows {
        let Some(resources) = row.resources else { continue };
        if resources.local_bytes > 0 {
            found.insert(row.kernel);
            report += &format!("{} on {}: {} bytes\n", row.kernel, row.arch, resources.local_bytes);
        }
    }
    let known: BTreeSet<&str> = LOCAL_MEMORY.iter().copied().collect();
    assert!(found.is_subset(&known), "local memory (stack or spilled registers):\n{report}");
    let cured: Vec<_> = known.difference(&found).collect();
    assert!(cured.is_empty(), "{cured:?} use none any more; strike them off LOCAL_MEMORY");
}

fn is_product(kernel: &str) -> bool {
    let family = ["conv2d", "attention"].iter().any(|family| kernel.starts_with(family));
    family && !NO_PRODUCT.contains(&kernel)
}

/// The manifest's `general` is the truth: with it no matrix instruction, without it at least one.
#[test]
fn products_in_float16_have_matrix_instructions_unless_they_are_general() {
    let Some(rows) = rows() else { return };
    let mut on_tensor_cores = 0;
    for row in rows.iter().filter(|row| row.kernel.ends_with("_f16") && is_product(row.kernel)) {
        let general = Kernel::named(row.kernel).unwrap().general;
        assert_eq!(
            row.mma_instructions == 0,
            general,
            "{} on {} has {} matrix instructions",
            row.kernel,
            row.arch,
            row.mma_instructions
        );
        on_tensor_cores += usize::from(!general && row.kernel.starts_with("conv2d"));
    }
    // Forward and gradient, small and large tiles, on each architecture and path.
    assert!(on_tensor_cores >= 4 * 4, "only {on_tensor_cores} convolutions on tensor cores");
    for row in rows.iter().filter(|row| row.kernel.ends_with("_f32")) {
        assert_eq!(row.mma_instructions, 0, "{} computes in float32", row.kernel);
    }
}

/// The programs of a sampling step and a training step of `ddpm-64`.
fn programs(target: &Target, batch: usize) -> Vec<Arc<Program>> {
    let config = Config::load(Some("ddpm-64"), None, &[]).unwrap();
    let network = config.build_network().unwrap();
    let size = [config.data.size.height, config.data.size.width];
    let table = config.sampler_table().unwrap();
    let sampling = denoiser::plan(network.as_ref(), &table, Shape { batch, size }, target).unwrap();
    let recipe = Recipe { batch, ..recipe(&config) };
    let task = Task::new(&config.network(), &config.process()).unwrap();
    let training = trainer::plan(task.objective().as_ref(), &recipe, target).unwrap();
    [sampling.programs, training.programs].concat()
}

fn in_half(target: Target) -> Target {
    target.with_precision(Precision::Fp16).unwrap()
}

#[test]
fn float16_leaves_no_tensor_core_idle_in_the_published_network() {
    let mut found = BTreeSet::new();
    for target in [Target::V100, Target::A100, Target::H100] {
        for program in programs(&in_half(target), 1) {
            for launch in &program.launches {
                let Work::Kernel(work) = &launch.work else { unreachable!("a GPU target") };
                let ends = launch.label.contains("conv_in") || launch.label.contains("conv_out");
                if Kernel::named(work.kernel).unwrap().general && !ends {
                    found.insert(work.kernel);
                }
            }
        }
    }
    let known: BTreeSet<&str> = STILL_GENERAL.iter().copied().collect();
    assert_eq!(found, known, "found on the left, STILL_GENERAL on the right");
}

/// Kernels of products keep two blocks on a multiprocessor, or at least eight warps, with the shared
/// memory that they ask for in this network.
#[test]
fn products_keep_multiprocessors_busy() {
    let Some(rows) = rows() else { return };
    let mut looked_at = 0;
    let (mut thin, mut report) = (BTreeSet::new(), String::new());
    for (target, arch) in [(Target::V100, 70), (Target::A100, 80), (Target::H100, 90)] {
        let path = if arch == 70 { CodePath::Sm70 } else { CodePath::Sm80 };
        for (target, batch) in
            [(target.clone(), 1), (in_half(target.clone()), 1), (in_half(target), 64)]
        {
            let mut seen = BTreeSet::new();
            for launch in programs(&target, batch).iter().flat_map(|program| &program.launches) {
                let Work::Kernel(work) = &launch.work else { unreachable!("a GPU target") };
                if !is_product(work.kernel) || !seen.insert((work.kernel, work.shared_bytes)) {
                    continue;
                }
                let row = rows.iter().find(|row| {
                    row.kernel == work.kernel
                        && (row.arch.number, row.arch.ptx) == (arch, false)
                        && row.code_path == path
                });
                let Some(row) = row else { continue };
                let threads = work.block.iter().product();
                let blocks = row.resident_blocks(threads, work.shared_bytes).unwrap();
                if blocks < 2 && blocks * threads < 8 * 32 {
                    thin.insert((work.kernel, arch));
                    report += &format!(
                        "{} with {} bytes of shared memory on sm_{arch}: {blocks} blocks of \
                         {threads} threads a multiprocessor\n",
                        work.kernel, work.shared_bytes
                    );
                }
                looked_at += 1;
            }
        }
    }
    assert_eq!(
        thin,
        THIN.iter().copied().collect(),
        "found on the left, THIN on the right\n{report}"
    );
    assert!(looked_at > 20, "only {looked_at} kinds of launches");
}
