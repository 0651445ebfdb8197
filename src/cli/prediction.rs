//! The predicted time of a step on a GPU that is not there: for each launch the floors from FLOPs
//! and from bytes, and the gap to the next. A prediction, never a measurement.

use super::figures::{Table, grouped};
use crate::device::kernels::Kernel;
use crate::device::{Launch, Precision, Program, Speed, Target, Work};
use crate::graph::Plan;
use crate::{Error, Result};
use std::collections::HashMap;

/// One launch's floors, in microseconds.
struct Row {
    name: String,
    kernel: &'static str,
    /// A product that leaves tensor cores idle though float16 was asked for.
    idle: bool,
    /// It moves some tensor an element or a few at a time.
    general: bool,
    times: usize,
    flops: f64,
    bytes: f64,
    blocks: u64,
}

/// The predicted time of a step.
pub struct Prediction {
    rows: Vec<Row>,
    gap: f64,
    multiprocessors: u32,
}

impl Prediction {
    /// Of the named programs of a plan, each with how often it runs in a step.
    ///
    /// # Errors
    /// The CPU target, which has no published figures to predict from.
    pub fn of(plan: &Plan, step: &[(&str, usize)], target: &Target) -> Result<Prediction> {
        let speed = target.speed().ok_or_else(|| {
            Error::invalid(format!(
                "there is no prediction for the {} target; measure it with `cyanea bench`, or take \
                 --target v100, a100 or h100",
                target.name
            ))
        })?;
        let rows = step
            .iter()
            .filter_map(|(name, times)| Some((plan.program(name)?, *times)))
            .filter(|(_, times)| *times > 0)
            .flat_map(|(program, times)| launches(program, times, target, &speed))
            .collect();
        Ok(Prediction {
            rows,
            gap: speed.launch_gap * 1e6,
            multiprocessors: target.multiprocessors,
        })
    }

    /// Microseconds of a whole step: for each launch the larger floor, and the gap.
    pub fn microseconds(&self) -> f64 {
        self.rows.iter().map(|row| row.times as f64 * self.of_row(row)).sum()
    }

    /// Launches of a step that leave tensor cores idle though float16 was asked for.
    pub fn idle_launches(&self) -> u64 {
        self.rows.iter().filter(|row| row.idle).map(|row| row.times as u64).sum()
    }

    /// Launches of a step that take the general path, an element or a few at a time.
    pub fn general_launches(&self) -> u64 {
        self.rows.iter().filter(|row| row.general).map(|row| row.times as u64).sum()
    }

    /// Every launch, in order.
    pub fn launches(&self) -> String {
        let titles =
            ["launch", "kernel", "FLOPs µs", "bytes µs", "gap µs", "sum µs", "blocks", "of SMs"];
        let mut table = Table::new(&titles, &[0, 1]);
        for row in &self.rows {
            let times = if row.times > 1 { format!(" ×{}", row.times) } else { String::new() };
            table.row([
                format!("  {}{times}", row.name),
                marked(row.kernel, row.idle, row.general),
                format!("{:.2}", row.flops),
                format!("{:.2}", row.bytes),
                format!("{:.1}", self.gap),
                format!("{:.2}", self.of_row(row)),
                grouped(row.blocks),
                format!("{:.2}", self.of_multiprocessors(row)),
            ]);
        }
        table.to_string()
    }

    /// The larger floor of one launch, and the gap.
    fn of_row(&self, row: &Row) -> f64 {
        row.flops.max(row.bytes) + self.gap
    }

    /// Blocks of a launch for each multiprocessor.
    fn of_multiprocessors(&self, row: &Row) -> f64 {
        row.blocks as f64 / f64::from(self.multiprocessors)
    }

    /// Every launch, in order, as an array of objects.
    pub fn json(&self) -> serde_json::Value {
        let object = |row: &Row| {
            serde_json::json!({
                "launch": row.name,
                "kernel": row.kernel,
                "times": row.times,
                "flops_us": row.flops,
                "bytes_us": row.bytes,
                "gap_us": self.gap,
                "predicted_us": self.of_row(row),
                "blocks": row.blocks,
                "blocks_per_multiprocessor": self.of_multiprocessors(row),
                "without_tensor_cores": row.idle,
                "element_by_element": row.general,
            })
        };
        self.rows.iter().map(object).collect()
    }

    /// The same, added up by kernel, the most expensive first.
    pub fn by_kernel(&self) -> String {
        let mut order: Vec<&'static str> = Vec::new();
        let mut sums: HashMap<&'static str, [f64; 4]> = HashMap::new();
        let mut marks: HashMap<&'static str, [bool; 2]> = HashMap::new();
        for row in &self.rows {
            let sum = sums.entry(row.kernel).or_insert_with(|| {
                order.push(row.kernel);
                [0.0; 4]
            });
            let [idle, general] = marks.entry(row.kernel).or_default();
            *idle |= row.idle;
            *general |= row.general;
            let times = row.times as f64;
            let floor = times * self.of_row(row);
            for (to, add) in
                sum.iter_mut().zip([times, times * row.flops, times * row.bytes, floor])
            {
                *to += add;
            }
        }
        order.sort_by(|a, b| sums[b][3].total_cmp(&sums[a][3]));
        let titles = ["kernel", "launches", "FLOPs µs", "bytes µs", "gaps µs", "predicted µs"];
        let mut table = Table::new(&titles, &[0]);
        for kernel in order {
            let [launches, flops, bytes, floor] = sums[kernel];
            table.row([
                format!("  {}", marked(kernel, marks[kernel][0], marks[kernel][1])),
                grouped(launches as u64),
                format!("{flops:.1}"),
                format!("{bytes:.1}"),
                format!("{:.1}", launches * self.gap),
                format!("{floor:.1}"),
            ]);
        }
        table.to_string()
    }
}

