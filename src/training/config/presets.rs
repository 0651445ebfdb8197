//! Configurations with a name.

/// Name, one line about it, and what it sets.
pub const PRESETS: [(&str, &str, &str); 3] = [
    (
        "ddpm-32",
        "32×32 pixels, channels 32-64-64: small enough to train on a CPU overnight",
        r#"
[data]
size = 32
[model]
channels = [32, 64, 64]
layers_per_block = 2
attention = [false, false, true]
attention_head_dim = 8
norm_groups = 32
"#,
    ),
    (
        "ddpm-64",
        "64×64 pixels, channels 128-256-256-256, 35.7 million parameters: the network of Ho et al. \
         2020 for a GPU",
        r#"
[data]
size = 64
[model]
channels = [128, 256, 256, 256]
layers_per_block = 2
attention = [false, false, true, false]
attention_head_dim = 8
norm_groups = 32
"#,
    ),
    (
        "quickstart",
        "32×32 pixels, channels 32-48-64, predicting v: recognisable pictures after minutes on a CPU",
        r#"
[data]
size = 32
held_out = 64
[model]
channels = [32, 48, 64]
layers_per_block = 1
attention = [false, false, true]
attention_head_dim = 8
norm_groups = 16
[diffusion]
prediction = "v_prediction"
[training]
batch_size = 16
learning_rate = 2e-3
lr_schedule = "cosine"
warmup_steps = 50
steps = 1000
ema_decay = 0.995
sample_every = 250
checkpoint_every = 250
[sampling]
sampler = "ddim"
steps = 50
seeds = "0-63"
"#,
    ),
];
