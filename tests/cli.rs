//! The command line as a user meets it: help, results, exit codes.

#[path = "common/command.rs"]
mod command;

use assert_cmd::Command;
use command::cyanea;
use predicates::prelude::*;
use std::fs;
use std::path::Path;

/// Names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const SUBCOMMANDS: &[&str] = &[
    "quickstart",
    "synth",
    "train",
    "sample",
    "config",
    "plan",
    "bench",
    "compare",
    "kernels",
    "doctor",
    "ema",
    "import",
    "export",
    "completions",
];

#[test]
fn each_subcommand_teaches() {
    let all = cyanea().arg("--help").assert().success().get_output().stdout.clone();
    let all = String::from_utf8(all).unwrap();
    for subcommand in SUBCOMMANDS {
        assert!(all.contains(&format!("\n  {subcommand} ")), "{subcommand} is missing:\n{all}");
        cyanea().args([subcommand, "--help"]).assert().success().stdout(
            predicate::str::contains("Examples:")
                .and(predicate::str::contains(format!("cyanea {subcommand}"))),
        );
    }
    let listed = all.lines().skip_while(|line| *line != "Commands:").skip(1);
    let count =
        listed.take_while(|line| !line.is_empty()).filter(|l| !l.contains("  help")).count();
    assert_eq!(count, SUBCOMMANDS.len(), "a subcommand that no test knows:\n{all}");
}