/// What the first mark of a launch or a kernel means.
pub const IDLE: &str = "* multiplies in float32, which leaves tensor cores idle: a slower path";

/// What the second mark of a launch means; a kernel has it where one of its launches does.
pub const GENERAL: &str =
    "~ moves some tensor an element or a few at a time, as its sizes ask for: a slower path";

fn marked(kernel: &str, idle: bool, general: bool) -> String {
    let mark = |wanted, mark| if wanted { mark } else { "" };
    format!("{kernel}{}{}", mark(idle, " *"), mark(general, " ~"))
}

fn launches(program: &Program, times: usize, target: &Target, speed: &Speed) -> Vec<Row> {
    let in_half = target.precision == Precision::Fp16;
    let row = |launch: &Launch| {
        let Work::Kernel(work) = &launch.work else { return None };
        let kernel = Kernel::named(work.kernel);
        let half = kernel.is_some_and(Kernel::in_half);
        let peak = if half { speed.flops_f16 } else { speed.flops_f32 };
        Some(Row {
            name: if launch.label.is_empty() {
                launch.operation.to_string()
            } else {
                launch.label.clone()
            },
            kernel: work.kernel,
            idle: in_half && kernel.is_some_and(Kernel::without_tensor_cores),
            general: work.general,
            times,
            flops: launch.flops as f64 / peak * 1e6,
            bytes: launch.bytes as f64 / speed.bytes * 1e6,
            blocks: work.grid.iter().map(|&n| u64::from(n)).product(),
        })
    };
    program.launches.iter().filter_map(row).collect()
}

/// Hours of training `epochs` passes over `images` at `microseconds` a step of `batch` images.
pub fn training_hours(microseconds: f64, epochs: u64, images: u64, batch: u64) -> f64 {
    let steps = (epochs as f64 * images as f64 / batch as f64).ceil();
    steps * microseconds / 3.6e9
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::kernels::KERNELS;
    use crate::device::{KernelWork, TensorType};
    use crate::graph::{Graph, Layout};
    use crate::ops::activation::Activation;
    use std::sync::Arc;

    #[test]
    fn floors_are_those_of_the_data_sheet() {
        let mut g = Graph::new();
        let ty = TensorType::f32([4, 1 << 20]);
        let x = g.input("x", ty.clone()).unwrap();
        let y = g.input("y", ty).unwrap();
        g.push_into(Activation::SILU, &[x], &[y]).unwrap();
        let plan = Plan::new(&[("denoise", &g)], &Target::V100).unwrap();
        let prediction = Prediction::of(&plan, &[("denoise", 3)], &Target::V100).unwrap();
        // 32 MiB at 0.9 TB/s, and a gap of 1.5 µs, three times.
        let once = (8 << 22) as f64 / 0.9e12 * 1e6 + 1.5;
        assert!((prediction.microseconds() - 3.0 * once).abs() <= 1e-6 * once);
        let text = prediction.launches();
        assert!(text.contains("silu_fwd") && text.contains("×3"), "{text}");
        assert!(prediction.by_kernel().contains("silu_fwd"));
        let row = &prediction.json()[0];
        assert_eq!((&row["times"], &row["gap_us"]), (&3.into(), &1.5.into()));
        assert!((row["predicted_us"].as_f64().unwrap() - once).abs() <= 1e-6 * once, "{row}");
        assert!(Prediction::of(&plan, &[("denoise", 1)], &Target::CPU).is_err());
    }

    #[test]
    fn float16_without_tensor_cores_is_marked() {
        for kernel in KERNELS {
            let work = KernelWork {
                kernel: kernel.name,
                grid: [1, 1, 1],
                block: [32, 1, 1],
                shared_bytes: 0,
                params: Vec::new(),
                pointers: Vec::new(),
                written: 0,
                general: false,
            };
            let launch = Launch {
                operation: "test",
                label: String::new(),
                flops: 1,
                bytes: 1,
                work: Work::Kernel(work),
            };
            let program = Program {
                name: "denoise".into(),
                target: Target::V100,
                launches: vec![launch],
                arena_bytes: 0,
            };
            let plan = Plan { layout: Layout::default(), programs: vec![Arc::new(program)] };
            for precision in [Precision::Fp32, Precision::Fp16] {
                let target = Target::V100.with_precision(precision).unwrap();
                let prediction = Prediction::of(&plan, &[("denoise", 3)], &target).unwrap();
                let idle = precision == Precision::Fp16 && kernel.without_tensor_cores();
                assert_eq!(prediction.idle_launches(), 3 * u64::from(idle));
                for text in [prediction.launches(), prediction.by_kernel()] {
                    assert_eq!(text.contains(&format!("{} *", kernel.name)), idle, "{text}");
                }
            }
        }
    }

    #[test]
    fn hours_of_the_model_case() {
        // 667 images, 10,000 epochs, 16 images a step, 100 ms a step.
        let hours = training_hours(1e5, 10_000, 667, 16);
        assert!((hours - 416_875.0 * 0.1 / 3600.0).abs() <= 1e-9 * hours);
    }
}
