//! Single kernels as programs run them: one file a family, with FLOPs (as elements) and bytes.
//!
//! `cargo bench --bench kernels [-- FILTER]`. `CYANEA_BENCH_DEVICE` is `cpu` (the default), `emulated`
//! or `cuda:0`; on the emulator only small shapes run. `CYANEA_BENCH_PRECISION` is `fp32` or `fp16`.
//! `cargo test` runs those once each, in both precisions, whatever its arguments are.
//! `RAYON_NUM_THREADS` and `CYANEA_SIMD` choose threads and SIMD level on the CPU.

mod attention;
mod conv2d;
mod diffusion;
mod group_norm;
mod harness;
mod magnitude;
mod optimizer;
mod pointwise;
mod row_linear;

use criterion::Criterion;
use cyanea::device::Precision;
use cyanea::{Error, Result};
use harness::Bench;
use std::process::ExitCode;

fn main() -> ExitCode {
    let benched = std::env::args().any(|word| word == "--bench");
    let done = if benched {
        from_environment()
    } else {
        // `cargo test`
        let both = [Precision::Fp32, Precision::Fp16];
        both.into_iter().try_for_each(|precision| all(None, "emulated", precision))
    };
    if let Err(why) = done {
        eprintln!("error: {why}");
        return ExitCode::from(2);
    }
    ExitCode::SUCCESS
}

fn from_environment() -> Result<()> {
    let variable = |name: &str| std::env::var(name).ok();
    let precision = match variable("CYANEA_BENCH_PRECISION").as_deref() {
        None | Some("fp32") => Precision::Fp32,
        Some("fp16") => Precision::Fp16,
        Some(other) => {
            let what = format!("CYANEA_BENCH_PRECISION is `{other}`; it can be fp32 or fp16");
            return Err(Error::invalid(what));
        }
    };
    let criterion = Criterion::default().sample_size(20).without_plots().configure_from_args();
    all(Some(criterion), &variable("CYANEA_BENCH_DEVICE").unwrap_or("cpu".into()), precision)
}

fn all(criterion: Option<Criterion>, device: &str, precision: Precision) -> Result<()> {
    let mut bench = Bench::new(criterion, device, precision)?;
    conv2d::benches(&mut bench);
    group_norm::benches(&mut bench);
    attention::benches(&mut bench);
    pointwise::benches(&mut bench);
    row_linear::benches(&mut bench);
    magnitude::benches(&mut bench);
    optimizer::benches(&mut bench);
    diffusion::benches(&mut bench);
    bench.finish();
    Ok(())
}
