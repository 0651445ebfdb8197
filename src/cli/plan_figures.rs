//! The figures that `cyanea plan` prints, read off compiled programs; nothing runs.

use super::figures::{Table, bytes, grouped, scaled};
use crate::device::{Launch, Program, Space, TensorType, View, Work};
use crate::graph::{Plan, Region};
use serde_json::{Value, json};
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Programs of a sampling step, with how often each runs in one.
pub const SAMPLING_STEP: &[(&str, usize)] = &[("denoise", 1)];

/// Programs of a training step of `accumulate` micro-batches: these, the optimizer, and the weights
/// brought to unit magnitude (where a network wants it) and into the device's forms.
pub fn training_step(accumulate: usize) -> [(&'static str, usize); 5] {
    let more = accumulate.saturating_sub(1);
    [("normalise", 1), ("accumulate", 1), ("accumulate_more", more), ("update", 1), ("prepare", 1)]
}

/// Programs that run before a loop, in the order of their runs.
const BEFORE: &[&str] = &["prepare", "table"];
/// How many of the largest tensors are printed.
const LARGEST: usize = 8;

/// Every region of persistent memory, with the name that users read.
const REGIONS: &[(Region, &str)] = &[
    (Region::Weights, "weights"),
    (Region::Gradients, "gradients"),
    (Region::MicroGradients, "gradients of a micro-batch"),
    (Region::Moment1, "first moments"),
    (Region::Moment2, "second moments"),
    (Region::Ema(0), "average of the weights"),
    (Region::Ema(1), "second average"),
    (Region::Ema(2), "third average"),
    (Region::Ema(3), "fourth average"),
    (Region::Buffers, "buffers"),
    (Region::Prepared, "prepared weights"),
    (Region::Table, "table"),
    (Region::State, "inputs and state"),
];

/// What a plan costs: of sampling or of training.
pub struct Cost {
    pub flops_per_step: u64,
    pub bytes_per_step: u64,
    pub launches_per_step: u64,
    pub library_calls_per_step: u64,
    /// Program and launches, for those that run before the loop.
    pub launches_before: Vec<(&'static str, usize)>,
    pub arena_bytes: usize,
    pub persistent_bytes: usize,
    /// Bytes of each region that is there.
    pub regions: Vec<(&'static str, usize)>,
    pub largest: Vec<Large>,
}

/// A large tensor in the arena.
#[derive(Clone, Debug, PartialEq)]
pub struct Large {
    /// Where in the network it is made, and by what.
    pub name: String,
    pub ty: TensorType,
}

impl Cost {
    /// `step` names the plan's programs of a step, with how often each runs in one.
    fn of(plan: &Plan, step: &[(&str, usize)]) -> Cost {
        let of_step = step.iter().filter_map(|(name, times)| Some((plan.program(name)?, *times)));
        let of_step: Vec<(&Arc<Program>, usize)> = of_step.collect();
        let total = |figure: &dyn Fn(&Program) -> u64| -> u64 {
            of_step.iter().map(|(program, times)| figure(program) * *times as u64).sum()
        };
        let calls = |program: &Program| {
            program.launches.iter().filter(|launch| is_library_call(launch)).count() as u64
        };
        let region_bytes = |region| -> usize {
            plan.layout.region(region).iter().map(|(_, view)| view.ty.bytes()).sum()
        };
        Cost {
            flops_per_step: total(&Program::flops),
            bytes_per_step: total(&Program::bytes),
            launches_per_step: total(&|program| program.launches.len() as u64),
            library_calls_per_step: total(&calls),
            launches_before: BEFORE
                .iter()
                .filter_map(|name| Some((*name, plan.program(name)?.launches.len())))
                .collect(),
            arena_bytes: plan.arena_bytes(),
            persistent_bytes: plan.layout.bytes(),
            regions: REGIONS
                .iter()
                .map(|&(region, name)| (name, region_bytes(region)))
                .filter(|&(_, bytes)| bytes > 0)
                .collect(),
            largest: largest(of_step.iter().map(|(program, _)| program.as_ref())),
        }
    }

    /// Of a sampling run: one network evaluation and update is a step.
    pub fn sampling(plan: &Plan) -> Cost {
        Cost::of(plan, SAMPLING_STEP)
    }

    /// Of training: a step is [`training_step`]; nothing runs before the loop that does not run in
    /// it.
    pub fn training(plan: &Plan, accumulate: usize) -> Cost {
        Cost { launches_before: Vec::new(), ..Cost::of(plan, &training_step(accumulate)) }
    }
}

/// Elements of all trained parameters.
pub fn parameters(plan: &Plan) -> usize {
    plan.layout.region(Region::Weights).iter().map(|(_, view)| view.ty.elements()).sum()
}

fn is_library_call(launch: &Launch) -> bool {
    match launch.work {
        // Kernels of this project; a kind of work that calls cuDNN or cuBLAS would count here.
        Work::Cpu(_) | Work::Kernel(_) => false,
    }
}

fn written(launch: &Launch) -> Vec<&View> {
    match &launch.work {
        Work::Cpu(work) => work.outputs.iter().collect(),
        Work::Kernel(work) => {
            let first = work.pointers.len() - work.written;
            work.pointers[first..].iter().map(|(_, view)| view).collect()
        }
    }
}

/// The largest tensors that programs write into the arena, each once.
fn largest<'a>(programs: impl Iterator<Item = &'a Program>) -> Vec<Large> {
    let mut all: Vec<Large> = Vec::new();
    let mut seen = BTreeSet::new();
    for launch in programs.flat_map(|program| &program.launches) {
        for view in written(launch).into_iter().filter(|view| view.space == Space::Arena) {
            let name = match launch.label.as_str() {
                "" => launch.operation.to_string(),
                label => format!("{label} ({})", launch.operation),
            };
            if seen.insert((name.clone(), view.offset)) {
                all.push(Large { name, ty: view.ty.clone() });
            }
        }
    }
    all.sort_by_key(|large| std::cmp::Reverse(large.ty.bytes()));
    all.truncate(LARGEST);
    all
}

/// The keys that scripts read.
pub fn json(parameters: usize, sampling: &Cost, training: &Cost) -> Value {
    json!({
        "parameters": parameters,
        "flops_per_sampling_step": sampling.flops_per_step,
        "flops_per_training_step": training.flops_per_step,
        "arena_bytes_sampling": sampling.arena_bytes,
        "arena_bytes_training": training.arena_bytes,
        "persistent_bytes_sampling": sampling.persistent_bytes,
        "persistent_bytes_training": training.persistent_bytes,
        "launches_per_sampling_step": sampling.launches_per_step,
        "launches_per_training_step": training.launches_per_step,
        "library_calls_per_sampling_step": sampling.library_calls_per_step,
    })
}

/// The same for people.
pub fn text(head: &str, parameters: usize, sampling: &Cost, training: &Cost) -> String {
    let both = [sampling, training];
    let mut table = Table::new(&["", "sampling", "training"], &[0]);
    let mut row = |name: &str, cell: &dyn Fn(&Cost) -> String| {
        table.row([name.to_string(), cell(sampling), cell(training)]);
    };
    row("FLOPs a step", &|cost| scaled(cost.flops_per_step as f64, "FLOP"));
    row("bytes moved a step", &|cost| bytes(cost.bytes_per_step));
    row("launches a step", &|cost| grouped(cost.launches_per_step));
    row("library calls a step", &|cost| grouped(cost.library_calls_per_step));
    for name in BEFORE {
        let before = |cost: &Cost| {
            let found = cost.launches_before.iter().find(|(program, _)| program == name);
            found.map_or("-".into(), |(_, count)| grouped(*count as u64))
        };
        row(&format!("launches before the loop, {name}"), &before);
    }
    row("arena", &|cost| bytes(cost.arena_bytes as u64));
    row("persistent", &|cost| bytes(cost.persistent_bytes as u64));
    for (_, name) in REGIONS {
        let of = |cost: &Cost| cost.regions.iter().find(|(region, _)| region == name).map(|r| r.1);
        if both.iter().any(|cost| of(cost).is_some()) {
            row(&format!("  {name}"), &|cost| of(cost).map_or("-".into(), |b| bytes(b as u64)));
        }
    }
    let mut text = format!("{head}\nparameters: {}\n\n{table}", grouped(parameters as u64));
    for (what, cost) in [("sampling", sampling), ("training", training)] {
        let mut table = Table::new(&["", "shape", "size"], &[0, 1]);
        let mut counted: Vec<(String, TensorType, usize)> = Vec::new();
        let mut index: HashMap<String, usize> = HashMap::new();
        for large in &cost.largest {
            let at = *index.entry(format!("{}{:?}", large.name, large.ty)).or_insert_with(|| {
                counted.push((large.name.clone(), large.ty.clone(), 0));
                counted.len() - 1
            });
            counted[at].2 += 1;
        }
        for (name, ty, count) in counted {
            let times = if count > 1 { format!(", {count} of them") } else { String::new() };
            table.row([
                format!("  {name}{times}"),
                format!("{:?}", ty.shape),
                bytes(ty.bytes() as u64),
            ]);
        }
        let rows = table.to_string();
        let rows = rows.split_once('\n').map_or("", |(_, rows)| rows);
        text += &format!("\nlargest tensors of a {what} step\n{rows}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Target;
    use crate::graph::{Graph, Rate};
    use crate::ops::activation::Activation;

    /// y = silu(silu(x)), with a weight that nothing reads.
    fn plan(name: &str, batch: usize) -> Plan {
        let mut g = Graph::new();
        g.slot(Region::Weights, "w", TensorType::f32([3, 5]), Rate::Weights).unwrap();
        let x = g.input("x", TensorType::f32([batch, 16])).unwrap();
        let y = g.scoped("first", |g| g.one(Activation::SILU, &[x])).unwrap();
        let y = g.scoped("second", |g| g.one(Activation::SILU, &[y])).unwrap();
        let out = g.input("y", TensorType::f32([batch, 16])).unwrap();
        g.bind(y, out).unwrap();
        Plan::new(&[(name, &g)], &Target::CPU).unwrap()
    }

    #[test]
    fn figures_are_those_of_the_programs() {
        let (sampling, training) = (plan("denoise", 2), plan("accumulate", 4));
        let (s, t) = (Cost::sampling(&sampling), Cost::training(&training, 3));
        let json = json(parameters(&sampling), &s, &t);
        assert_eq!(json["parameters"], 15);
        assert_eq!(json["launches_per_sampling_step"], 2);
        assert_eq!(json["launches_per_training_step"], 2);
        assert_eq!(json["arena_bytes_sampling"], sampling.arena_bytes());
        assert_eq!(json["persistent_bytes_training"], training.layout.bytes());
        assert_eq!(s.bytes_per_step, 2 * 2 * 2 * 16 * 4);
        let expected = [Large { name: "first (silu)".into(), ty: TensorType::f32([2, 16]) }];
        assert_eq!(s.largest, expected);
        let text = text("head", 15, &s, &t);
        assert!(text.contains("first (silu)") && text.contains("parameters: 15"), "{text}");
        assert!(text.contains("  weights"), "{text}");
    }
}
