//! `cyanea kernels`: what the build made of each CUDA kernel.

use super::figures::Table;
use super::output;
use crate::Result;
use crate::device::CodePath;
use crate::device::kernels::{self as built, KernelRow};
use serde_json::{Value, json};

const EXAMPLES: &str = "\
Examples:
  cyanea kernels
  cyanea kernels --json

What comes out: a row for each kernel and architecture, as the compiler reported them when cyanea
was built. `path` is the code path (a Hopper GPU can also run the one for Volta), `threads` the most
of a block, `registers` and `local` (bytes of stack, spilled registers included) are a thread's,
`shared` (bytes, static) a block's, `occupancy` the share of a multiprocessor's warps that can be
resident without dynamic shared memory, `mma` the tensor core instructions in the kernel's PTX.
compute_XX is PTX, which the driver compiles for newer chips. The same kernels run under
--device emulated. In JSON what is not known is null.";

/// List the CUDA kernels with registers, shared memory and stack
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Print a JSON array instead of a table
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<()> {
    let rows = built::table();
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
        "local",
        "occupancy",
        "mma",
    ];
    let mut table = Table::new(&titles, &[0, 1, 2, 3]);
    for row in &rows {
        let known = |value: Option<u32>| value.map_or("-".into(), |value| value.to_string());
        table.row([
            row.kernel.into(),
            row.source.into(),
            row.arch.to_string(),
            path(row.code_path).into(),
            row.block_threads.to_string(),
            known(row.resources.map(|r| r.registers)),
            known(row.resources.map(|r| r.shared_bytes)),
            known(row.resources.map(|r| r.local_bytes)),
            row.occupancy.map_or("-".into(), |share| format!("{:.0} %", 100.0 * share)),
            row.mma_instructions.to_string(),
        ]);
    }
    output::say(&table.to_string())
}

fn path(code_path: CodePath) -> &'static str {
    match code_path {
        CodePath::Cpu => "cpu",
        CodePath::Sm70 => "sm_70",
        CodePath::Sm80 => "sm_80",
    }
}

fn json_row(row: &KernelRow) -> Value {
    json!({
        "kernel": row.kernel,
        "source": row.source,
        "arch": row.arch.to_string(),
        "code_path": path(row.code_path),
        "registers": row.resources.map(|r| r.registers),
        "shared_bytes": row.resources.map(|r| r.shared_bytes),
        "local_bytes": row.resources.map(|r| r.local_bytes),
        "block_threads": row.block_threads,
        "occupancy": row.occupancy,
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
        "local_bytes": null,
        "block_threads": kernel.threads,
        "occupancy": null,
        "mma_instructions": null,
    })
}
