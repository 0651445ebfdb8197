//! EDM2 under noise levels, from the command line: training with its recipe, averages, Heun's method,
//! labels, bad input.

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
use std::fs;
use std::path::{Path, PathBuf};

/// A network that trains in milliseconds, with everything that the recipe has.
const SMALL: &str = r#"
[data]
size = 8
held_out = 4
[model]
kind = "edm2"
channels = [8, 16]
layers_per_block = 1
attention = [false, true]
attention_head_dim = 8
dropout = 0.1
classes = 2
[diffusion]
process = "edm"
[training]
steps = 8
batch_size = 4
accumulate = 2
learning_rate = 0.01
lr_schedule = "inverse_sqrt"
decay_after = 4
warmup_steps = 2
betas = [0.9, 0.99]
weight_decay = 0.0
max_grad_norm = 0.0
non_finite = "zero"
ema_widths = [0.05, 0.1]
average_every = 1
log_every = 1
sample_every = 0
checkpoint_every = 4
[sampling]
sampler = "heun"
steps = 3
seeds = "0-3"
"#;

struct Place {
    root: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("small.toml"), SMALL).unwrap();
        fs::create_dir(root.path().join("pictures")).unwrap();
        for class in ["first", "second"] {
            pictures(&root.path().join("pictures").join(class));
        }
        Place { root }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn train(&self, out: &str, settings: &[&str]) -> Command {
        let mut command = cyanea();
        command.arg("train").arg("--config").arg(self.path("small.toml"));
        command.arg("--data").arg(self.path("pictures")).arg("--out").arg(self.path(out));
        for setting in settings {
            command.arg("--set").arg(setting);
        }
        command
    }

    /// Samples of a model as one vector.
    fn sample(&self, model: &str, options: &[&str]) -> Vec<f32> {
        let out = self.root.path().join("samples");
        let mut command = cyanea();
        command.args(["sample", "--raw", "--model"]).arg(self.path(model)).args(options);
        command.arg("--out").arg(&out).assert().success();
        let tensors = Tensors::read(out.join("samples.safetensors")).unwrap();
        fs::remove_dir_all(out).unwrap();
        tensors.get("samples").unwrap().to_f32().unwrap()
    }
}

fn bytes(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// Weights are kept as the optimizer left them and normalised in the next step, so a run that was
/// interrupted between must not differ.
#[test]
fn a_resumed_run_has_the_same_bits_and_so_have_its_averages() {
    let place = Place::new();
    place.train("whole", &[]).assert().success();
    place.train("parts", &["training.steps=4"]).assert().success();
    let mut resume = cyanea();
    resume.args(["train", "--set", "training.steps=8", "--resume"]).arg(place.path("parts"));
    resume.assert().success();
    for file in ["averages/step-00000008.safetensors", "averages/step-00000005.safetensors"] {
        assert_eq!(bytes(place.path("whole").join(file)), bytes(place.path("parts").join(file)));
    }
    let weights = "model/unet/diffusion_pytorch_model.safetensors";
    assert_eq!(bytes(place.path("whole").join(weights)), bytes(place.path("parts").join(weights)));
    assert_eq!(
        bytes(place.path("whole/samples.png")),
        bytes(place.path("parts/samples.png")),
        "the pictures differ"
    );
}

#[test]
fn averages_are_made_from_snapshots() {
    let place = Place::new();
    place.train("run", &["training.steps=12"]).assert().success();
    let ema = |std: &str, out: &str, more: &[&str]| {
        let mut command = cyanea();
        command.arg("ema").arg(place.path("run")).args(["--std", std]).args(more);
        command.arg("--out").arg(place.path(out));
        command
    };
    let read = |model: &str| {
        let file = place.path(model).join("unet/diffusion_pytorch_model.safetensors");
        Tensors::read(file).unwrap()
    };
    // The first width is what a run exports.
    ema("0.05", "again", &[]).assert().success();
    let (tracked, again) = (read("run/model"), read("again"));
    assert_eq!(tracked.names().collect::<Vec<_>>(), again.names().collect::<Vec<_>>());
    let difference = |a: &Tensors, b: &Tensors| {
        let pairs = a.iter().map(|(name, tensor)| (tensor, b.get(name).unwrap()));
        pairs
            .flat_map(|(a, b)| a.to_f32().unwrap().into_iter().zip(b.to_f32().unwrap()))
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max)
    };
    assert!(difference(&tracked, &again) <= 1e-5);
    ema("0.15", "wider", &[]).assert().success();
    assert!(difference(&tracked, &read("wider")) > 1e-3);
    ema("0.1", "earlier", &["--step", "6"]).assert().success();
    for (std, more, part) in [
        ("0.3", &[][..], "0.2887"),
        ("0", &[], "0.2887"),
        ("0.1", &["--step", "13"], "there are: 1, 2"),
    ] {
        let said = error(&mut ema(std, "nothing", more));
        assert!(said.contains(part), "{said}");
        assert!(!place.path("nothing").exists());
    }
    fs::write(place.path("run/averages/step-00000003.safetensors"), "broken").unwrap();
    let said = error(&mut ema("0.1", "nothing", &[]));
    assert!(said.contains("step-00000003"), "{said}");
}

