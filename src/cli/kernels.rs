//! `cyanea kernels`: what the build made of each CUDA kernel.

use super::figures::Table;
use super::output;
use super::plan::plans;
use crate::device::kernels::{self as built, KernelRow};
use crate::device::{CodePath, Precision, Target, Work};
use crate::training::config::Config;
use crate::{Error, Result};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};

const EXAMPLES: &str = "\
Examples:
  cyanea kernels
  cyanea kernels --arch sm_70
  cyanea kernels --arch sm_80 --json

What comes out: a row for each kernel and architecture, as the compiler reported them when cyanea
was built. `path` is the code path (a Hopper GPU can also run the one for Volta), `threads` the most
of a block, `registers` and `local` (bytes of stack, spilled registers included) are a thread's,
`shared` (bytes, static) a block's. `dynamic` is what launches ask for beside it: the most of those
in the programs for sampling and training ddpm-64, of one image and of 64, in float32 and float16; -
where none of these uses the kernel. `occupancy` is the share of a multiprocessor's warps that can be
resident with both, `mma` the tensor core instructions in the kernel's PTX. compute_XX is PTX, which
the driver compiles for newer chips. The same kernels run under --device emulated. In JSON what is
not known is null.";

/// The network whose launches say how much dynamic shared memory kernels get.
const PRESET: &str = "ddpm-64";

/// List the CUDA kernels with registers, shared memory and stack
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Only those of one architecture, e.g. sm_70, sm_80, sm_90 or compute_90; by default all
    #[arg(long, value_name = "ARCH")]
    arch: Option<String>,
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let mut rows = built::table();
    if let Some(arch) = &args.arch {
        let there: BTreeSet<String> = rows.iter().map(|row| row.arch.to_string()).collect();
        if !there.contains(arch) {
            let there = match there.is_empty() {
                true => "no architecture; run scripts/cuda-toolchain.sh and build again".into(),
                false => there.into_iter().collect::<Vec<_>>().join(", "),
            };
            return Err(Error::invalid(format!(
                "no kernels for `{arch}`: cyanea was built for {there}"
            )));
        }
        rows.retain(|row| row.arch.to_string() == *arch);
    }
    let rows = with_dynamic(rows)?;
    if args.json {
        let rows = if rows.is_empty() {
            built::KERNELS.iter().map(|kernel| host_row(kernel)).collect()
        } else {
            rows.iter().map(json_row).collect()
        };
        return output::say_line(&format!("{:#}", Value::Array(rows)));
    }
    if rows.is_empty() {
        output::note(
            "note: no CUDA compiler was found when cyanea was built, so the kernels run under \
             --device emulated only; run scripts/cuda-toolchain.sh and build again",
        );
        let mut table = Table::new(&["kernel", "source", "threads"], &[0, 1]);
        for kernel in built::KERNELS {
            table.row([kernel.name.into(), kernel.source.into(), kernel.threads.to_string()]);
        }
        return output::say(&table.to_string());
    }
    let titles = [
        "kernel",
        "source",
        "architecture",
        "path",
        "threads",
        "registers",
        "shared",
        "dynamic",
        "local",
        "occupancy",
        "mma",
    ];
    let mut table = Table::new(&titles, &[0, 1, 2, 3]);
    for (row, dynamic) in &rows {
        let known = |value: Option<u32>| value.map_or("-".into(), |value| value.to_string());
        table.row([
            row.kernel.into(),
            row.source.into(),
            row.arch.to_string(),
            path(row.code_path).into(),
            row.block_threads.to_string(),
            known(row.resources.map(|r| r.registers)),
            known(row.resources.map(|r| r.shared_bytes)),
            known(*dynamic),
            known(row.resources.map(|r| r.local_bytes)),
            row.occupancy(dynamic.unwrap_or(0))
                .map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            row.mma_instructions.to_string(),
        ]);
    }
    output::say(&table.to_string())
}

/// Each row with the most dynamic shared memory, in bytes, that a launch of [`PRESET`] gives the kernel; `None` where no
/// launch uses it, and in PTX.
fn with_dynamic(rows: Vec<KernelRow>) -> Result<Vec<(KernelRow, Option<u32>)>> {
    let mut found: Vec<(Target, HashMap<&'static str, u32>)> = Vec::new();
    let mut all = Vec::with_capacity(rows.len());
    for row in rows {
        let chip = match row.arch.number {
            ..80 => Target::V100,
            80..90 => Target::A100,
            _ => Target::H100,
        };
        let target = Target { code_path: row.code_path, ..chip };
        if !found.iter().any(|(known, _)| *known == target) {
            found.push((target.clone(), dynamic_bytes(&target)?));
        }
        let (_, bytes) =
            found.iter().find(|(known, _)| *known == target).expect("it was put there");
        let dynamic = row.resources.and(bytes.get(row.kernel).copied());
        all.push((row, dynamic));
    }
    Ok(all)
}

/// The most dynamic shared memory of each kernel that [`PRESET`] launches on a target.
fn dynamic_bytes(target: &Target) -> Result<HashMap<&'static str, u32>> {
    let config = Config::load(Some(PRESET), None, &[])?;
    let mut most = HashMap::new();
    for (precision, batch) in [Precision::Fp32, Precision::Fp16]
        .into_iter()
        .flat_map(|precision| [(precision, 1), (precision, 64)])
    {
        let plans = plans(&config, batch, &target.clone().with_precision(precision)?)?;
        for launch in
            plans.iter().flat_map(|plan| &plan.programs).flat_map(|program| &program.launches)
        {
            let Work::Kernel(work) = &launch.work else { continue };
            let bytes = most.entry(work.kernel).or_insert(0);
            *bytes = work.shared_bytes.max(*bytes);
        }
    }
    Ok(most)
}

fn path(code_path: CodePath) -> &'static str {
    match code_path {
        CodePath::Cpu => "cpu",
        CodePath::Sm70 => "sm_70",
        CodePath::Sm80 => "sm_80",
    }
}

fn json_row((row, dynamic): &(KernelRow, Option<u32>)) -> Value {
    json!({
        "kernel": row.kernel,
        "source": row.source,
        "arch": row.arch.to_string(),
        "code_path": path(row.code_path),
        "registers": row.resources.map(|r| r.registers),
        "shared_bytes": row.resources.map(|r| r.shared_bytes),
        "dynamic_shared_bytes": dynamic,
        "local_bytes": row.resources.map(|r| r.local_bytes),
        "block_threads": row.block_threads,
        "occupancy": row.occupancy(dynamic.unwrap_or(0)),
        "mma_instructions": row.mma_instructions,
    })
}

/// A kernel that was compiled for the emulator alone.
fn host_row(kernel: &built::Kernel) -> Value {
    json!({
        "kernel": kernel.name,
        "source": kernel.source,
        "arch": null,
        "code_path": null,
        "registers": null,
        "shared_bytes": null,
        "dynamic_shared_bytes": null,
        "local_bytes": null,
        "block_threads": kernel.threads,
        "occupancy": null,
        "mma_instructions": null,
    })
}
