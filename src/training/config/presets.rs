//! Configurations with a name.

/// What sets the images, and behind it the network of the model case, which is the same for all.
macro_rules! lobster {
    ($data:literal) => {
        concat!(
            $data,
            r#"
[model]
kind = "edm2"
channels = [128, 256, 384]
layers_per_block = 3
attention = [false, true, true]
attention_head_dim = 64
"#
        )
    };
}

/// Name, one line about it, and what it sets.
pub const PRESETS: [(&str, &str, &str); 7] = [
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
    (
        "lobster-64",
        "64×64 pixels, the EDM2 U-Net with channels 128-256-384, 58.8 million parameters: for a GPU",
        lobster!("[data]\nsize = 64\nchannels = 3\n"),
    ),
    (
        "lobster-256",
        "the same on latents 4×32×32, of 256×256 pixels at an eighth of their size",
        lobster!("[data]\nsize = 32\nchannels = 4\n"),
    ),
    (
        "lobster-640x1024",
        "the same on latents 4×80×128, of 640×1024 pixels at an eighth of their size",
        lobster!("[data]\nsize = [80, 128]\nchannels = 4\n"),
    ),
    (
        "edm2-xs",
        "the network of EDM2-XS without labels, on latents 4×64×64; 124.2 million parameters",
        r#"
[data]
size = 64
channels = 4
[model]
kind = "edm2"
channels = [128, 256, 384, 512]
layers_per_block = 3
attention = [false, false, true, true]
attention_head_dim = 64
"#,
    ),
];