#[test]
fn images_depend_on_seed_and_label_alone() {
    let place = Place::new();
    place.train("run", &[]).assert().success();
    let one = ["--steps", "4", "--seeds", "5-6", "--labels", "1"];
    let both = place.sample("run", &one);
    let half = both.len() / 2;
    let alone = place.sample("run", &[&one[..], &["--batch", "1"]].concat());
    assert_eq!(both, alone, "an image depends on its batch");
    let other = place.sample("run", &["--steps", "4", "--seeds", "5-6", "--labels", "0,1"]);
    assert_ne!(both[..half], other[..half], "the label has no effect");
    assert_eq!(both[half..], other[half..], "an image depends on its neighbour's label");
    let emulated = place.sample("run", &[&one[..], &["--device", "emulated:v100"]].concat());
    for (got, want) in emulated.iter().zip(&both) {
        assert!((got - want).abs() <= 1e-3, "{got} is not {want}");
    }
}

/// At 1 the guide has no say, and what a guide gives is what it gives alone at 0.
#[test]
fn guidance_leads_from_the_guide_to_the_model_and_beyond() {
    let place = Place::new();
    place.train("run", &[]).assert().success();
    place.train("weak", &["training.steps=3", "model.channels=[8, 8]"]).assert().success();
    let plain = ["--seeds", "5-6", "--labels", "1"];
    let sample = |model, more: &[&str]| place.sample(model, &[&plain[..], more].concat());
    let close = |a: &[f32], b: &[f32]| {
        let largest = a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(largest <= 1e-4, "{largest}");
    };
    let weak = place.path("weak");
    let guide = ["--guide", weak.to_str().unwrap()];
    let (strong, of_guide) = (sample("run", &[]), sample("weak", &[]));
    close(&sample("run", &["--guidance", "1"]), &strong);
    close(&sample("run", &[&guide[..], &["--guidance", "1"]].concat()), &strong);
    close(&sample("run", &[&guide[..], &["--guidance", "0"]].concat()), &of_guide);
    let free = sample("run", &["--guidance", "3"]);
    let beyond = sample("run", &[&guide[..], &["--guidance", "3"]].concat());
    assert!(free != strong && beyond != strong && free != beyond);
    let emulated =
        sample("run", &[&guide[..], &["--guidance", "3", "--device", "emulated:h100"]].concat());
    for (got, want) in emulated.iter().zip(&beyond) {
        assert!((got - want).abs() <= 2e-3, "{got} is not {want}");
    }
    place.train("unlabelled", &["model.classes=0", "training.steps=2"]).assert().success();
    let mut command = cyanea();
    command.args(["sample", "--guidance", "2", "--model"]).arg(place.path("unlabelled"));
    let said = error(command.arg("--out").arg(place.path("none")));
    assert!(said.contains("trained with labels"), "{said}");
}

#[test]
fn what_can_not_be_is_refused() {
    let place = Place::new();
    for (settings, parts) in [
        (&["sampling.sigma_min=0.0"][..], &["sigma_min is 0", "positive"]),
        (&["sampling.sigma_min=90.0"], &["sigma_min is 90", "sigma_max = 80"]),
        (&["sampling.churn=-1.0"], &["churn is -1", "at least 0"]),
        (&["sampling.sampler=ddim"], &["ddim", "take heun"]),
        (&["model.channels=[8, 12]"], &["model.channels[1] = 12", "head_dim = 8"]),
        (&["training.ema_widths=[0.4]"], &["0.4", "0.2887"]),
        (&["model.classes=3"], &["model.classes is 3", "2 folders (first, second)"]),
        (&["sampling.labels=0-3"], &["no class 2", "0 to 1"]),
        (&["diffusion.p_std=0.0"], &["p_std is 0", "above 0"]),
    ] {
        let said = error(&mut place.train("none", settings));
        for part in parts {
            assert!(said.contains(part), "{settings:?}: {said}");
        }
        assert!(!place.path("none").exists());
    }
    fs::write(place.path("pictures/stray.png"), bytes(first_picture(&place))).unwrap();
    let said = error(&mut place.train("none", &[]));
    assert!(said.contains("stray.png") && said.contains("no folder of its own"), "{said}");
}

fn first_picture(place: &Place) -> PathBuf {
    fs::read_dir(place.path("pictures/first")).unwrap().next().unwrap().unwrap().path()
}
