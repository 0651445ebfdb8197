//! What `cyanea plan` announces is what a device executes, counted by the device.

use assert_cmd::Command;
use serde_json::Value;

/// A small U-Net with attention at both levels' ends, one layer a level.
const SMALL: [&str; 12] = [
    "--set",
    "data.size=[8, 12]",
    "--set",
    "model.channels=[8, 12]",
    "--set",
    "model.attention=[false, true]",
    "--set",
    "model.layers_per_block=1",
    "--set",
    "model.attention_head_dim=4",
    "--set",
    "model.norm_groups=4",
];

fn json(arguments: &[&[&str]]) -> Value {
    let mut command = Command::cargo_bin("cyanea").expect("the binary is built with the tests");
    let command = command.env("RAYON_NUM_THREADS", "2").args(arguments.concat()).arg("--json");
    serde_json::from_slice(&command.assert().success().get_output().stdout).unwrap()
}

/// The magnitude-preserving one, of so many channels and levels.
const SMALL_EDM2: [&str; 10] = [
    "--set",
    "model.kind=edm2",
    "--set",
    "data.size=[8, 12]",
    "--set",
    "model.channels=[8, 16]",
    "--set",
    "model.attention=[false, true]",
    "--set",
    "model.attention_head_dim=8",
];

#[test]
fn the_emulator_executes_as_many_launches_as_are_planned() {
    check_against_the_emulator(&SMALL);
}

#[test]
fn the_emulator_executes_as_many_launches_of_the_edm2_network() {
    check_against_the_emulator(&SMALL_EDM2);
}

fn check_against_the_emulator(network: &[&str]) {
    let accumulated = ["--set", "training.accumulate=2"];
    for (target, precision) in
        [("v100", "fp16"), ("a100", "fp16"), ("h100", "fp16"), ("h100", "fp32")]
    {
        let precision = ["--precision", precision, "--batch", "2"];
        let plan = json(&[&["plan", "--target", target], &precision, network, &accumulated]);
        let device = format!("emulated:{target}");
        let bench = |what: &str| {
            let counts = ["--device", &device, "--warmup", "0", "--repetitions", "1"];
            let bench = json(&[&["bench", what], &counts, &precision, network, &accumulated]);
            assert_eq!(bench["device"], device.as_str());
            bench["launches"].clone()
        };
        assert!(plan["launches_per_sampling_step"].as_u64().unwrap() > 20, "{plan}");
        assert_eq!(bench("step"), plan["launches_per_sampling_step"], "{target}");
        assert_eq!(bench("train"), plan["launches_per_training_step"], "{target}");
    }
}

/// The goal of 80 launches a sampling step, with the sampler's update.
#[test]
fn a_sampling_step_of_ddpm_64_takes_few_launches() {
    // The last convolution writes three channels and the first one reads them; in float16 as columns, and patches.
    for (target, precision, most, by_element) in
        [("v100", "fp16", 73, 0), ("a100", "fp16", 73, 0), ("h100", "fp32", 72, 2)]
    {
        for batch in ["1", "64"] {
            let preset = ["--preset", "ddpm-64", "--batch", batch];
            let plan = json(&[&["plan", "--target", target, "--precision", precision], &preset]);
            let launches = plan["launches_per_sampling_step"].as_u64().unwrap();
            assert!(launches <= most, "{launches} on {target} in {precision}, batch {batch}");
            let slow = &plan["launches_element_by_element_per_sampling_step"];
            assert_eq!(*slow, by_element, "{plan}");
            assert_eq!(plan["launches_without_tensor_cores_per_training_step"], 0, "{plan}");
        }
    }
}

/// The magnitude-preserving network in as few launches as fusion makes of it. The bound may only shrink.
#[test]
fn a_sampling_step_of_the_edm2_network_has_few_launches() {
    for (target, precision) in [("v100", "fp16"), ("h100", "fp16"), ("h100", "fp32")] {
        let arguments = ["--preset", "lobster-64", "--target", target, "--precision", precision];
        let plan = json(&[&["plan"], &arguments]);
        let launches = plan["launches_per_sampling_step"].as_u64().unwrap();
        assert!(launches <= 120, "{launches} on {target} in {precision}");
    }
}

/// The goal of 320 launches a training step, with the optimizer and the packing of weights.
#[test]
fn a_training_step_of_ddpm_64_takes_few_launches() {
    for (target, precision, most) in [
        ("v100", "fp32", 309),
        ("h100", "fp32", 309),
        ("v100", "fp16", 312),
        ("a100", "fp16", 312),
        ("h100", "fp16", 312),
    ] {
        for batch in ["1", "64"] {
            let preset = ["--preset", "ddpm-64", "--batch", batch];
            let plan = json(&[&["plan", "--target", target, "--precision", precision], &preset]);
            let launches = plan["launches_per_training_step"].as_u64().unwrap();
            assert!(launches <= most, "{launches} on {target} in {precision}, batch {batch}");
        }
    }
}
