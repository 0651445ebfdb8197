//! Bad input: one clear error that names the file, the value and the remedy; exit code 2; nothing
//! half-written.

#[path = "common/command.rs"]
mod command;

use assert_cmd::Command;
use command::cyanea;
use cyanea::formats::tensors::{Tensor, Tensors};
use std::fs;
use std::path::Path;

/// Runs the command, expects code 2, and returns its error, which must be one line.
fn error(command: &mut Command) -> String {
    let assert = command.assert().code(2);
    let said = String::from_utf8(assert.get_output().stderr.clone()).unwrap();
    assert!(said.starts_with("error: ") && said.trim_end().lines().count() == 1, "{said}");
    said
}

fn is_empty(folder: &Path) -> bool {
    fs::read_dir(folder).unwrap().next().is_none()
}

/// Whether the text holds each of the words.
#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing from: {text}");
    }
}

#[test]
fn synth_refuses_a_folder_that_holds_something() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("mine.txt"), "mine").unwrap();
    let said = error(cyanea().args(["synth", "--count", "2", "--out"]).arg(root.path()));
    holds(&said, &[&root.path().display().to_string(), "already holds", "choose another folder"]);
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);

    let file = root.path().join("mine.txt");
    holds(&error(cyanea().args(["synth", "--out"]).arg(&file)), &["mine.txt", "is a file"]);
    holds(&error(cyanea().args(["synth", "--out"]).arg(file.join("below"))), &["mine.txt"]);
    assert_eq!(fs::read_to_string(file).unwrap(), "mine");
}

#[test]
fn synth_refuses_sizes_and_counts_that_make_no_sense() {
    let root = tempfile::tempdir().unwrap();
    for (option, value) in [
        ("--size", "0"),
        ("--size", "-3"),
        ("--size", "7"),
        ("--size", "50000"),
        ("--size", "large"),
        ("--count", "0"),
        ("--count", "-1"),
        ("--seed", "-1"),
        ("--out", ""),
    ] {
        let out = root.path().join("out");
        let mut command = cyanea();
        command.arg("synth").args([option, value]);
        if option != "--out" {
            command.arg("--out").arg(&out);
        }
        let assert = command.assert().code(2);
        let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        holds(&said, &["error: ", option.trim_start_matches("--"), value]);
        assert!(is_empty(root.path()), "{option} {value}");
    }
}

/// Each subcommand that takes a configuration, with what else it needs.
fn with_configuration() -> Vec<Command> {
    let mut train = cyanea();
    train.args(["train", "--data", "no-such-pictures", "--out", "no-such-run"]);
    let mut all = vec![train];
    for subcommand in [&["config"][..], &["plan"], &["bench", "step"]] {
        let mut command = cyanea();
        command.args(subcommand);
        all.push(command);
    }
    all
}

#[test]
fn configurations_are_refused_with_source_key_value_and_remedy() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("bad.toml");
    for (text, words) in [
        ("[training]\nbatch_size = \"many\"\n", &["training.batch_size", "many"][..]),
        ("[training]\nlearning_rat = 1e-3\n", &["training.learning_rat`", "`learning_rate`"]),
        ("[trainin]\nsteps = 5\n", &["`trainin`", "`training`"]),
        ("[data]\nsize = -32\n", &["data.size", "-32"]),
        ("[data]\nsize = 0\n", &["data.size", "0"]),
        ("[training]\nbatch_size = 0\n", &["training.batch_size", "0"]),
        ("[training]\nbatch_size = -4\n", &["training.batch_size", "-4"]),
        ("[model]\nnorm_groups = 12\n", &["norm_groups", "12", "32"]),
        ("[data]\nsize = 30\n", &["data.size", "30", "32"]),
        ("[training]\nlearning_rate = nan\n", &["training.learning_rate"]),
        ("[training]\nsteps = 1e3\n", &["training.steps"]),
        ("training.steps = \n", &["TOML"]),
        ("\u{0}", &["TOML"]),
    ] {
        fs::write(&file, text).unwrap();
        for mut command in with_configuration() {
            let assert = command.arg("--config").arg(&file).assert().code(2);
            let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
            assert!(said.starts_with("error: "), "{said}");
            holds(&said, words);
            holds(&said, &["bad.toml"]);
            assert!(assert.get_output().stdout.is_empty());
        }
    }
    for (option, value, words) in [
        ("--config", "no-such.toml", &["no-such.toml"][..]),
        ("--config", "/", &["/"]),
        ("--preset", "ddpm-33", &["ddpm-33", "ddpm-32"]),
        ("--set", "training.steps", &["--set training.steps", "section.key=value"]),
        ("--set", "training.steps=no", &["training.steps", "no"]),
        ("--set", "training.stepps=5", &["stepps", "`steps`"]),
        ("--set", "data.size=33", &["data.size", "33", "36"]),
        ("--set", "sampling.seeds=5-1", &["sampling.seeds", "backwards"]),
    ] {
        for mut command in with_configuration() {
            holds(&error(command.args([option, value])), words);
        }
    }
    fs::write(&file, "[training]\nsteps = 5\n").unwrap();
    for mut command in with_configuration() {
        let both = command.args(["--preset", "ddpm-32", "--config"]).arg(&file);
        let said = both.assert().code(2).get_output().stderr.clone();
        let said = String::from_utf8_lossy(&said);
        holds(&said, &["--preset", "--config", "cannot be used with"]);
    }
    assert!(!Path::new("no-such-run").exists());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1, "only the file itself");
}

