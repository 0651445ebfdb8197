use super::*;

fn parse(text: &str) -> Result<UnetConfig> {
    let value: Value = serde_json::from_str(text).unwrap();
    UnetConfig::from_json(value.as_object().unwrap())
}

fn message(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

/// A valid network whose other keys are the ones given.
fn small(keys: &str) -> String {
    format!(
        r#"{{"block_out_channels": [8, 16], "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]{keys}}}"#
    )
}

#[test]
fn absent_keys_take_the_constructors_defaults_and_null_is_its_own_value() {
    let config = parse("{}").unwrap();
    assert_eq!(config, UnetConfig::default());
    assert_eq!(config.attention_head_dim, Some(8));
    assert_eq!((config.heads(448), config.time_embed_dim()), ((56, 8), 896));
    let config =
        parse(&small(r#", "attention_head_dim": null, "time_embedding_dim": 20"#)).unwrap();
    assert_eq!(config.attention_head_dim, None);
    assert_eq!((config.heads(16), config.time_embed_dim()), ((1, 16), 20));
}

#[test]
fn unknown_keys_that_are_null_say_nothing() {
    let config = parse(&small(r#", "a_later_setting": null"#)).unwrap();
    assert_eq!(config, parse(&small("")).unwrap());
    assert!(
        message(&small(r#", "a_later_setting": 0"#)).contains("`a_later_setting` is not known")
    );
}

#[test]
fn the_cifar_configuration_is_read_and_written_unchanged() {
    let text = r#"{"_class_name": "UNet2DModel", "_diffusers_version": "0.1",
        "act_fn": "silu", "attention_head_dim": null, "block_out_channels": [128, 256, 256, 256],
        "center_input_sample": false,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "downsample_padding": 0, "flip_sin_to_cos": false, "freq_shift": 1, "in_channels": 3,
        "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps": 1e-06,
        "norm_num_groups": 32, "out_channels": 3, "sample_size": 32,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"]}"#;
    let config = parse(text).unwrap();
    assert_eq!(config.sample_size, Some([32, 32]));
    assert_eq!(config.size_multiple(), 8);
    let written = config.to_json();
    assert_eq!(written["freq_shift"], Value::from(1));
    assert!(written["freq_shift"].is_i64());
    assert_eq!(written["sample_size"], Value::from(32));
    assert_eq!(written["down_block_types"][1], Value::from("AttnDownBlock2D"));
    assert_eq!(UnetConfig::from_json(&written).unwrap(), config);
}

#[test]
fn sizes_may_be_oblong() {
    let config = parse(&small(r#", "sample_size": [6, 10]"#)).unwrap();
    assert_eq!(config.sample_size, Some([6, 10]));
    assert_eq!(config.to_json()["sample_size"], serde_json::json!([6, 10]));
    let said = message(&small(r#", "sample_size": [6, 11]"#));
    assert!(said.contains("multiples of 2") && said.contains("6×12"), "{said}");
    assert!(message(&small(r#", "sample_size": "large""#)).contains("no size"));
    assert!(message(&small(r#", "sample_size": 0"#)).contains("0×0"));
}

#[test]
fn the_middle_attention_has_no_norm_under_scale_shift_unless_asked() {
    assert_eq!(parse(&small("")).unwrap().mid_attention_groups(), Some(4));
    let keys = r#", "resnet_time_scale_shift": "scale_shift""#;
    assert_eq!(parse(&small(keys)).unwrap().mid_attention_groups(), None);
    let keys = format!(r#"{keys}, "attn_norm_num_groups": 2"#);
    assert_eq!(parse(&small(&keys)).unwrap().mid_attention_groups(), Some(2));
}

#[test]
fn what_is_not_supported_is_named_with_what_is() {
    for (keys, parts) in [
        (r#", "time_embedding_type": "fourier""#, ["fourier", "positional"]),
        (r#", "act_fn": "gelu""#, ["gelu", "silu"]),
        (r#", "downsample_type": "resnet""#, ["resnet", "conv"]),
        (r#", "mid_block_type": null"#, ["null", "UNetMidBlock2D"]),
        (r#", "class_embed_type": "timestep""#, ["timestep", "null"]),
        (r#", "num_class_embeds": 10"#, ["num_class_embeds is 10", "not supported"]),
        (r#", "downsample_padding": 2"#, ["downsample_padding is 2", "0 or 1"]),
        (r#", "resnet_time_scale_shift": "spatial""#, ["spatial", "scale_shift"]),
        (r#", "in_channels": 0"#, ["in_channels is 0", "1 to"]),
        (r#", "in_channels": -3"#, ["in_channels", "-3"]),
        (r#", "layers_per_block": "two""#, ["layers_per_block", "two"]),
        (r#", "norm_eps": 0"#, ["norm_eps is 0", "positive"]),
        (r#", "attention_head_dim": 0"#, ["attention_head_dim is 0", "1 to"]),
        (
            r#", "attention_head_dim": 17"#,
            ["block_out_channels[1] is 16", "attention_head_dim = 17"],
        ),
        (r#", "attn_norm_num_groups": 3"#, ["= 16", "attn_norm_num_groups = 3"]),
        (r#", "freq_shift": 4"#, ["freq_shift is 4", "0 to 3"]),
        (r#", "dropout": 1"#, ["dropout is 1", "below 1"]),
        (r#", "atention_head_dim": 8"#, ["atention_head_dim", "did you mean `attention_head_dim`"]),
    ] {
        let said = message(&small(keys));
        for part in parts {
            assert!(said.contains(part), "{keys}: {said}");
        }
    }
}

#[test]
fn levels_must_agree_and_divide_by_the_groups() {
    let said = message(r#"{"block_out_channels": [32, 48], "down_block_types": ["DownBlock2D"]}"#);
    assert!(said.contains("down_block_types is a list of 1"), "{said}");
    let said = message(
        r#"{"block_out_channels": [32, 48], "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"]}"#,
    );
    assert!(said.contains("block_out_channels[1] = 48") && said.contains("64 channels"), "{said}");
    let said = message(r#"{"block_out_channels": []}"#);
    assert!(said.contains("1 to 16 levels"), "{said}");
    let said = message(r#"{"down_block_types": ["SkipDownBlock2D"]}"#);
    assert!(said.contains("down_block_types[0]") && said.contains("AttnDownBlock2D"), "{said}");
}
