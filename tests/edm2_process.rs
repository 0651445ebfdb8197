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
use cyanea::diffusion::{EdmProcess, Process};
use cyanea::formats::diffusers;
use cyanea::formats::tensors::{Tensor, Tensors};
use cyanea::models::{Edm2Config, Edm2Unet, NetworkConfig};
use cyanea::training::init::initial;
use cyanea::training::run::to_tensors;
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

/// Averages follow the images that were seen, in slots that have numbers and no names.
#[test]
fn a_run_goes_on_with_its_own_averages_alone() {
    let place = Place::new();
    place.train("run", &["training.steps=4"]).assert().success();
    let config = bytes(place.path("run/config.toml"));
    for (setting, parts) in [
        ("training.ema_widths=[0.1, 0.05]", ["ema_widths was [0.05, 0.1]", "[0.1, 0.05]"]),
        ("training.ema_widths=[0.05]", ["ema_widths was [0.05, 0.1]", "[0.05]"]),
        ("training.batch_size=2", ["batch_size was 4", "2"]),
        ("training.accumulate=1", ["accumulate was 2", "1"]),
    ] {
        let mut resume = cyanea();
        resume.args(["train", "--set", setting, "--resume"]).arg(place.path("run"));
        let said = error(&mut resume);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
        assert_eq!(bytes(place.path("run/config.toml")), config);
    }
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
        ("0.001", &[], "out of reach"),
        ("0.1", &["--step", "13"], "there are: 1, 2"),
    ] {
        let said = error(&mut ema(std, "nothing", more));
        assert!(said.contains(part), "{said}");
        assert!(!place.path("nothing").exists());
    }
    let mut beside = cyanea();
    beside.arg("ema").arg(place.path("run")).args(["--std", "0.075"]).assert().success();
    assert!(place.path("run/ema-0.075/model_index.json").is_file());
    let late = place.path("run/averages/step-00000012.safetensors");
    let mut snapshot = Tensors::read(&late).unwrap();
    snapshot.insert("average0.more", Tensor::f32([1], vec![0.0]));
    snapshot.write(&late).unwrap();
    let said = error(&mut ema("0.1", "nothing", &[]));
    assert!(said.contains("`average0.more`"), "{said}");
    fs::copy(place.path("run/averages/step-00000003.safetensors"), &late).unwrap();
    let said = error(&mut ema("0.1", "nothing", &[]));
    assert!(said.contains("step-00000012") && said.contains("another run"), "{said}");
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
        (&["sampling.sigma_min=1e-46"], &["sigma_min is 1e-46", "1e-10"]),
        (&["sampling.sigma_max=1e39"], &["sigma_max is 1e39", "1e10"]),
        (&["sampling.rho=1e-9"], &["rho is 1e-9", "7 is usual"]),
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

/// Latents are no pictures, and can be written as numbers all the same.
#[test]
fn networks_on_latents_are_sampled_as_numbers() {
    let place = Place::new();
    let config = Edm2Config {
        img_resolution: 8,
        img_channels: 4,
        model_channels: 8,
        channel_mult: vec![1.0],
        attn_resolutions: vec![],
        channels_per_head: 8,
        num_blocks: 1,
        ..Edm2Config::default()
    };
    let network = Edm2Unet::new(config.clone()).unwrap();
    let weights = to_tensors(&initial(&network, [8, 8], 0).unwrap());
    let process = Process::Edm(EdmProcess::default());
    diffusers::write(place.path("latents"), &NetworkConfig::Edm2(config), &process, &weights)
        .unwrap();
    let options = ["--seeds", "1-3", "--size", "4x8", "--set", "sampling.rho=5", "--steps", "3"];
    let samples = place.sample("latents", &options);
    assert_eq!(samples.len(), 3 * 4 * 4 * 8);
    assert!(samples.iter().all(|value| value.is_finite()));
    let other = place.sample("latents", &[&options[..4], &["--steps", "3"]].concat());
    assert!(samples != other, "rho has no effect");
    for (options, part) in [
        (&[][..], "--raw"),
        (&["--raw", "--eta", "0.5"], "for ddim, not for heun"),
        (&["--raw", "--set", "data.size=8"], "no setting of [sampling]"),
        (&["--raw", "--labels", "-1"], "-1"),
    ] {
        let mut command = cyanea();
        command.args(["sample", "--model"]).arg(place.path("latents")).args(options);
        let said = error(command.arg("--out").arg(place.path("none")));
        assert!(said.contains(part), "{options:?}: {said}");
    }
}

/// Cases whose noise levels or inputs can't be.
#[test]
fn cases_that_can_not_be_are_refused() {
    let place = Place::new();
    let refused = |fixture: &str, change: &dyn Fn(&mut Tensors)| {
        let mut case = Tensors::read(Path::new("tests/fixtures").join(fixture)).unwrap();
        change(&mut case);
        let file = place.path("case.safetensors");
        case.write(&file).unwrap();
        let mut command = cyanea();
        error(command.arg("compare").arg(&file))
    };
    for sigma in [0.0, -1.0, f32::INFINITY] {
        let said = refused("edm2_precond_tiny.safetensors", &|case| {
            let shape = case.get("input.sigma").unwrap().shape.clone();
            let count = shape.iter().product();
            case.insert("input.sigma", Tensor::f32(shape, vec![sigma; count]));
        });
        assert!(said.contains(&format!("`sigma` is {sigma}")), "{said}");
    }
    let extra = |case: &mut Tensors| {
        case.insert("input.labels", Tensor::f32([1, 2], vec![0.0; 2]));
    };
    let said = refused("edm_heun_tiny.safetensors", &extra);
    assert!(said.contains("`input.labels`") && said.contains("edm_heun"), "{said}");
    let said = refused("edm2_precond_labels.safetensors", &|case| {
        let batch = case.get("input.labels").unwrap().shape[0];
        let gradients = case.names().filter(|name| name.contains("grad_input.labels"));
        for name in gradients.map(String::from).collect::<Vec<_>>() {
            case.remove(&name);
        }
        case.insert("input.labels", Tensor::f32([batch, 9], vec![0.0; 9 * batch]));
    });
    assert!(said.contains("one-hot rows [B, "), "{said}");
}

fn first_picture(place: &Place) -> PathBuf {
    fs::read_dir(place.path("pictures/first")).unwrap().next().unwrap().unwrap().path()
}