/// A copy of the model that diffusers wrote.
fn tiny_model(to: &Path) {
    let from = Path::new("tests/fixtures/diffusers_ddpm_tiny");
    for file in ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json", WEIGHTS]
    {
        fs::create_dir_all(to.join(file).parent().unwrap()).unwrap();
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
}

const WEIGHTS: &str = "unet/diffusion_pytorch_model.safetensors";

/// Damage to a model folder, and words that the error must have.
type Damage = (&'static str, fn(&Path), &'static [&'static str]);

fn change_weights(model: &Path, change: impl FnOnce(&mut Tensors)) {
    let path = model.join(WEIGHTS);
    let mut tensors = Tensors::read(&path).unwrap();
    change(&mut tensors);
    tensors.write(path).unwrap();
}

#[test]
fn damaged_models_are_refused() {
    let damages: &[Damage] = &[
        ("missing folder", |m| fs::remove_dir_all(m).unwrap(), &["model", "does not exist"]),
        ("no weights", |m| fs::remove_file(m.join(WEIGHTS)).unwrap(), &[WEIGHTS, "missing"]),
        (
            "no scheduler",
            |m| fs::remove_dir_all(m.join("scheduler")).unwrap(),
            &["scheduler_config.json", "missing", "save_pretrained"],
        ),
        (
            "no configuration",
            |m| fs::remove_file(m.join("unet/config.json")).unwrap(),
            &["unet/config.json", "missing", "save_pretrained"],
        ),
        ("empty file", |m| fs::write(m.join(WEIGHTS), "").unwrap(), &[WEIGHTS, "0 bytes"]),
        (
            "truncated",
            |m| {
                let bytes = fs::read(m.join(WEIGHTS)).unwrap();
                fs::write(m.join(WEIGHTS), &bytes[..bytes.len() / 2]).unwrap();
            },
            &[WEIGHTS, "safetensors"],
        ),
        (
            "header of 2^60 bytes",
            |m| {
                let mut bytes = fs::read(m.join(WEIGHTS)).unwrap();
                bytes[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
                fs::write(m.join(WEIGHTS), bytes).unwrap();
            },
            &[WEIGHTS, "1152921504606846976"],
        ),
        (
            "a tensor too few",
            |m| change_weights(m, |t| drop(t.remove("conv_in.bias"))),
            &[WEIGHTS, "conv_in.bias", "lacks"],
        ),
        (
            "a tensor too many",
            |m| change_weights(m, |t| drop(t.insert("more", Tensor::f32([1], vec![0.0])))),
            &[WEIGHTS, "`more`"],
        ),
        (
            "a wrong shape",
            |m| {
                change_weights(m, |t| {
                    drop(t.insert("conv_in.bias", Tensor::f32([9], vec![0.0; 9])))
                })
            },
            &[WEIGHTS, "conv_in.bias", "[9]", "[8]"],
        ),
        (
            "integers",
            |m| change_weights(m, |t| drop(t.insert("conv_in.bias", Tensor::i64([8], vec![0; 8])))),
            &[WEIGHTS, "conv_in.bias", "I64"],
        ),
        (
            "a NaN",
            |m| {
                let nan = Tensor::f32([8], vec![f32::NAN; 8]);
                change_weights(m, |t| drop(t.insert("conv_in.bias", nan)));
            },
            &[WEIGHTS, "conv_in.bias", "NaN"],
        ),
        (
            "another network",
            |m| fs::write(m.join("unet/config.json"), "{\"in_channels\": -3}").unwrap(),
            &["config.json", "in_channels", "-3"],
        ),
    ];
    for (name, damage, words) in damages {
        let root = tempfile::tempdir().unwrap();
        let (model, out) = (root.path().join("model"), root.path().join("out"));
        tiny_model(&model);
        damage(&model);
        for mut command in [
            {
                let mut import = cyanea();
                import.arg("import").arg(&model);
                import
            },
            {
                let mut sample = cyanea();
                sample.args(["sample", "--steps", "2", "--model"]).arg(&model);
                sample
            },
        ] {
            let said = error(command.arg("--out").arg(&out));
            holds(&said, words);
            assert!(!out.exists(), "{name}: something was written");
        }
    }
}

#[test]
fn sampling_refuses_what_it_can_not_do() {
    let root = tempfile::tempdir().unwrap();
    let (model, out) = (root.path().join("model"), root.path().join("out"));
    tiny_model(&model);
    let noise = |name: &str, tensor: &str, shape: [usize; 4], value: f32| {
        let path = root.path().join(name);
        let mut tensors = Tensors::new();
        tensors.insert(tensor, Tensor::f32(shape, vec![value; shape.iter().product()]));
        tensors.write(&path).unwrap();
        path.display().to_string()
    };
    let good = noise("good.safetensors", "noise", [2, 3, 16, 16], 0.5);
    let wrong = noise("wrong.safetensors", "noise", [2, 3, 16, 17], 0.5);
    let other = noise("other.safetensors", "x", [2, 3, 16, 16], 0.5);
    let infinite = noise("infinite.safetensors", "noise", [1, 3, 16, 16], f32::INFINITY);
    for (arguments, words) in [
        (&["--seeds", "3-1"][..], &["3-1", "backwards"][..]),
        (&["--seeds", "-1"], &["-1"]),
        (&["--seeds", "0-18446744073709551615"], &["million"]),
        (&["--steps", "0"], &["0", "1000"]),
        (&["--steps", "5000"], &["5000", "1000"]),
        (&["--sampler", "euler"], &["euler", "ddim"]),
        (&["--eta", "2"], &["eta", "2"]),
        (&["--batch", "0"], &["batch", "0"]),
        (&["--size", "15"], &["15", "16"]),
        (&["--size", "large"], &["large"]),
        (&["--size", "0"], &["0"]),
        (&["--noise", "no-such.safetensors"], &["no-such.safetensors"]),
        (&["--noise", &wrong], &["wrong.safetensors", "noise", "17"]),
        (&["--noise", &other], &["other.safetensors", "noise"]),
        (&["--noise", &infinite], &["infinite.safetensors", "NaN or infinite"]),
        (&["--noise", &good, "--seeds", "0-4"], &["good.safetensors", "2", "5"]),
        (&["--device", "cuda:99"], &["error"]),
        (&["--device", "tpu"], &["tpu", "cpu"]),
    ] {
        let steps: &[&str] = if arguments[0] == "--steps" { &[] } else { &["--steps", "2"] };
        let assert = cyanea()
            .arg("sample")
            .args(steps)
            .arg("--model")
            .arg(&model)
            .arg("--out")
            .arg(&out)
            .args(arguments)
            .assert()
            .code(2);
        let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        assert!(said.starts_with("error: "), "{said}");
        holds(&said, words);
        assert!(!out.exists(), "{arguments:?}: something was written");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_an_error() {
    // Output that can't be written anywhere: /dev/full always says that the disk is full.
    for arguments in [&["completions", "bash"][..], &["doctor"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_cyanea"))
            .args(arguments)
            .stdout(full)
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        holds(&said, &["error: standard output: ", "disk is full"]);
    }
    // Folders can't be made there.
    let said = error(cyanea().args(["synth", "--out", "/dev/full/pictures"]));
    holds(&said, &["/dev/full"]);
}
