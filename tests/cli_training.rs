//! Training from the command line: what a run leaves, resuming, interruption, bad input.

#[path = "common/command.rs"]
mod command;
#[path = "common/failure.rs"]
mod failure;
#[path = "common/pictures.rs"]
mod pictures;

use assert_cmd::Command;
use command::cyanea;
use cyanea::formats::tensors::Tensors;
use failure::error;
use pictures::pictures;
use predicates::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// A network that trains in milliseconds.
const SMALL: &str = r#"
[data]
size = 8
held_out = 4
[model]
channels = [8, 8]
layers_per_block = 1
attention = [false, true]
attention_head_dim = 4
norm_groups = 4
[training]
steps = 6
batch_size = 4
log_every = 1
sample_every = 3
checkpoint_every = 2
keep_checkpoints = 3
[sampling]
steps = 2
seeds = "0-1"
"#;

struct Place {
    root: tempfile::TempDir,
    config: PathBuf,
    data: PathBuf,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        let (config, data) = (root.path().join("small.toml"), root.path().join("pictures"));
        fs::write(&config, SMALL).unwrap();
        pictures(&data);
        Place { root, config, data }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn train(&self, out: &Path) -> Command {
        let mut command = cyanea();
        command.arg("train").arg("--config").arg(&self.config);
        command.arg("--data").arg(&self.data).arg("--out").arg(out);
        command
    }
}

#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing from: {text}");
    }
}

fn weights(run: &Path) -> Tensors {
    Tensors::read(run.join("model/unet/diffusion_pytorch_model.safetensors")).unwrap()
}

#[test]
fn a_run_leaves_its_folder_and_can_be_sampled_and_exported() {
    let place = Place::new();
    let run = place.path("runs/small");
    let output = place.train(&run).assert().success().get_output().clone();
    let said = String::from_utf8(output.stdout).unwrap();
    holds(&said, &["trained 6 steps", "samples.png"]);
    let loss = said.lines().find_map(|line| line.strip_prefix("held-out loss ")).unwrap();
    assert!(loss.parse::<f64>().unwrap() > 0.0, "{said}");
    // More pictures held out than there are to spare: told.
    let notes = String::from_utf8(output.stderr).unwrap();
    holds(&notes, &["1 of the 12 images", "not 4", "held-out loss"]);
    for file in [
        "config.toml",
        "metrics.jsonl",
        "metrics.csv",
        "held_out.safetensors",
        "samples.png",
        "denoising.png",
        "denoising.gif",
        "model/model_index.json",
        "model/unet/config.json",
        "model/scheduler/scheduler_config.json",
        "samples/step-00000003.png",
        "checkpoints/step-00000002.safetensors",
        "checkpoints/step-00000004.safetensors",
        "checkpoints/step-00000006.safetensors",
    ] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    holds(&config, &["[data]", "steps = 6", &place.data.display().to_string()]);

    let (samples, model) = (place.path("samples"), place.path("model"));
    cyanea().arg("sample").arg("--model").arg(&run).arg("--out").arg(&samples).assert().success();
    // As many as the run's own settings say, and the grid.
    assert_eq!(fs::read_dir(&samples).unwrap().count(), 3);
    cyanea().arg("export").arg(&run).arg("--out").arg(&model).assert().success();
    let exported = Tensors::read(model.join("unet/diffusion_pytorch_model.safetensors")).unwrap();
    assert_eq!(exported, weights(&run));
    let early = place.path("early");
    let mut export = cyanea();
    export.arg("export").arg(&run).arg("--out").arg(&early);
    export.args(["--checkpoint", "2", "--no-ema"]).assert().success();
    cyanea().arg("import").arg(&early).assert().success();

    let refuse = |arguments: &[&str]| {
        let out = place.path("refused");
        let said = error(cyanea().arg("export").arg(&run).arg("--out").arg(&out).args(arguments));
        assert!(!out.exists());
        said
    };
    holds(&refuse(&["--checkpoint", "5"]), &["step 5", "2, 4, 6"]);
    fs::write(run.join("checkpoints/step-00000004.safetensors"), "damaged").unwrap();
    holds(&refuse(&["--checkpoint", "4"]), &["step-00000004.safetensors", "7 bytes"]);

    // Another run does not go into the same folder, and nothing in it changes.
    let before = fs::read(run.join("config.toml")).unwrap();
    holds(&error(&mut place.train(&run)), &["runs/small", "holds another run", "resume"]);
    assert_eq!(fs::read(run.join("config.toml")).unwrap(), before);
}

