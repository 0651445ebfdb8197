use super::*;
use crate::diffusion::Prediction;
use crate::diffusion::SchedulerConfig;
use crate::formats::tensors::Tensor;
use crate::models::Edm2Config;

fn ddpm() -> Process {
    Process::Ddpm(SchedulerConfig::default())
}

fn config() -> NetworkConfig {
    let text = r#"{"block_out_channels": [8, 16], "norm_num_groups": 4, "sample_size": [8, 12],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}"#;
    let value: Value = serde_json::from_str(text).unwrap();
    NetworkConfig::from_json(value.as_object().unwrap()).unwrap()
}

fn weights(names: &[&str]) -> Tensors {
    names.iter().map(|name| (name.to_string(), Tensor::f32([2], vec![0.5, -1.0]))).collect()
}

fn written() -> (tempfile::TempDir, PathBuf) {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("a/model");
    let scheduler =
        SchedulerConfig { prediction_type: Prediction::Velocity, ..SchedulerConfig::default() };
    let weights = weights(&["conv_in.weight", "mid_block.attentions.0.to_out.0.bias"]);
    write(&folder, &config(), &Process::Ddpm(scheduler.clone()), &weights).unwrap();
    (place, folder)
}

fn refused(folder: &Path) -> String {
    read(folder).expect_err("a broken folder").to_string()
}

#[test]
fn what_is_written_is_read_back() {
    let (_place, folder) = written();
    let model = read(&folder).unwrap();
    assert_eq!(model.unet, config());
    assert!(
        matches!(&model.process, Process::Ddpm(s) if s.prediction_type == Prediction::Velocity)
    );
    assert_eq!(model.weights.len(), 2);
    assert_eq!(model.weights.metadata["format"], "pt");
    assert_eq!(model.weights_path, folder.join("unet").join(WEIGHTS));
    // Again into the same folder: replaced; nothing temporary stays beside it.
    write(&folder, &config(), &ddpm(), &model.weights).unwrap();
    assert_eq!(read(&folder).unwrap().process, ddpm());
    assert_eq!(fs::read_dir(folder.parent().unwrap()).unwrap().count(), 1);
}

#[test]
fn the_edm2_network_is_kept_in_the_same_layout() {
    let config = Edm2Config { sample_size: Some([40, 64]), ..Edm2Config::default() };
    let config = NetworkConfig::Edm2(config);
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    write(&folder, &config, &ddpm(), &weights(&["unet.out_gain"])).unwrap();
    let model = read(&folder).unwrap();
    assert_eq!(model.unet, config);
    assert_eq!(model.unet.sample_size(), Some([40, 64]));
    assert_eq!(model.unet.level_channels(), [192, 384, 576, 768]);
}

#[test]
fn older_folders_keep_everything_in_the_root() {
    let (_place, folder) = written();
    for file in ["unet/config.json", "scheduler/scheduler_config.json"] {
        let name = Path::new(file).file_name().unwrap();
        fs::rename(folder.join(file), folder.join(name)).unwrap();
    }
    fs::rename(folder.join("unet").join(WEIGHTS), folder.join(WEIGHTS)).unwrap();
    fs::remove_dir(folder.join("unet")).unwrap();
    fs::remove_dir(folder.join("scheduler")).unwrap();
    assert_eq!(read(&folder).unwrap().unet, config());
}

#[test]
fn legacy_attention_names_become_todays() {
    for (old, new) in [
        ("mid_block.attentions.0.query.weight", "mid_block.attentions.0.to_q.weight"),
        ("down_blocks.1.attentions.2.key.bias", "down_blocks.1.attentions.2.to_k.bias"),
        ("up_blocks.0.attentions.1.value.weight", "up_blocks.0.attentions.1.to_v.weight"),
        ("mid_block.attentions.0.proj_attn.bias", "mid_block.attentions.0.to_out.0.bias"),
        ("mid_block.attentions.0.to_q.weight", "mid_block.attentions.0.to_q.weight"),
        ("mid_block.resnets.0.query.weight", "mid_block.resnets.0.query.weight"),
        ("query", "query"),
    ] {
        assert_eq!(canonical_name(old), new);
    }
    let mut old = weights(&["mid_block.attentions.0.query.weight", "conv_in.bias"]);
    old.metadata.insert("kept".into(), "yes".into());
    let new = canonical(old);
    assert!(new.get("mid_block.attentions.0.to_q.weight").is_some() && new.len() == 2);
    assert_eq!(new.metadata["kept"], "yes");
}

