//! Single kernels as programs run them: one file a family, with FLOPs (as elements) and bytes.
//!
//! `cargo bench --bench kernels [-- FILTER]`. `CYANEA_BENCH_DEVICE` is `cpu` (the default), `emulated`
//! or `cuda:0`; on the emulator only small shapes run. `CYANEA_BENCH_PRECISION` is `fp32` or `fp16`.
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
use harness::Bench;
use std::process::ExitCode;

fn main() -> ExitCode {
    let criterion = Criterion::default().sample_size(20).without_plots().configure_from_args();
    let mut bench = match Bench::from_environment(criterion) {
        Ok(bench) => bench,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    conv2d::benches(&mut bench);
    group_norm::benches(&mut bench);
    attention::benches(&mut bench);
    pointwise::benches(&mut bench);
    row_linear::benches(&mut bench);
    magnitude::benches(&mut bench);
    optimizer::benches(&mut bench);
    diffusion::benches(&mut bench);
    bench.finish();
    ExitCode::SUCCESS
}