#[test]
fn a_resumed_run_is_the_same_run_with_any_number_of_threads() {
    let place = Place::new();
    let (whole, half) = (place.path("whole"), place.path("half"));
    place.train(&whole).env("RAYON_NUM_THREADS", "1").assert().success();
    place.train(&half).assert().success();
    assert_eq!(weights(&half), weights(&whole));

    // The last checkpoint of step 4: steps 5 and 6 are done again.
    fs::remove_file(half.join("checkpoints/step-00000006.safetensors")).unwrap();
    fs::remove_dir_all(half.join("model")).unwrap();
    let mut resume = cyanea();
    resume.arg("train").arg("--resume").arg(&half);
    resume.assert().success().stderr(predicate::str::contains("from step 4"));
    assert_eq!(weights(&half), weights(&whole));

    // Longer than it was planned; the folder says so afterwards.
    let mut longer = cyanea();
    longer.arg("train").arg("--resume").arg(&half).args(["--set", "training.steps=8"]);
    longer.assert().success().stdout(predicate::str::contains("trained 8 steps"));
    holds(&fs::read_to_string(half.join("config.toml")).unwrap(), &["steps = 8"]);

    // Other images make another run.
    fs::remove_file(place.data.join("3.png")).unwrap();
    holds(&error(cyanea().arg("train").arg("--resume").arg(&half)), &["other images"]);
    holds(&error(cyanea().arg("train").arg("--resume").arg(&place.data)), &["config.toml"]);
}

#[cfg(unix)]
/// A run in float16 goes on in float16 alone, with the loss scale that it had, and to the bit.
#[test]
fn a_run_in_float16_is_resumed_in_float16() {
    let place = Place::new();
    let half = |command: &mut Command| {
        command.args(["--precision", "fp16", "--device", "emulated:v100"]);
    };
    let run = place.path("run");
    let mut train = place.train(&run);
    half(&mut train);
    train.args(["--set", "training.steps=4"]).assert().success();
    let whole = weights(&run);

    // The last checkpoint of step 2: steps 3 and 4 are done again.
    fs::remove_file(run.join("checkpoints/step-00000004.safetensors")).unwrap();
    fs::remove_dir_all(run.join("model")).unwrap();
    let mut resume = cyanea();
    resume.arg("train").arg("--resume").arg(&run);
    holds(&error(&mut resume), &["step-00000002", "float16", "--precision fp16"]);
    half(&mut resume);
    resume.assert().success().stderr(predicate::str::contains("from step 2"));
    assert!(weights(&run) == whole, "the resumed run is another");

    let mut sample = cyanea();
    sample.arg("sample").arg("--model").arg(&run).arg("--out").arg(place.path("samples"));
    half(&mut sample);
    sample.assert().success();
    let mut cpu = cyanea();
    cpu.arg("sample").arg("--model").arg(&run).arg("--out").arg(place.path("none"));
    holds(&error(cpu.args(["--precision", "fp16"])), &["float32 only"]);
}

#[test]
fn an_interrupted_run_is_saved_and_goes_on() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    let place = Place::new();
    let run = place.path("run");
    let mut child = Command::new(env!("CARGO_BIN_EXE_cyanea"))
        .args(["train", "--set", "training.steps=1000000"])
        .args(["--set", "training.checkpoint_every=0", "--set", "training.sample_every=5"])
        .arg("--config")
        .arg(&place.config)
        .arg("--data")
        .arg(&place.data)
        .arg("--out")
        .arg(&run)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    assert!(lines.any(|line| line.contains("held-out loss 0.") || line.contains("loss 1.")));
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.unwrap().success());
    let rest: Vec<String> = lines.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("train --resume")), "{rest:?}");
    // The beginning, and where it was interrupted.
    let saved = checkpoints(&run);
    assert_eq!((saved.len(), saved[0]), (2, 0), "{saved:?}");
    let step = saved[1];
    let mut resume = cyanea();
    resume.arg("train").arg("--resume").arg(&run);
    resume.args(["--set", &format!("training.steps={}", step + 2)]);
    resume.assert().success().stdout(predicate::str::contains(format!("trained {} st", step + 2)));
}

