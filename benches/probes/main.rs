//! The lab's probes: small measurements on an NVIDIA GPU that decide between designs. They are no part
//! of the library. `cargo bench --bench probes -- NAME` prints one JSON object; without a name all of
//! them, a line each. Without a GPU each refuses in one sentence.

mod gpu;

use gpu::{Gpu, Launch, Result};
use serde_json::{Value, json};
use std::process::ExitCode;

const SAMPLES: usize = 20;
const THREADS: u32 = 128;

type Probe = fn(&Gpu) -> Result<Value>;

const PROBES: [(&str, Probe); 4] = [
    ("graph-gaps", graph_gaps),
    ("while-iteration", while_iteration),
    ("grid-barrier", grid_barrier),
    ("matrix-product", matrix_product),
];

fn main() -> ExitCode {
    // Cargo passes options of its own.
    let names: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let known = |name: &str| PROBES.iter().any(|(probe, _)| *probe == name);
    if let Some(unknown) = names.iter().find(|name| !known(name)) {
        let all: Vec<&str> = PROBES.iter().map(|(name, _)| *name).collect();
        eprintln!("error: there is no probe `{unknown}`; there are {}", all.join(", "));
        return ExitCode::from(2);
    }
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(why) => {
            eprintln!("error: {why}");
            return ExitCode::from(2);
        }
    };
    let mut failed = false;
    for (name, probe) in PROBES {
        if !names.is_empty() && !names.iter().any(|wanted| wanted == name) {
            continue;
        }
        match probe(&gpu) {
            Ok(cases) => println!(
                "{}",
                json!({
                    "probe": name,
                    "gpu": gpu.name,
                    "capability": gpu.capability,
                    "multiprocessors": gpu.multiprocessors,
                    "cases": cases,
                })
            ),
            Err(why) => {
                eprintln!("error: {name}: {why}");
                failed = true;
            }
        }
    }
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Memory of the kernels that count: the counter, and an element a thread.
struct Ticks {
    counter: u64,
    lines: u64,
}

impl Ticks {
    fn new(gpu: &Gpu) -> Result<Ticks> {
        let lines = gpu.zeros((gpu.multiprocessors * THREADS * 4) as usize)?;
        Ok(Ticks { counter: gpu.zeros(4)?, lines })
    }

    fn count(&self, gpu: &Gpu) -> Result<u32> {
        let mut count = [0u32];
        gpu.download(self.counter, &mut count)?;
        Ok(count[0])
    }

    fn clear(&self, gpu: &Gpu) -> Result<()> {
        gpu.clear(self.counter, 4)
    }
}

