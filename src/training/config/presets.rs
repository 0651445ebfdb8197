//! Configurations with a name.

/// What sets the images, and behind it the network of the model case, which is the same for all. Latents
/// have no range that predicted images could be clipped to.
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

/// A small network that is trained in minutes: what it is made of, what it predicts, its optimizer.
macro_rules! quickstart {
    ($model:literal, $prediction:literal, $optimizer:literal) => {
        concat!(
            r#"
[data]
size = 32
held_out = 64
[model]
layers_per_block = 1
attention = [false, false, true]
attention_head_dim = 8
"#,
            $model,
            r#"
[diffusion]
prediction = ""#,
            $prediction,
            r#""
[training]
batch_size = 16
"#,
            $optimizer,
            r#"
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
"#
        )
    };
}

/// EDM2 of so many channels: its learning rate and dropout go with its size (Karras et al. 2024,
/// arXiv:2312.02696, table 6, for ImageNet at 512×512 and a batch of 2,048; the ramp is 10 million
/// images).
macro_rules! edm2 {
    ($channels:literal, $rate:literal, $dropout:literal) => {
        concat!(
            r#"
[data]
size = 64
channels = 4
[model]
kind = "edm2"
channels = ["#,
            $channels,
            r#"]
layers_per_block = 3
attention = [false, false, true, true]
attention_head_dim = 64
dropout = "#,
            $dropout,
            r#"
[diffusion]
process = "edm"
[training]
steps = 1048576
batch_size = 32
accumulate = 64
learning_rate = "#,
            $rate,
            r#"
lr_schedule = "inverse_sqrt"
decay_after = 70000
warmup_steps = 4883
betas = [0.9, 0.99]
weight_decay = 0.0
max_grad_norm = 0.0
non_finite = "zero"
ema_widths = [0.05, 0.1]
average_every = 4096
[sampling]
sampler = "heun"
steps = 32
"#
        )
    };
}

/// Name, one line about it, and what it sets.
pub const PRESETS: [(&str, &str, &str); 13] = [
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
        quickstart!(
            "channels = [32, 48, 64]\nnorm_groups = 16",
            "v_prediction",
            "learning_rate = 2e-3"
        ),
    ),
    (
        "quickstart-edm2",
        "the same with an EDM2 U-Net of as many FLOPs, channels 24-48-64, predicting noise",
        quickstart!(
            "kind = \"edm2\"\nchannels = [24, 48, 64]",
            "epsilon",
            "learning_rate = 4e-2\nbetas = [0.9, 0.99]"
        ),
    ),
    (
        "lobster-64",
        "64×64 pixels, the EDM2 U-Net with channels 128-256-384, 58.8 million parameters: for a GPU",
        lobster!("[data]\nsize = 64\nchannels = 3\n"),
    ),
    (
        "lobster-256",
        "the same on latents 4×32×32, of 256×256 pixels at an eighth of their size",
        lobster!("[data]\nsize = 32\nchannels = 4\n[sampling]\nclip = false\n"),
    ),
    (
        "lobster-640x1024",
        "the same on latents 4×80×128, of 640×1024 pixels at an eighth of their size",
        lobster!("[data]\nsize = [80, 128]\nchannels = 4\n[sampling]\nclip = false\n"),
    ),
    (
        "edm2-xs",
        "EDM2-XS without labels, on latents 4×64×64, with its training and sampling; 124.2 million \
         parameters",
        edm2!("128, 256, 384, 512", 0.0120, 0.0),
    ),
    (
        "edm2-s",
        "the same with 192 channels; 279 million parameters",
        edm2!("192, 384, 576, 768", 0.0100, 0.0),
    ),
    (
        "edm2-m",
        "the same with 256 channels; 497 million parameters",
        edm2!("256, 512, 768, 1024", 0.0090, 0.1),
    ),
    (
        "edm2-l",
        "the same with 320 channels; 776 million parameters",
        edm2!("320, 640, 960, 1280", 0.0080, 0.1),
    ),
    (
        "edm2-xl",
        "the same with 384 channels; 1.12 billion parameters",
        edm2!("384, 768, 1152, 1536", 0.0070, 0.1),
    ),
    (
        "edm2-xxl",
        "the same with 448 channels; 1.52 billion parameters",
        edm2!("448, 896, 1344, 1792", 0.0065, 0.1),
    ),
];