/// Steps of a run's checkpoints, in order.
fn checkpoints(run: &Path) -> Vec<u64> {
    let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
    let step = |name: String| {
        name.trim_start_matches("step-").trim_end_matches(".safetensors").parse().unwrap()
    };
    let entries = fs::read_dir(run.join("checkpoints")).unwrap();
    let mut steps: Vec<u64> = entries.map(|entry| step(name(entry.unwrap()))).collect();
    steps.sort_unstable();
    steps
}

#[test]
fn what_can_not_be_resumed_is_left_as_it_was() {
    let place = Place::new();
    let run = place.path("run");
    place.train(&run).assert().success();
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    let resume = |change: &str| {
        let mut command = cyanea();
        command.arg("train").arg("--resume").arg(&run).args(["--set", change]);
        command
    };
    // Another network: its weights are not in the checkpoint.
    error(&mut resume("model.layers_per_block=2"));
    assert_eq!(fs::read_to_string(run.join("config.toml")).unwrap(), config);
    // A damaged newest checkpoint is passed over, and that is told.
    let newest = checkpoints(&run).pop().unwrap();
    let path = run.join(format!("checkpoints/step-{newest:08}.safetensors"));
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let warned = predicate::str::contains("passed over").and(predicate::str::contains("step-0"));
    resume("training.log_every=1").assert().success().stderr(warned);
    assert_eq!(checkpoints(&run).pop(), Some(newest));
}

#[test]
fn ruined_weights_never_become_a_checkpoint() {
    let place = Place::new();
    let run = place.path("run");
    let mut command = place.train(&run);
    for setting in ["learning_rate=1e30", "checkpoint_every=1", "max_grad_norm=0", "warmup_steps=0"]
    {
        command.args(["--set", &format!("training.{setting}")]);
    }
    let said = error(&mut command);
    holds(&said, &["step 2", "step-00000000.safetensors"]);
    assert_eq!(checkpoints(&run), [0]);
    assert!(!run.join("model").exists());
    let mut resume = cyanea();
    resume.arg("train").arg("--resume").arg(&run).args(["--set", "training.learning_rate=1e-4"]);
    resume.assert().success();
}

/// The command of a quick start of moments into a folder, after it has run.
fn quickstart(options: &[&str], run: &Path) -> Command {
    let mut command = cyanea();
    command.args(["quickstart", "--minutes", "0.01"]).args(options).arg("--out").arg(run);
    command.assert().success().stdout(predicate::str::is_match(r"held-out loss \d\.\d+").unwrap());
    command
}

#[test]
fn quickstart_ends_in_time_with_everything_in_place() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    let mut command = quickstart(&["--seed", "3"], &run);
    assert_eq!(fs::read_dir(run.join("data")).unwrap().count(), 512);
    let first = image::open(run.join("data/00000.png")).unwrap().into_rgb8();
    assert_eq!(first, cyanea::data::synthetic::render(3, 0, 32).unwrap());
    for file in ["samples.png", "denoising.png", "denoising.gif", "metrics.jsonl", "config.toml"] {
        assert!(run.join(file).is_file(), "{file} is missing");
    }
    let held_out = Tensors::read(run.join("held_out.safetensors")).unwrap();
    assert_eq!(held_out.get("x0").unwrap().shape, [64, 3, 32, 32]);
    assert_eq!(held_out.get("noise").unwrap().shape, [64, 3, 32, 32]);
    assert_eq!(held_out.get("timesteps").unwrap().shape, [64]);
    holds(&error(&mut command), &["holds another run"]);
    for minutes in ["0", "-1", "nan", "inf", "soon"] {
        let out = root.path().join("other");
        let mut command = cyanea();
        command.args(["quickstart", "--minutes", minutes, "--out"]).arg(&out);
        let assert = command.assert().code(2);
        let said = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
        holds(&said, &["error: ", "minutes"]);
        assert!(!out.exists());
    }
}

#[test]
fn quickstart_trains_the_edm2_network_too() {
    let root = tempfile::tempdir().unwrap();
    let run = root.path().join("run");
    quickstart(&["--model", "edm2"], &run);
    let config = fs::read_to_string(run.join("config.toml")).unwrap();
    holds(&config, &["kind = \"edm2\"", "prediction = \"epsilon\"", "betas = [0.9, 0.99]"]);
    assert!(run.join("samples.png").is_file());
    holds(&error(cyanea().args(["quickstart", "--model", "unet"])), &["unet", "edm2"]);
}