fn launch(function: cudarc::driver::sys::CUfunction, grid: u32, arguments: Vec<u64>) -> Launch {
    Launch {
        function,
        grid,
        block: THREADS,
        shared_bytes: 0,
        arguments,
        early: false,
        cooperative: false,
    }
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn expect(what: &str, got: u32, wanted: u32) -> Result<()> {
    if got == wanted {
        return Ok(());
    }
    Err(format!("{what}: {got} were counted where {wanted} should be"))
}

/// Microseconds of a kernel node, with its gap, in a chain: launched one by one, in a graph, and in a
/// graph with programmatic dependent launch.
fn graph_gaps(gpu: &Gpu) -> Result<Value> {
    const NODES: u32 = 200;
    let ticks = Ticks::new(gpu)?;
    let mut cases = Vec::new();
    for blocks in [1, gpu.multiprocessors] {
        for (way, early, captured) in [
            ("stream", false, false),
            ("graph", false, true),
            ("graph, dependent launch", true, true),
        ] {
            if early && gpu.capability < 90 {
                continue;
            }
            let kernel = if early { "tick_early" } else { "tick" };
            let function = gpu.function("schedule.cu", kernel, false)?;
            let arguments = vec![ticks.counter, ticks.lines];
            let node = Launch { early, ..launch(function, blocks, arguments) };
            let all = || (0..NODES).try_for_each(|_| gpu.launch(&node));
            ticks.clear(gpu)?;
            let samples = match captured {
                true => {
                    let graph = gpu.graph(all)?;
                    gpu.time(SAMPLES, || graph.launch())?
                }
                false => gpu.time(SAMPLES, all)?,
            };
            expect(way, ticks.count(gpu)?, NODES * (SAMPLES as u32 + 1))?;
            cases.push(json!({
                "way": way,
                "blocks": blocks,
                "nodes": NODES,
                "us_per_node": median(&samples) / f64::from(NODES),
                "samples_us": samples,
            }));
        }
    }
    Ok(cases.into())
}

/// Microseconds of a round of a WHILE node with bodies of one and of ten kernels, from machine code and
/// from PTX; a refusal is a result too.
fn while_iteration(gpu: &Gpu) -> Result<Value> {
    const ROUNDS: u32 = 200;
    let ticks = Ticks::new(gpu)?;
    let mut cases = Vec::new();
    for ptx in [false, true] {
        for nodes in [1, 10] {
            let measured = (|| -> Result<Vec<f64>> {
                let tick = gpu.function("schedule.cu", "tick", ptx)?;
                let last = gpu.function("schedule.cu", "tick_and_loop", ptx)?;
                let tick = launch(tick, gpu.multiprocessors, vec![ticks.counter, ticks.lines]);
                let graph = gpu.while_graph(|handle| {
                    (1..nodes).try_for_each(|_| gpu.launch(&tick))?;
                    let until = u64::from(ROUNDS * nodes);
                    let arguments = vec![ticks.counter, ticks.lines, until, handle];
                    gpu.launch(&launch(last, gpu.multiprocessors, arguments))
                })?;
                let mut samples = Vec::new();
                for _ in 0..SAMPLES {
                    ticks.clear(gpu)?;
                    // Not by `Gpu::time`: the counter must be 0 at the start of each launch.
                    let start = std::time::Instant::now();
                    graph.launch()?;
                    gpu.wait()?;
                    samples.push(1e6 * start.elapsed().as_secs_f64());
                    expect("WHILE node", ticks.count(gpu)?, ROUNDS * nodes)?;
                }
                Ok(samples)
            })();
            let image = if ptx { "PTX" } else { "machine code" };
            cases.push(match measured {
                Ok(samples) => json!({
                    "image": image,
                    "nodes": nodes,
                    "rounds": ROUNDS,
                    "us_per_round": median(&samples) / f64::from(ROUNDS),
                    "samples_us": samples,
                }),
                Err(why) => json!({ "image": image, "nodes": nodes, "refused": why }),
            });
        }
    }
    Ok(cases.into())
}

/// Microseconds of a barrier across all blocks, one a multiprocessor, by a counter in global memory.
fn grid_barrier(gpu: &Gpu) -> Result<Value> {
    const ROUNDS: u32 = 1000;
    let counter = gpu.zeros(4)?;
    let function = gpu.function("schedule.cu", "meet", false)?;
    let mut cases = Vec::new();
    for block in [THREADS, 256, 512] {
        let arguments = vec![counter, u64::from(ROUNDS)];
        let meet =
            Launch { block, cooperative: true, ..launch(function, gpu.multiprocessors, arguments) };
        let mut samples = Vec::new();
        for _ in 0..SAMPLES {
            gpu.clear(counter, 4)?;
            let start = std::time::Instant::now();
            gpu.launch(&meet)?;
            gpu.wait()?;
            samples.push(1e6 * start.elapsed().as_secs_f64());
            let mut count = [0u32];
            gpu.download(counter, &mut count)?;
            expect("barrier", count[0], ROUNDS * gpu.multiprocessors)?;
        }
        cases.push(json!({
            "threads": block,
            "rounds": ROUNDS,
            "us_per_barrier": median(&samples) / f64::from(ROUNDS),
            "samples_us": samples,
        }));
    }
    Ok(cases.into())
}

// As in product.cu.
const WIDTH: usize = 10;
const PLANE: usize = WIDTH * WIDTH + 1;
const OCTETS: usize = 8;
const TAPS: usize = 9;
const COLUMNS: usize = 128;

/// TFLOP/s of the convolution's product body by `mma.sync` and by `wgmma`, with 1, 2 and 4 warpgroups a
/// block; both must give the products of small integers exactly.
fn matrix_product(gpu: &Gpu) -> Result<Value> {
    const ROUNDS: u64 = 200;
    let small = |at: usize| ((at * 7 + at / 13) % 5) as f32 - 2.0;
    let input: Vec<f32> = (0..OCTETS * PLANE * 8).map(small).collect();
    let weights: Vec<f32> = (0..TAPS * OCTETS * COLUMNS * 8).map(small).collect();
    let halves = |values: &[f32]| -> Vec<u16> {
        values.iter().map(|&x| half::f16::from_f32(x).to_bits()).collect()
    };
    let (from, by) = (gpu.upload(&halves(&input))?, gpu.upload(&halves(&weights))?);
    let most = (gpu.multiprocessors * 4) as usize * 64 * COLUMNS;
    let output = gpu.zeros(4 * most)?;
    let mut cases = Vec::new();
    for kernel in ["product_mma", "product_wgmma"] {
        let function = match gpu.function("product.cu", kernel, false) {
            Ok(function) => function,
            Err(why) => {
                cases.push(json!({ "kernel": kernel, "refused": why }));
                continue;
            }
        };
        for groups in [1, 2, 4] {
            let bytes = 2 * (weights.len() + groups as usize * input.len()) as u32;
            if let Err(why) = gpu.allow_shared(function, bytes) {
                cases.push(json!({ "kernel": kernel, "warpgroups": groups, "refused": why }));
                continue;
            }
            let product = |rounds| Launch {
                block: 128 * groups,
                shared_bytes: bytes,
                ..launch(function, gpu.multiprocessors, vec![from, by, output, rounds])
            };
            gpu.launch(&product(1))?;
            gpu.wait()?;
            let mut got = vec![0f32; (gpu.multiprocessors * groups) as usize * 64 * COLUMNS];
            gpu.download(output, &mut got)?;
            let wrong = wrong_products(&input, &weights, &got);
            let samples = gpu.time(SAMPLES, || gpu.launch(&product(ROUNDS)))?;
            let tiles = f64::from(gpu.multiprocessors * groups) * ROUNDS as f64;
            let flops = 2.0 * (64 * COLUMNS * TAPS * OCTETS * 8) as f64 * tiles;
            cases.push(json!({
                "kernel": kernel,
                "warpgroups": groups,
                "wrong_elements": wrong,
                "tflops": flops / median(&samples) * 1e-6,
                "samples_us": samples,
            }));
        }
    }
    Ok(cases.into())
}

/// How many elements of all tiles, [64, 128] each, are not the convolution of the input.
fn wrong_products(input: &[f32], weights: &[f32], got: &[f32]) -> usize {
    let mut want = vec![0f32; 64 * COLUMNS];
    for (row, sums) in want.chunks_mut(COLUMNS).enumerate() {
        for tap in 0..TAPS {
            let pixel = (row / 8 + tap / 3) * WIDTH + row % 8 + tap % 3;
            for octet in 0..OCTETS {
                let x = &input[(octet * PLANE + pixel) * 8..][..8];
                for (column, sum) in sums.iter_mut().enumerate() {
                    let w = &weights[((tap * OCTETS + octet) * COLUMNS + column) * 8..][..8];
                    *sum += x.iter().zip(w).map(|(x, w)| x * w).sum::<f32>();
                }
            }
        }
    }
    got.iter().zip(want.iter().cycle()).filter(|(got, want)| got != want).count()
}