#[test]
fn usage_errors_exit_with_2() {
    for arguments in [
        &["no-such-command"][..],
        &["synth"],
        &["synth", "--out"],
        &["synth", "--out", "x", "--no-such-option"],
        &["completions", "no-such-shell"],
        &[],
    ] {
        let assert = cyanea().args(arguments).assert().code(2);
        assert!(!assert.get_output().stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn version_is_that_of_the_package() {
    cyanea()
        .arg("--version")
        .assert()
        .success()
        .stdout(format!("cyanea {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn synth_writes_the_pictures_that_seed_index_and_size_name() {
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("new/pictures");
    let synth = |out: &Path, count: &str, seed: &str| {
        cyanea()
            .args(["synth", "--size", "16", "--count", count, "--seed", seed, "--out"])
            .arg(out)
            .assert()
            .success()
            .stderr("");
    };
    synth(&out, "3", "5");
    assert_eq!(names(&out), ["00000.png", "00001.png", "00002.png"]);
    for index in 0..3 {
        let picture = image::open(out.join(format!("{index:05}.png"))).unwrap().into_rgb8();
        assert_eq!(picture, cyanea::data::synthetic::render(5, index, 16).unwrap());
    }
    // An empty folder will do, and a larger count keeps the pictures.
    let more = root.path().join("more");
    fs::create_dir(&more).unwrap();
    synth(&more, "4", "5");
    let read = |folder: &Path| fs::read(folder.join("00002.png")).unwrap();
    assert_eq!(read(&more), read(&out));
}

#[cfg(unix)]
#[test]
fn interrupted_drawing_leaves_nothing() {
    use std::process::Command;
    let root = tempfile::tempdir().unwrap();
    let out = root.path().join("many");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cyanea"))
        .args(["synth", "--size", "256", "--count", "1000000", "--out"])
        .arg(&out)
        .spawn()
        .unwrap();
    while !fs::read_dir(&out).is_ok_and(|mut entries| entries.next().is_some()) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let id = child.id().to_string();
    assert!(Command::new("kill").args(["-INT", &id]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(names(root.path()), [] as [String; 0]);
}

#[test]
fn completions_know_the_subcommands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        cyanea()
            .args(["completions", shell])
            .assert()
            .success()
            .stdout(predicate::str::contains("synth").and(predicate::str::contains("count")));
    }
}

#[test]
fn doctor_names_threads_and_simd() {
    cyanea().arg("doctor").env("CYANEA_SIMD", "scalar").assert().success().stdout(
        predicate::str::contains("threads    2 of")
            .and(predicate::str::is_match("SIMD +scalar").unwrap()),
    );
    cyanea()
        .arg("doctor")
        .env("RAYON_NUM_THREADS", "many")
        .assert()
        .success()
        .stdout(predicate::str::contains("RAYON_NUM_THREADS is no positive number"));
}

#[test]
fn a_simd_level_that_is_none_is_refused() {
    for arguments in [&["doctor"][..], &["plan", "--preset", "ddpm-32"], &["config"]] {
        let said = cyanea().args(arguments).env("CYANEA_SIMD", "avx9").assert().code(2);
        said.stderr(
            predicate::str::contains("CYANEA_SIMD is \"avx9\"")
                .and(predicate::str::contains("avx512, avx2 or scalar")),
        );
    }
    cyanea().args(["plan", "--preset", "ddpm-32"]).env("CYANEA_SIMD", "avx512").assert().success();
}

#[test]
fn doctor_says_of_each_device_whether_it_can_serve() {
    let output = cyanea().arg("doctor").assert().success().get_output().clone();
    let said = String::from_utf8(output.stdout).unwrap();
    for name in ["cyanea", "processor", "threads", "SIMD", "cpu", "emulated", "kernels", "cuda"] {
        assert!(said.lines().any(|line| line.starts_with(&format!("{name} "))), "{name}: {said}");
    }
    assert!(output.stderr.is_empty());
}

#[test]
fn kernels_lists_each_kernel_as_a_table_and_as_json() {
    let table = cyanea().arg("kernels").assert().success().get_output().stdout.clone();
    let table = String::from_utf8(table).unwrap();
    let json = cyanea().args(["kernels", "--json"]).assert().success().get_output().stdout.clone();
    let json: serde_json::Value = serde_json::from_slice(&json).unwrap();
    let rows = json.as_array().unwrap();
    assert_eq!(table.lines().count(), rows.len() + 1, "{table}");
    for kernel in cyanea::device::kernels::KERNELS {
        assert!(table.contains(kernel.name), "{table}");
        assert!(rows.iter().any(|row| row["kernel"] == kernel.name), "{json:#}");
    }
    for row in rows {
        let arch = row["arch"].as_str();
        let known = arch.is_some_and(|arch| arch.starts_with("sm_"));
        for key in ["registers", "shared_bytes", "local_bytes"] {
            assert_eq!(row[key].is_u64(), known, "{row}");
        }
        assert_eq!(row["occupancy"].is_f64(), known, "{row}");
        assert_eq!(row["mma_instructions"].is_u64(), arch.is_some(), "{row}");
        assert!(row["block_threads"].is_u64(), "{row}");
        let dynamic = row["dynamic_shared_bytes"].as_u64();
        assert!(dynamic.is_none() || known, "{row}");
    }
    let of = |kernel: &str, arch: &str| {
        rows.iter().find(|row| row["kernel"] == kernel && row["arch"] == arch)
    };
    if let Some(row) = of("conv2d_alone80_fwd_nhwc_f16", "sm_80") {
        assert!(row["dynamic_shared_bytes"].as_u64().unwrap() > 64 << 10, "{row}");
    }
    let arguments = ["kernels", "--arch", "sm_80", "--json"];
    if of("silu_fwd_nhwc_f32", "sm_80").is_some() {
        let json: serde_json::Value =
            serde_json::from_str(&stdout(cyanea().args(arguments))).unwrap();
        let all = rows.iter().filter(|row| row["arch"] == "sm_80").cloned().collect();
        assert_eq!(json, serde_json::Value::Array(all));
    }
    let said = cyanea().args(["kernels", "--arch", "sm_1"]).assert().code(2);
    said.stderr(predicate::str::contains("no kernels for `sm_1`: cyanea was built for "));
}

fn stdout(command: &mut Command) -> String {
    String::from_utf8(command.assert().success().get_output().stdout.clone()).unwrap()
}

fn json(command: &mut Command) -> serde_json::Value {
    serde_json::from_str(&stdout(command.arg("--json"))).unwrap()
}

#[test]
fn config_prints_what_can_be_read_back() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("run.toml");
    let set = ["--set", "training.steps=7", "--set", "data.size=[16, 24]"];
    let text = stdout(cyanea().args(["config", "--preset", "ddpm-32"]).args(set));
    assert!(text.contains("steps = 7") && text.contains("size = [16, 24]"), "{text}");
    // Each key stands below a line that explains it.
    let lines: Vec<&str> = text.lines().collect();
    for (index, line) in lines.iter().enumerate().filter(|(_, line)| line.contains(" = ")) {
        assert!(line.starts_with('#') || lines[index - 1].starts_with("# "), "{line}");
    }
    fs::write(&file, &text).unwrap();
    assert_eq!(stdout(cyanea().arg("config").arg("--config").arg(&file)), text);
    let presets = stdout(cyanea().args(["config", "--presets"]));
    assert!(presets.contains("ddpm-32") && presets.contains("ddpm-64"), "{presets}");
}

#[test]
fn plan_knows_the_published_network() {
    let plan = json(cyanea().args(["plan", "--preset", "ddpm-64"]));
    let keys: Vec<&str> = plan.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        [
            "parameters",
            "flops_per_sampling_step",
            "flops_per_training_step",
            "arena_bytes_sampling",
            "arena_bytes_training",
            "persistent_bytes_sampling",
            "persistent_bytes_training",
            "launches_per_sampling_step",
            "launches_per_training_step",
            "library_calls_per_sampling_step",
        ]
    );
    assert_eq!(plan["parameters"], 35_746_307);
    // 23.4 GMAC, measured on diffusers' network; training is about three times that.
    let flops = plan["flops_per_sampling_step"].as_f64().unwrap();
    assert!((flops / 46.8e9 - 1.0).abs() <= 0.01, "{flops:e}");
    let training = plan["flops_per_training_step"].as_f64().unwrap() / flops;
    assert!((training - 3.0).abs() <= 0.1, "{training}");
    let four = json(cyanea().args(["plan", "--preset", "ddpm-64", "--batch", "4"]));
    assert_eq!(four["launches_per_sampling_step"], plan["launches_per_sampling_step"]);
    let share = four["arena_bytes_sampling"].as_f64().unwrap()
        / plan["arena_bytes_sampling"].as_f64().unwrap();
    assert!((2.0..=4.0).contains(&share), "{share}");
    let text = stdout(cyanea().args(["plan", "--preset", "ddpm-64"]));
    assert!(text.contains("35,746,307") && text.contains("target cpu"), "{text}");
}

#[test]
fn plan_predicts_for_gpus_and_says_that_it_does() {
    let model_case = ["--batch", "16", "--epochs", "10000", "--images", "667"];
    let plan = |target: &str| {
        let arguments = ["plan", "--preset", "ddpm-32", "--target", target];
        json(cyanea().args(arguments).args(model_case))
    };
    let (v100, h100) = (plan("v100"), plan("h100"));
    for key in ["predicted_us_per_sampling_step", "predicted_us_per_training_step"] {
        let [old, new] = [&v100, &h100].map(|plan| plan[key].as_f64().unwrap());
        assert!(0.0 < new && new < old, "{key}: {new} and {old}");
    }
    // 416,875 steps of 16 images.
    let hours = v100["predicted_us_per_training_step"].as_f64().unwrap() * 416_875.0 / 3.6e9;
    let said = v100["predicted_training_hours"].as_f64().unwrap();
    assert!((said / hours - 1.0).abs() <= 1e-9, "{said} is not {hours}");
    let text = stdout(cyanea().args(["plan", "--preset", "ddpm-32", "--target", "a100"]));
    assert!(text.contains("a prediction, not a measurement") && text.contains("conv2d_"));
    let cpu = cyanea().args(["plan", "--preset", "ddpm-32"]).args(model_case).assert().code(2);
    let error = String::from_utf8_lossy(&cpu.get_output().stderr).into_owned();
    assert!(error.contains("no prediction for the cpu target"), "{error}");
}

#[test]
fn bench_counts_the_launches_that_plan_announces() {
    let small = ["--preset", "ddpm-32", "--set", "model.channels=[32]"];
    let small =
        [&small[..], &["--set", "model.attention=[false]", "--set", "data.size=8"]].concat();
    let more =
        [&small[..], &["--set", "training.accumulate=2", "--set", "sampling.steps=2"]].concat();
    for settings in [small, more] {
        let plan = json(cyanea().arg("plan").args(&settings).args(["--batch", "2"]));
        for (what, key) in
            [("step", "launches_per_sampling_step"), ("train", "launches_per_training_step")]
        {
            let counts = ["--warmup", "1", "--repetitions", "4", "--batch", "2"];
            let bench = json(cyanea().args(["bench", what]).args(&settings).args(counts));
            assert_eq!(bench["launches"], plan[key], "{what}");
            let samples: Vec<f64> = bench["samples_ms"]
                .as_array()
                .unwrap()
                .iter()
                .map(|s| s.as_f64().unwrap())
                .collect();
            assert_eq!(samples.len(), 4);
            let [p50, p95] = ["p50_ms", "p95_ms"].map(|key| bench[key].as_f64().unwrap());
            assert!(samples.contains(&p50) && samples.contains(&p95) && p50 <= p95, "{bench}");
            assert!(p50 > 0.0, "{bench}");
        }
    }
}

#[test]
fn compare_passes_differs_and_refuses() {
    let case = "tests/fixtures/group_norm_silu_12ch_12groups.safetensors";
    let report = json(cyanea().args(["compare", case]));
    let report = &report.as_array().unwrap()[0];
    assert_eq!(report["file"], case);
    assert_eq!(report["op"], "group_norm_silu");
    assert_eq!(report["device"], "cpu");
    assert_eq!(report["precision"], "fp32");
    assert_eq!(report["kernels"], serde_json::json!([]));
    assert_eq!(report["pass"], true);
    for tensor in report["tensors"].as_array().unwrap() {
        assert!(tensor["name"].is_string() && tensor["pass"] == true, "{tensor}");
        assert!(tensor["allowed_share"].as_f64().unwrap() <= 1.0, "{tensor}");
        assert!(tensor["max_abs_error"].as_f64().unwrap() >= 0.0, "{tensor}");
    }
    let emulated = json(cyanea().args(["compare", case, "--device", "emulated:v100"]));
    assert_eq!(emulated[0]["device"], "emulated:v100");
    assert!(!emulated[0]["kernels"].as_array().unwrap().is_empty(), "{emulated}");

    // Without a float16 twin nothing is judged in float16.
    let root = tempfile::tempdir().unwrap();
    let twin = "tests/fixtures/adamw_defaults.safetensors";
    let mut tensors = cyanea::formats::tensors::Tensors::read(twin).unwrap();
    assert!(tensors.remove("half.output.w").is_some());
    let unjudged = root.path().join("unjudged.safetensors");
    tensors.write(&unjudged).unwrap();
    let arguments = ["--device", "emulated:v100", "--precision", "fp16"];
    let assert = cyanea().arg("compare").arg(unjudged).args(arguments).assert().code(1);
    assert.stdout(predicate::str::contains("fp16: not judged")).stderr(predicate::str::contains(
        "1 of 1 cases have no value of the reference in this precision",
    ));

    // The same case with one expected value changed, and with a NaN.
    for (name, value) in [("changed", 1e3), ("nan", f32::NAN)] {
        let wrong = root.path().join(format!("{name}.safetensors"));
        let mut tensors = cyanea::formats::tensors::Tensors::read(case).unwrap();
        let y = tensors.remove("output.y").unwrap();
        let mut values = y.to_f32().unwrap();
        values[1] = value;
        tensors.insert("output.y", cyanea::formats::tensors::Tensor::f32(y.shape, values));
        tensors.write(&wrong).unwrap();
        let assert = cyanea().args(["compare", case]).arg(&wrong).assert();
        let output = assert.get_output();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{name}: {said}");
        assert!(said.starts_with("error: ") && said.contains(name), "{said}");
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(table.contains(&format!("{case}: group_norm_silu on cpu, fp32: pass")), "{table}");
        assert!(table.contains("DIFFERS"), "{table}");
    }
    // One that can't be read outweighs one that differs, and both are told.
    let changed = root.path().join("changed.safetensors");
    cyanea()
        .arg("compare")
        .arg(&changed)
        .arg("no-such-case.safetensors")
        .assert()
        .code(2)
        .stdout(predicate::str::contains("DIFFERS"))
        .stderr(predicate::str::contains("no-such-case.safetensors"));
}

const TINY: &str = "tests/fixtures/diffusers_ddpm_tiny";

/// Samples of a run of the command with `arguments`, as written by --raw.
fn samples(root: &Path, name: &str, arguments: &[&str]) -> Vec<f32> {
    let out = root.join(name);
    cyanea()
        .args(["sample", "--model", TINY, "--raw", "--out"])
        .arg(&out)
        .args(arguments)
        .assert()
        .success();
    let tensors = cyanea::formats::tensors::Tensors::read(out.join("samples.safetensors")).unwrap();
    let samples = tensors.get("samples").unwrap();
    assert_eq!(samples.shape[1..], [3, 16, 16]);
    samples.to_f32().unwrap()
}

#[test]
fn an_image_depends_on_its_seed_alone() {
    let root = tempfile::tempdir().unwrap();
    for sampler in ["ddpm", "ddim", "dpmpp-2m"] {
        let common = ["--sampler", sampler, "--steps", "4", "--eta", "0.5"];
        let common = &common[..if sampler == "ddim" { 6 } else { 4 }];
        let all = samples(
            root.path(),
            &format!("{sampler}-all"),
            &[common, &["--seeds", "3-7", "--batch", "2"]].concat(),
        );
        let one = samples(
            root.path(),
            &format!("{sampler}-one"),
            &[common, &["--seeds", "6", "--batch", "5"]].concat(),
        );
        let each = 3 * 16 * 16;
        assert_eq!(all.len(), 5 * each);
        assert_eq!(one, all[3 * each..4 * each], "{sampler}");
        assert_ne!(one, all[..each], "{sampler}");
    }
    let expected = ["00003.png", "00004.png", "00005.png", "00006.png", "00007.png"];
    let mut written = names(&root.path().join("ddim-all"));
    assert_eq!(written.split_off(5), ["samples.png", "samples.safetensors"]);
    assert_eq!(written, expected);
}

#[test]
fn given_noise_is_where_images_start() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("noise.safetensors");
    let values: Vec<f32> = (0..2 * 768).map(|i| ((i * 37 % 101) as f32 - 50.0) / 30.0).collect();
    let mut tensors = cyanea::formats::tensors::Tensors::new();
    tensors.insert("noise", cyanea::formats::tensors::Tensor::f32([2, 3, 16, 16], values.clone()));
    tensors.write(&path).unwrap();
    let path = path.display().to_string();
    let steps = ["--sampler", "ddim", "--steps", "3", "--noise", &path];
    let first = samples(root.path(), "first", &steps);
    let second = samples(root.path(), "second", &[&steps[..], &["--batch", "1"]].concat());
    assert_eq!(first, second);
    assert_eq!(first.len(), values.len());
    assert_ne!(first[..768], first[768..]);
}

#[test]
fn import_writes_todays_names() {
    use cyanea::formats::tensors::Tensors;
    let root = tempfile::tempdir().unwrap();
    let (old, new) = (root.path().join("old"), root.path().join("new"));
    // An old folder: everything in the root, and the attention's old names.
    fs::create_dir(&old).unwrap();
    for file in ["unet/config.json", "scheduler/scheduler_config.json"] {
        let name = Path::new(file).file_name().unwrap();
        fs::copy(Path::new(TINY).join(file), old.join(name)).unwrap();
    }
    let weights = "diffusion_pytorch_model.safetensors";
    let tensors = Tensors::read(Path::new(TINY).join("unet").join(weights)).unwrap();
    let renamed: Tensors = tensors
        .iter()
        .map(|(name, tensor)| {
            let name = name
                .replace("to_q", "query")
                .replace("to_k", "key")
                .replace("to_v", "value")
                .replace("to_out.0", "proj_attn");
            (name, tensor.clone())
        })
        .collect();
    assert!(renamed.names().any(|name| name.contains("proj_attn")));
    renamed.write(old.join(weights)).unwrap();

    cyanea().arg("import").arg(&old).assert().success().stdout(predicate::str::contains("is well"));
    assert_eq!(names(root.path()), ["old"]);
    cyanea().arg("import").arg(&old).arg("--out").arg(&new).assert().success();
    assert_eq!(names(&new), ["model_index.json", "scheduler", "unet"]);
    let written = Tensors::read(new.join("unet").join(weights)).unwrap();
    assert_eq!(written.iter().collect::<Vec<_>>(), tensors.iter().collect::<Vec<_>>());
}

/// Every byte goes into a pipe whose reader has left: no panic, no error.
#[cfg(unix)]
#[test]
fn a_closed_pipe_is_no_error() {
    use std::process::{Command, Stdio};
    for arguments in [
        &["completions", "bash"][..],
        &["--help"],
        &["doctor"],
        &["kernels", "--json"],
        &["plan"],
        &["config"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = Command::new(env!("CARGO_BIN_EXE_cyanea"))
            .args(arguments)
            .stdout(Stdio::from(writer))
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
    }
}
