use super::keys::{KEYS, SECTIONS};
use super::*;
use std::collections::BTreeSet;
use std::path::Path;
use toml::Table;

fn set(overrides: &[&str]) -> Result<Config> {
    let overrides: Vec<String> = overrides.iter().map(ToString::to_string).collect();
    Config::load(None, None, &overrides)
}

fn file(text: impl AsRef<[u8]>) -> Result<Config> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, text).unwrap();
    Config::load(None, Some(&path), &[])
}

fn message(text: &str) -> String {
    let said = file(text).expect_err(text).to_string();
    assert!(said.contains("run.toml: "), "{said}");
    said
}

#[test]
fn every_key_is_explained_and_every_explanation_has_a_key() {
    let all = Table::try_from(Config::default()).unwrap();
    let mut keys = BTreeSet::new();
    for (section, settings) in &all {
        keys.extend(settings.as_table().unwrap().keys().map(|key| format!("{section}.{key}")));
    }
    let explained: BTreeSet<String> = KEYS.iter().map(|(s, key, _)| format!("{s}.{key}")).collect();
    assert_eq!(keys, explained);
    assert_eq!(explained.len(), KEYS.len(), "no key twice");
    assert!(SECTIONS.iter().all(|(section, _)| all.contains_key(*section)));
    assert!(explanation("training", "steps").is_some() && explanation("data", "steps").is_none());
}

#[test]
fn what_is_written_reads_back() {
    for (name, ..) in PRESETS {
        let config = Config::load(Some(name), None, &["data.size=[64, 128]".into()]).unwrap();
        let text = config.to_toml().unwrap();
        assert_eq!(file(&text).unwrap(), config, "{text}");
    }
    let text = Config::default().to_toml().unwrap();
    assert_eq!(file(&text).unwrap(), Config::default());
    assert!(text.contains("# images a forward and backward pass\nbatch_size = 16\n"), "{text}");
    assert_eq!(file("").unwrap(), Config::default());
}

#[test]
fn presets_are_the_networks_that_are_promised() {
    let load = |name| Config::load(Some(name), None, &[]).unwrap();
    let (small, large, quick) = (load("ddpm-32"), load("ddpm-64"), load("quickstart"));
    assert_eq!(small.model.channels, [32, 64, 64]);
    assert_eq!(small.unet().sample_size, Some([32, 32]));
    let unet = large.unet();
    assert_eq!(unet.block_out_channels, [128, 256, 256, 256]);
    // 16×16 is two halvings below 64×64; on the way up it is the second level.
    assert_eq!(unet.down_block_types[2], DownBlock::Attention);
    assert_eq!(unet.up_block_types[1], UpBlock::Attention);
    assert_eq!(unet.heads(256), (32, 8));
    assert_eq!(quick.diffusion.prediction, Prediction::Velocity);
    assert_eq!(quick.lr_schedule().rate(49), 2e-3);
    assert_eq!(quick.seeds().unwrap().len(), 64);
    assert_eq!(quick.scheduler().prediction_type, Prediction::Velocity);
    let said = Config::load(Some("ddpm32"), None, &[]).unwrap_err().to_string();
    assert!(said.contains("ddpm32") && said.contains("ddpm-64"), "{said}");
}

#[test]
fn later_sources_win() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "[training]\nbatch_size = 8\nsteps = 70\n").unwrap();
    let overrides = ["training.steps=80".to_string(), "training.warmup_steps = 5".to_string()];
    let config = Config::load(Some("quickstart"), Some(&path), &overrides).unwrap();
    let training = config.training;
    assert_eq!((training.batch_size, training.steps, training.warmup_steps), (8, 80, 5));
    assert_eq!(training.learning_rate, 2e-3);
}