#[test]
fn bad_images_and_folders_are_refused_before_anything_is_written() {
    let place = Place::new();
    let (empty, texts, broken) = (place.path("empty"), place.path("texts"), place.path("broken"));
    for folder in [&empty, &texts, &broken] {
        fs::create_dir(folder).unwrap();
    }
    fs::write(texts.join("a.txt"), "not a picture").unwrap();
    fs::write(texts.join("b.md"), "# nor this").unwrap();
    fs::write(broken.join("zero.png"), "").unwrap();
    let png = fs::read(place.data.join("0.png")).unwrap();
    fs::write(broken.join("cut.png"), &png[..png.len() / 2]).unwrap();
    fs::write(broken.join("text.jpg"), "no picture").unwrap();
    let (missing, file) = (place.path("missing"), place.config.clone());
    let cases: [(&Path, &[&str]); 5] = [
        (&missing, &["missing", "no such folder"]),
        (&empty, &["empty", "no pictures"]),
        (&texts, &["texts", "no pictures"]),
        (&broken, &["broken", "zero.png", "cut.png", "text.jpg"]),
        (&file, &["small.toml", "is a file"]),
    ];
    let out = place.path("out");
    for (folder, words) in cases {
        let mut train = cyanea();
        train.arg("train").arg("--config").arg(&place.config).arg("--data").arg(folder);
        holds(&error(train.arg("--out").arg(&out)), words);
        assert!(!out.exists(), "{words:?}: something was written");
        let mut quickstart = cyanea();
        quickstart.args(["quickstart", "--minutes", "0.01", "--data"]).arg(folder);
        holds(&error(quickstart.arg("--out").arg(&out)), words);
        assert!(!out.exists(), "{words:?}: something was written");
    }
    // The configuration is checked before the images are.
    let mut train = cyanea();
    train.arg("train").args(["--set", "data.size=31", "--data"]).arg(&missing);
    holds(&error(train.arg("--out").arg(&out)), &["data.size", "31"]);
    // So is the place for the run, and the device.
    let mut train = place.train(&place.data);
    holds(&error(train.arg("--device").arg("cuda:99")), &["pictures", "not empty"]);
    let mut train = place.train(&out);
    error(train.arg("--device").arg("cuda:99"));
    assert!(!out.exists());
    holds(&error(cyanea().args(["train", "--out"]).arg(&out)), &["--data"]);
    holds(&error(&mut place.train(&place.config.join("below"))), &["small.toml"]);
    // Some bad among good ones: named, skipped, and the run goes on.
    fs::copy(broken.join("cut.png"), place.data.join("cut.png")).unwrap();
    let assert = place.train(&out).assert().success();
    let notes = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    holds(&notes, &["warning: ", "cut.png", "skipped"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_run_on_a_full_disk_says_so() {
    let place = Place::new();
    let said = error(&mut place.train(Path::new("/dev/full/run")));
    holds(&said, &["/dev/full"]);
    // Files can't grow beyond a limit, as on a disk that fills up: first the held-out images don't
    // fit, and nothing stays; then a checkpoint, and the ones before stay.
    let limited = |blocks: u32, arguments: &[&std::ffi::OsStr]| {
        let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
        let mut command = Command::new("sh");
        command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_cyanea")).args(arguments);
        error(&mut command)
    };
    let run = place.path("run");
    let train = place.train(&run);
    let arguments: Vec<&std::ffi::OsStr> = train.get_args().collect();
    holds(&limited(100, &arguments), &["held_out.safetensors"]);
    assert!(!run.exists());

    place.train(&run).assert().success();
    let size = fs::metadata(run.join("checkpoints/step-00000006.safetensors")).unwrap().len();
    let resume = ["train", "--resume", run.to_str().unwrap(), "--set", "training.steps=9"];
    let resume: Vec<&std::ffi::OsStr> = resume.iter().map(|a| a.as_ref()).collect();
    let said = limited((size / 1024) as u32, &resume);
    holds(&said, &["step-00000008.safetensors"]);
    let mut left: Vec<String> = fs::read_dir(run.join("checkpoints"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    let expected = [2, 4, 6].map(|step| format!("step-{step:08}.safetensors"));
    assert_eq!(left, expected);
    cyanea().args(resume).assert().success();
}
