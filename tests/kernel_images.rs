//! What the compiler made of the kernels for GPUs: no local memory, matrix instructions where tensor
//! cores are promised, enough warps. Without a CUDA compiler in the build there is nothing to look at.

use cyanea::device::kernels::{Kernel, KernelRow, table};
use cyanea::device::{CodePath, DType, Precision, Program, Target, TensorType, Work};
use cyanea::diffusion::denoiser::{self, Shape};
use cyanea::graph::{Build, Graph, Plan};
use cyanea::ops::attention::{Attention, AttentionGrad};
use cyanea::training::config::Config;
use cyanea::training::objective::Task;
use cyanea::training::run::recipe;
use cyanea::training::trainer::{self, Recipe};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Kernels that still use local memory on some architecture. The list may only shrink.
const LOCAL_MEMORY: &[&str] = &[];

/// Kernels that occupy multiprocessors too thinly for some launch of `ddpm-64` or some attention, with the architecture.
/// The list may only shrink.
const THIN: &[(&str, u32)] = &[];

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

#[test]
fn static_shared_memory_is_what_the_manifest_says() {
    let Some(rows) = rows() else { return };
    for row in &rows {
        let Some(resources) = row.resources else { continue };
        let of_kernel = rows.iter().filter(|other| other.kernel == row.kernel);
        let most = of_kernel.filter_map(|row| row.resources).map(|r| r.shared_bytes).max();
        let said = Kernel::named(row.kernel).unwrap().shared;
        // 64 stands for up to 64.
        assert_eq!(most.unwrap().max(64), said, "{}: {resources:?} on {}", row.kernel, row.arch);
    }
}

fn is_product(kernel: &str) -> bool {
    Kernel::named(kernel).unwrap().is_product()
}

#[test]
fn products_have_matrix_instructions_in_float16_alone() {
    let Some(rows) = rows() else { return };
    let mut on_tensor_cores = 0;
    for row in rows.iter().filter(|row| is_product(row.kernel)) {
        let idle = Kernel::named(row.kernel).unwrap().without_tensor_cores();
        let [kernel, arch] = [row.kernel, &row.arch.to_string()];
        assert_eq!(row.mma_instructions == 0, idle, "{kernel} on {arch}: {}", row.mma_instructions);
        on_tensor_cores += usize::from(!idle && row.kernel.starts_with("conv2d"));
    }
    // Forward and gradient, small and large tiles, on each architecture and path.
    assert!(on_tensor_cores >= 4 * 4, "only {on_tensor_cores} convolutions on tensor cores");
    for row in rows.iter().filter(|row| row.kernel.ends_with("_f32")) {
        assert_eq!(row.mma_instructions, 0, "{} computes in float32", row.kernel);
    }
}

/// The programs of a sampling step and of a training step of `ddpm-64`.
fn programs(target: &Target, batch: usize) -> [Vec<Arc<Program>>; 2] {
    let config = Config::load(Some("ddpm-64"), None, &[]).unwrap();
    let network = config.build_network().unwrap();
    let size = [config.data.size.height, config.data.size.width];
    let table = config.sampler_table().unwrap();
    let sampling = denoiser::plan(network.as_ref(), &table, Shape { batch, size }, target).unwrap();
    let recipe = Recipe { batch, ..recipe(&config) };
    let task = Task::new(&config.network(), &config.process()).unwrap();
    let training = trainer::plan(task.objective().as_ref(), &recipe, target).unwrap();
    [sampling.programs, training.programs]
}

fn in_half(target: Target) -> Target {
    target.with_precision(Precision::Fp16).unwrap()
}

#[test]
fn float16_leaves_no_tensor_core_idle_in_the_published_network() {
    for (target, batch) in
        [(Target::V100, 1), (Target::V100, 64), (Target::A100, 1), (Target::H100, 64)]
    {
        let idle = |programs: &[Arc<Program>], names: &[&str]| {
            let named =
                |name: &&str| programs.iter().find(|program| program.name == *name).unwrap();
            let launches = names.iter().map(named).flat_map(|program| &program.launches);
            let kernels = launches.map(|launch| {
                let Work::Kernel(work) = &launch.work else { unreachable!("a GPU target") };
                work.kernel
            });
            let idle = kernels.filter(|name| Kernel::named(name).unwrap().without_tensor_cores());
            idle.collect::<BTreeSet<_>>()
        };
        let [sampling, training] = programs(&in_half(target), batch);
        assert_eq!(idle(&sampling, &["table", "denoise"]), BTreeSet::new());
        let names = ["accumulate", "update", "prepare"];
        assert_eq!(idle(&training, &names), BTreeSet::new());
    }
}

/// Attention and its gradient, of heads of these many channels.
fn attention(target: &Target, depth: usize) -> Arc<Program> {
    let mut graph = Graph::new();
    let rows = TensorType::f32([2, 1024, 2 * depth]).with_dtype(match target.precision {
        Precision::Fp16 => DType::F16,
        Precision::Fp32 => DType::F32,
    });
    let tensors = ["q", "k", "v", "y", "dy"].map(|name| graph.input(name, rows.clone()).unwrap());
    let [q, k, v, y, dy] = tensors;
    let lse = graph.input("lse", TensorType::f32([2, 1024, 2])).unwrap();
    graph.push(Arc::new(Attention { heads: 2, scale: 0.5 }), &[q, k, v]).unwrap();
    graph.push(Arc::new(AttentionGrad { heads: 2, scale: 0.5 }), &[dy, q, k, v, y, lse]).unwrap();
    Plan::new(&[("attention", &graph)], target).unwrap().program("attention").unwrap().clone()
}

/// Kernels of products keep two blocks on a multiprocessor, or at least eight warps, with the shared
/// memory that they ask for in `ddpm-64`, and attention with any heads.
#[test]
fn products_keep_multiprocessors_busy() {
    let Some(rows) = rows() else { return };
    let mut looked_at = BTreeSet::new();
    let (mut thin, mut report) = (BTreeSet::new(), String::new());
    for (target, arch) in [(Target::V100, 70), (Target::A100, 80), (Target::H100, 90)] {
        let path = if arch == 70 { CodePath::Sm70 } else { CodePath::Sm80 };
        for (target, batch) in
            [(target.clone(), 1), (in_half(target.clone()), 1), (in_half(target), 64)]
        {
            let mut seen = BTreeSet::new();
            let mut programs = programs(&target, batch).concat();
            programs
                .extend([4, 8, 32, 40, 64, 128, 256, 512].map(|depth| attention(&target, depth)));
            for launch in programs.iter().flat_map(|program| &program.launches) {
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
                looked_at.insert(work.kernel);
            }
        }
    }
    assert_eq!(
        thin,
        THIN.iter().copied().collect(),
        "found on the left, THIN on the right\n{report}"
    );
    // Attention forward, with regard to queries, and to keys and values, of six kernels in both types.
    let attention = looked_at.iter().filter(|name| name.starts_with("attention_")).count();
    assert!(attention == 3 * 6 * 2 && looked_at.len() > attention + 10, "{looked_at:?}");
}
