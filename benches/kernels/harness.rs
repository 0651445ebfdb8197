//! One operation as a program on a device: what weights alone need is done beforehand, the rest is
//! timed.

use criterion::{Criterion, Throughput};
use cyanea::Result;
use cyanea::device::{DType, Device, Precision, TensorType, open_by_name_with};
use cyanea::graph::hoist::hoist;
use cyanea::graph::{Build, Engine, Graph, Plan, Rate, Region, lower};
use cyanea::ops::Op;
use cyanea::ops::state::{self, StepState};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Launches of one run on a GPU, so that the wait for its end does not count: what is timed is the
/// distance of launches that follow each other on a stream.
const REPEATS_ON_A_GPU: usize = 20;

/// What the emulator can run some times in a second.
const EMULATED_FLOPS: u64 = 2_000_000;
const EMULATED_BYTES: u64 = 400_000;

/// An input of an operation, or what it updates in place.
pub struct Input {
    ty: TensorType,
    rate: Rate,
    fill: Fill,
}

#[derive(Clone, Copy)]
enum Fill {
    /// Values that are neither zero nor alike.
    Varied,
    Constant(f32),
    State,
}

/// Changes at every run.
pub fn activation(shape: impl Into<Vec<usize>>) -> Input {
    Input { ty: TensorType::f32(shape), rate: Rate::Step, fill: Fill::Varied }
}

/// Stays, so that its packing is not timed.
pub fn weight(shape: impl Into<Vec<usize>>) -> Input {
    Input { rate: Rate::Weights, ..activation(shape) }
}

pub fn constant(shape: impl Into<Vec<usize>>, value: f32) -> Input {
    Input { fill: Fill::Constant(value), ..activation(shape) }
}

/// The step state.
pub fn step_state() -> Input {
    Input { ty: state::ty(), rate: Rate::Step, fill: Fill::State }
}

/// A Philox key for each sample.
pub fn seeds(samples: usize) -> Input {
    Input { ty: TensorType::u32([samples, 2]), ..constant([1], 0.0) }
}

pub struct Bench {
    /// None: each runs once, untimed.
    criterion: Option<Criterion>,
    device: Box<dyn Device>,
}

impl Bench {
    pub fn new(criterion: Option<Criterion>, device: &str, precision: Precision) -> Result<Bench> {
        Ok(Bench { criterion, device: open_by_name_with(device, precision)? })
    }

    pub fn on_cpu(&self) -> bool {
        self.device.target().is_cpu()
    }

    fn emulated(&self) -> bool {
        self.device.name().starts_with("emulated")
    }

    /// Times an operation; `family/name` is what Criterion shows. `updated` is what an operation in
    /// place starts from: its outputs.
    pub fn time<O: Op>(
        &mut self,
        family: &str,
        name: &str,
        op: O,
        inputs: &[Input],
        updated: &[Input],
    ) {
        let half = self.device.target().precision == Precision::Fp16;
        let (graph, slots) = graph(op, inputs, updated, half).expect("shapes that fit");
        let plan = self.plan(graph).expect("kernels for the operation");
        let step = plan.program("step").expect("a program").clone();
        if self.emulated() && (step.flops() > EMULATED_FLOPS || step.bytes() > EMULATED_BYTES) {
            return;
        }
        let Some(criterion) = &mut self.criterion else {
            let mut engine =
                open(&plan, 1, &slots, self.device.as_ref()).expect("the device serves");
            engine.run("step").expect("the program runs");
            println!("{family}/{name} ({:?}) ran once", self.device.target().precision);
            return;
        };
        let repeats = if self.device.name().starts_with("cuda") { REPEATS_ON_A_GPU } else { 1 };
        let mut group = criterion.benchmark_group(family);
        let (elements, bytes) = (step.flops(), step.bytes());
        group.throughput(match elements {
            0 => Throughput::Bytes(bytes),
            _ => Throughput::ElementsAndBytes { elements, bytes },
        });
        // Opened for what the filter lets through, once.
        let mut opened: Option<Engine> = None;
        group.bench_function(name, |bencher| {
            let engine = opened.get_or_insert_with(|| {
                open(&plan, repeats, &slots, self.device.as_ref()).expect("the device serves")
            });
            bencher.iter_custom(|iterations| {
                let runs = iterations.div_ceil(repeats as u64);
                let start = Instant::now();
                for _ in 0..runs {
                    black_box(engine.run("step")).expect("the program runs");
                }
                share(start.elapsed(), iterations, runs * repeats as u64)
            });
        });
        group.finish();
    }