#[test]
fn pythons_infinities_are_read() {
    let text = r#"{"a": -Infinity, "b": "NaN \" -Infinity", "c": [Infinity, NaN], "ö\\": 1}"#;
    let value: Value = serde_json::from_str(&without_infinities(text)).unwrap();
    assert_eq!(value, json!({"a": null, "b": "NaN \" -Infinity", "c": [null, null], "ö\\": 1}));
    assert_eq!(without_infinities("\"\\"), "\"\\");
    let (_place, folder) = written();
    let path = folder.join("scheduler/scheduler_config.json");
    fs::write(
        &path,
        r#"{"_class_name": "DPMSolverMultistepScheduler", "lambda_min_clipped": -Infinity}"#,
    )
    .unwrap();
    read(&folder).unwrap();
}

#[test]
fn damaged_folders_are_refused_with_the_file_and_the_remedy() {
    let absent = refused(Path::new("/no/such/folder"));
    assert!(absent.contains("does not exist") && absent.contains("model_index.json"), "{absent}");
    let cases: [(&str, &[u8], &[&str]); 8] = [
        ("unet/config.json", b"{\"in_channels\": ", &["config.json", "no valid JSON"]),
        ("unet/config.json", b"\xff\xfe", &["config.json", "no text"]),
        ("unet/config.json", b"[1]", &["config.json", "no object"]),
        ("unet/config.json", b"{\"in_channels\": 0}", &["config.json", "in_channels is 0"]),
        (
            "unet/config.json",
            b"{\"_class_name\": \"UNet2DConditionModel\"}",
            &["UNet2DConditionModel", "UNet2DModel"],
        ),
        (
            "scheduler/scheduler_config.json",
            b"{\"beta_schedule\": \"laplace\"}",
            &["scheduler_config.json", "laplace"],
        ),
        (
            "model_index.json",
            b"{\"unet\": [\"diffusers\", \"UNet2DModel\"], \"vqvae\": [\"diffusers\", \"VQModel\"]}",
            &["model_index.json", "vqvae", "VQModel"],
        ),
        ("unet/diffusion_pytorch_model.safetensors", b"short", &["safetensors", "5 bytes"]),
    ];
    for (file, content, parts) in cases {
        let (_place, folder) = written();
        fs::write(folder.join(file), content).unwrap();
        let said = refused(&folder);
        for part in parts {
            assert!(said.contains(part), "{file}: {said}");
        }
    }
    for (file, parts) in [
        ("unet/config.json", ["config.json", ""]),
        ("unet/diffusion_pytorch_model.safetensors", [WEIGHTS, "is missing"]),
    ] {
        let (_place, folder) = written();
        fs::remove_file(folder.join(file)).unwrap();
        let said = refused(&folder);
        assert!(parts.iter().all(|part| said.contains(part)), "{said}");
    }
    let (_place, folder) = written();
    fs::rename(folder.join("unet").join(WEIGHTS), folder.join("unet/diffusion_pytorch_model.bin"))
        .unwrap();
    assert!(refused(&folder).contains("safe_serialization"));
}

#[test]
fn weights_that_are_not_numbers_are_neither_written_nor_read() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("model");
    let mut bad = weights(&["conv_in.bias"]);
    bad.insert("conv_out.bias", Tensor::f32([1], vec![f32::NAN]));
    let scheduler = SchedulerConfig::default();
    let said =
        write(&folder, &config(), &Process::Ddpm(scheduler.clone()), &bad).unwrap_err().to_string();
    assert!(said.contains("conv_out.bias"), "{said}");
    assert!(!folder.exists());
    write(&folder, &config(), &Process::Ddpm(scheduler.clone()), &weights(&["conv_in.bias"]))
        .unwrap();
    bad.write(folder.join("unet").join(WEIGHTS)).unwrap();
    assert!(refused(&folder).contains("conv_out.bias"));
}

#[test]
fn other_peoples_folders_are_left_alone() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("thesis.txt"), "draft").unwrap();
    let scheduler = SchedulerConfig::default();
    let said =
        write(place.path(), &config(), &Process::Ddpm(scheduler), &weights(&["a"])).unwrap_err();
    assert!(said.to_string().contains("something other than a model"));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
}