#[test]
fn overrides_are_toml_or_plain_text() {
    let config = set(&[
        "data.path=/some/where with spaces",
        "data.size=[16,24]",
        "training.lr_schedule=constant",
        "training.learning_rate=1e-3",
        "training.weight_decay=0",
        "sampling.seeds=5",
        "sampling.sampler=\"dpmpp-2m\"",
        "data.flip=false",
    ])
    .unwrap();
    assert_eq!(config.data.path, Path::new("/some/where with spaces"));
    assert_eq!(config.data.size, Size { height: 16, width: 24 });
    assert_eq!(config.training.lr_schedule, Decay::Constant);
    assert_eq!((config.training.learning_rate, config.training.weight_decay), (1e-3, 0.0));
    assert_eq!(config.seeds().unwrap(), [5]);
    assert_eq!(config.sampling.sampler, Sampler::DpmSolverPp2m);
    assert!(!config.data.flip);
    for text in ["steps=3", "training.steps", "=", "training", "training.steps 3"] {
        let said = set(&[text]).expect_err(text).to_string();
        assert!(said.contains("section.key=value"), "{said}");
    }
    let said = set(&["training.steps=1\nseed=2"]).unwrap_err().to_string();
    assert!(said.contains("--set"), "{said}");
}

#[test]
fn unknown_keys_come_with_the_nearest_known_one() {
    for (text, parts) in [
        ("[training]\nbatchsize = 3", ["`training.batchsize`", "did you mean `batch_size`?"]),
        ("[trainning]\nsteps = 3", ["`trainning`", "did you mean `training`?"]),
        ("[data]\nlearning_rate = 3", ["`data.learning_rate`", "belongs under [training]"]),
        ("batch_size = 3", ["`batch_size`", "belongs under [training]"]),
        ("training = 3", ["`training` is a section", "[training]"]),
        ("[training.steps]\nx = 3", ["`training.steps`", "optimizer steps"]),
    ] {
        let said = message(text);
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
    let said = set(&["training.epochs=3"]).unwrap_err().to_string();
    assert!(said.contains("--set training.epochs=3: there is no key"), "{said}");
}

#[test]
fn wrong_types_name_key_value_and_meaning() {
    for (text, parts) in [
        ("[training]\nbatch_size = \"many\"", ["`training.batch_size`", "many", "by default 16"]),
        ("[training]\nbatch_size = -3", ["`training.batch_size`", "-3", "images a forward"]),
        ("[training]\nsteps = 1.5", ["`training.steps`", "1.5", "optimizer steps"]),
        ("[training]\nbetas = [0.9]", ["`training.betas", "length 1", "AdamW"]),
        ("[model]\nchannels = [32, -1]", ["`model.channels[1]`", "-1", "channels of each level"]),
        ("[data]\nsize = \"big\"", ["`data.size`", "big", "[height, width]"]),
        ("[data]\nsize = -32", ["`data.size`", "-32", "[height, width]"]),
        ("[data]\nsize = [32, 32, 3]", ["`data.size`", "[32, 32, 3]", "[height, width]"]),
        ("[data]\ncrop = \"left\"", ["`data.crop`", "left", "centre"]),
        ("[sampling]\nsampler = \"euler\"", ["`sampling.sampler`", "euler", "dpmpp-2m"]),
        ("[data]\nflip = 1", ["`data.flip`", "1", "mirrored"]),
    ] {
        let said = message(text);
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}

#[test]
fn values_that_can_not_be_used_name_key_value_and_remedy() {
    for (text, parts) in [
        ("[data]\nsize = 0", ["data.size is 0", "1 to 8192"]),
        ("[data]\nsize = [32, 30]", ["32×30", "multiples of 4"]),
        ("[model]\nchannels = [32, 48, 64]", ["model.channels[1] = 48", "64 channels"]),
        ("[model]\nattention_head_dim = 5", ["model.channels[2] = 64", "head_dim = 5"]),
        ("[model]\nattention = [true]", ["model.attention is [true]", "each of the 3 levels"]),
        ("[model]\nchannels = []\nattention = []", ["[model]", "1 to 16 levels"]),
        ("[model]\nnorm_groups = 0", ["model.norm_groups is 0", "1 to"]),
        ("[model]\ndownsample_padding = 7", ["downsample_padding is 7", "0 or 1"]),
        ("[diffusion]\ntimesteps = 0", ["num_train_timesteps is 0", "1 to"]),
        ("[diffusion]\nbeta_start = 0.5", ["[diffusion]", "beta_start = 0.5"]),
        ("[training]\nsteps = 0", ["training.steps is 0", "1 to"]),
        ("[training]\nbatch_size = 0", ["training.batch_size is 0", "1 to"]),
        ("[training]\nbatch_size = 60000\n[data]\nsize=4096", ["batch_size is 60000", "2³¹"]),
        ("[training]\nlearning_rate = 0", ["training.learning_rate is 0", "positive"]),
        ("[training]\nlearning_rate = nan", ["training.learning_rate is NaN", "positive"]),
        ("[training]\nfinal_learning_rate = 1", ["final_learning_rate is 1", "at most"]),
        ("[training]\nwarmup_steps = 30000", ["warmup_steps is 30000", "at most"]),
        ("[training]\nbetas = [0.9, 1.0]", ["training.betas is 1", "below 1"]),
        ("[training]\nema_decay = 1", ["training.ema_decay is 1", "below 1"]),
        ("[training]\nminutes = -1", ["training.minutes is -1", "at least 0"]),
        ("[training]\nlog_every = 0", ["training.log_every is 0", "1 to"]),
        ("[sampling]\nsteps = 0", ["sampling.steps is 0", "1 to 1000"]),
        ("[sampling]\nsteps = 1001", ["sampling.steps is 1001", "1 to 1000"]),
        ("[sampling]\neta = 2", ["sampling.eta is 2", "0 to 1"]),
        ("[sampling]\nseeds = \"3-1\"", ["sampling.seeds", "backwards"]),
        ("[sampling]\nbatch = 0", ["sampling.batch is 0", "1 to"]),
        ("[diffusion]\nprocess = \"edm\"", ["diffusion.process", "\"edm2\""]),
        ("[diffusion]\np_mean = 1.0", ["diffusion.p_mean is for", "\"edm\""]),
        ("[model]\nclasses = 3", ["model.classes is for", "\"edm2\""]),
        ("[model]\ndropout = 1.0", ["model.dropout is 1", "below 1"]),
        ("[training]\nema_widths = [0.05, 0.3]", ["training.ema_widths", "0.2887"]),
        ("[training]\nema_widths = [0.1, 0.1]", ["training.ema_widths", "twice"]),
        ("[training]\nema_widths = [0.1]\nema_decay = 0.5", ["training.ema_decay", "leave it out"]),
        ("[training]\nlabel_dropout = 0.1", ["training.label_dropout is 0.1", "model.classes"]),
        ("[training]\naverage_every = 5", ["training.average_every", "ema_widths"]),
        ("[training]\nnon_finite = \"zero\"", ["training.max_grad_norm is 1", "set it to 0"]),
        ("[training]\ndecay_after = 5", ["training.decay_after", "inverse_sqrt"]),
        ("[sampling]\nsampler = \"heun\"", ["heun goes by noise levels", "ddpm, ddim"]),
        ("[sampling]\nrho = 3.0", ["sampling.rho is for", "heun"]),
        ("[sampling]\nlabels = \"0\"", ["sampling.labels", "without labels"]),
    ] {
        let said = message(text);
        for part in parts {
            assert!(said.contains(part), "{text}: {said}");
        }
    }
}

#[test]
fn the_source_of_a_bad_value_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.toml");
    std::fs::write(&path, "[training]\nsteps = 100\nlearning_rate = 1e-3\n").unwrap();
    let overrides = ["training.batch_size=0".to_string()];
    let said = Config::load(Some("ddpm-32"), Some(&path), &overrides).unwrap_err().to_string();
    assert!(said.starts_with("--set training.batch_size=0: training.batch_size is 0"), "{said}");
    let overrides = ["training.learning_rate=1e-3".into(), "data.size=30".into()];
    let said = Config::load(Some("ddpm-32"), Some(&path), &overrides).unwrap_err().to_string();
    assert!(said.starts_with("--set data.size=30"), "{said}");
}

#[test]
fn files_that_are_no_configuration_are_refused() {
    assert!(message("[training\nsteps = 3").contains("no valid TOML"));
    assert!(message("[data]\nsize = 3\nsize = 4").contains("no valid TOML"));
    let not_text = file([0xff, 0xfe]).unwrap_err().to_string();
    assert!(not_text.contains("run.toml: is no text"), "{not_text}");
    let huge = file(vec![b'#'; (1 << 20) + 1]).unwrap_err().to_string();
    assert!(huge.contains("longer than any configuration"), "{huge}");
    let absent = Config::load(None, Some(Path::new("/no/such.toml")), &[]).unwrap_err();
    assert!(absent.to_string().contains("/no/such.toml"));
}