    fn plan(&self, mut graph: Graph) -> Result<Plan> {
        let target = self.device.target();
        lower::lower(&mut graph, target)?;
        let hoisted = hoist(&graph, 1)?;
        Plan::new(&[("prepare", &hoisted.prepare), ("step", &hoisted.step)], target)
    }

    pub fn finish(&self) {
        if let Some(criterion) = &self.criterion {
            criterion.final_summary();
        }
    }
}

/// The part of a time that `some` of `all` equal pieces take.
fn share(time: Duration, some: u64, all: u64) -> Duration {
    time.mul_f64(some as f64 / all as f64)
}

/// A slot's place, type and contents.
type Slot = (Region, String, TensorType, Fill);

/// Of an activation that comes from a float16 operation.
fn halved(ty: &TensorType) -> TensorType {
    ty.with_dtype(if ty.dtype == DType::F32 { DType::F16 } else { ty.dtype })
}

/// A graph of one node, and its slots. What the operation reads as float16 is float16 in memory, as in
/// a network, where no cast stands in between.
fn graph(
    op: impl Op,
    inputs: &[Input],
    updated: &[Input],
    half: bool,
) -> Result<(Graph, Vec<Slot>)> {
    let mut g = Graph::new();
    let mut slots = Vec::new();
    let mut slot = |g: &mut Graph, name: String, ty: TensorType, rate: Rate, fill: Fill| {
        let region = if rate == Rate::Weights { Region::Buffers } else { Region::State };
        slots.push((region, name.clone(), ty.clone(), fill));
        g.slot(region, &name, ty, rate)
    };
    // As if what comes before were in float16, too: some operations follow their inputs.
    let halves: Vec<TensorType> = inputs.iter().map(|input| halved(&input.ty)).collect();
    let wanted = if half { op.half(&halves.iter().collect::<Vec<_>>()) } else { Vec::new() };
    let mut read = Vec::new();
    for (index, input) in inputs.iter().enumerate() {
        let as_half = wanted.get(index) == Some(&true);
        let dtype = if as_half { DType::F16 } else { input.ty.dtype };
        let ty = input.ty.with_dtype(dtype);
        read.push(slot(&mut g, format!("input {index}"), ty, input.rate, input.fill)?);
    }
    let outputs = g.push(Arc::new(op), &read)?;
    for (index, output) in outputs.into_iter().enumerate() {
        let fill = updated.get(index).map_or(Fill::Constant(0.0), |input| input.fill);
        let ty = g.ty(output).clone();
        let to = slot(&mut g, format!("output {index}"), ty, Rate::Step, fill)?;
        g.bind(output, to)?;
    }
    Ok((g, slots))
}

fn open(plan: &Plan, repeats: usize, slots: &[Slot], device: &dyn Device) -> Result<Engine> {
    let mut plan = plan.clone();
    for program in plan.programs.iter_mut().filter(|program| program.name == "step") {
        let program = Arc::make_mut(program);
        program.launches = vec![program.launches.clone(); repeats].concat();
    }
    let mut engine = Engine::new(plan, device)?;
    for (region, name, ty, fill) in slots {
        if engine.has(*region, name) {
            write(&mut engine, *region, name, ty, *fill)?;
        }
    }
    engine.run("prepare")?;
    Ok(engine)
}

fn write(
    engine: &mut Engine,
    region: Region,
    name: &str,
    ty: &TensorType,
    fill: Fill,
) -> Result<()> {
    let value = |at: usize| match fill {
        Fill::Constant(value) => value,
        _ => ((at * 7919 % 1999) as f32 - 999.0) * 1e-3,
    };
    match (ty.dtype, fill) {
        (_, Fill::State) => engine.write(region, name, &StepState::new(7).words),
        (DType::F32, _) => {
            engine.write(region, name, &(0..ty.elements()).map(value).collect::<Vec<f32>>())
        }
        (DType::F16, _) => {
            let bits = (0..ty.elements()).map(|at| half::f16::from_f32(value(at)).to_bits());
            engine.write(region, name, &bits.collect::<Vec<u16>>())
        }
        (DType::U32, _) => engine.write(region, name, &vec![0u32; ty.elements()]),
    }
}
