//! What every key means, in one line.

/// Section, what it is about.
pub(super) const SECTIONS: [(&str, &str); 5] = [
    ("data", "Which images, and how they become training samples"),
    ("model", "The U-Net; from the finest level to the coarsest"),
    ("diffusion", "The process from image to noise, and what the network predicts about it"),
    ("training", "The optimizer, and what is written down while it runs"),
    ("sampling", "How images are sampled, during training and after it"),
];

/// Section, key and explanation, in the order they are printed.
pub(super) const KEYS: [(&str, &str, &str); 67] = [
    ("data", "path", "folder of images, searched recursively; --data replaces it"),
    ("data", "size", "height and width in pixels: one number, or [height, width]"),
    ("data", "channels", "channels of an image: 3; latents of an autoencoder have others"),
    ("data", "crop", "how images of other proportions are cut: \"centre\" or \"random\""),
    ("data", "flip", "whether images are mirrored left to right half of the time"),
    ("data", "held_out", "images kept out of training to measure the loss on; 0: none"),
    ("model", "kind", "\"ddpm\" (Ho et al. 2020) or \"edm2\" (Karras et al. 2024)"),
    ("model", "channels", "channels of each level; each level has half the size of the one before"),
    (
        "model",
        "layers_per_block",
        "residual blocks a level on the way down; one more on the way up",
    ),
    ("model", "attention", "whether each level has self-attention"),
    (
        "model",
        "mid_attention",
        "whether the middle, below the coarsest level, has self-attention; always in edm2",
    ),
    ("model", "attention_head_dim", "channels of an attention head; 0: one head (ddpm alone)"),
    (
        "model",
        "norm_groups",
        "groups of the group normalisation; must divide every level's channels; this and what follows here is for ddpm alone",
    ),
    ("model", "norm_eps", "added to the variance in the group normalisation"),
    (
        "model",
        "time_scale_shift",
        "how the timestep enters a block: \"default\" (added) or \"scale_shift\"",
    ),
    (
        "model",
        "downsample_padding",
        "1: zeros all round; 0: zeros below and on the right, as in DDPM",
    ),
    ("model", "flip_sin_to_cos", "whether the timestep embedding has the cosines first"),
    ("model", "freq_shift", "subtracted from the number of embedding frequencies; 1 in DDPM"),
    (
        "model",
        "dropout",
        "share of activations that training drops in front of a block's second convolution",
    ),
    (
        "model",
        "classes",
        "edm2 alone: the folders in data.path, in alphabetical order, are so many classes; 0: none",
    ),
    (
        "diffusion",
        "process",
        "\"ddpm\" (timesteps) or \"edm\" (noise levels, for the model \"edm2\", with its own loss)",
    ),
    ("diffusion", "timesteps", "number of timesteps, T; this and what follows is for ddpm"),
    (
        "diffusion",
        "beta_schedule",
        "\"linear\", \"scaled_linear\" or \"squaredcos_cap_v2\" (cosine)",
    ),
    (
        "diffusion",
        "beta_start",
        "variance of the noise that the first timestep adds; not for cosine",
    ),
    ("diffusion", "beta_end", "variance of the noise that the last timestep adds; not for cosine"),
    (
        "diffusion",
        "prediction",
        "what the network predicts: \"epsilon\" (noise), \"sample\" (image) or \"v_prediction\"",
    ),
    ("diffusion", "p_mean", "edm alone: mean of the logarithm of training's noise levels"),
    ("diffusion", "p_std", "edm alone: its standard deviation"),
    ("training", "steps", "optimizer steps"),
    (
        "training",
        "minutes",
        "time after which training ends, with the rate annealed by then; 0: no limit",
    ),
    ("training", "batch_size", "images a forward and backward pass"),
    ("training", "accumulate", "passes whose gradients make one optimizer step"),
    ("training", "learning_rate", "peak learning rate of AdamW"),
    (
        "training",
        "lr_schedule",
        "\"cosine\", \"linear\" or \"constant\", after the warm-up, or EDM2's \"inverse_sqrt\"",
    ),
    (
        "training",
        "decay_after",
        "inverse_sqrt alone: steps t after which the rate falls, as the root of t/step",
    ),
    ("training", "warmup_steps", "steps over which the learning rate rises to its peak"),
    ("training", "final_learning_rate", "learning rate at the last step"),
    ("training", "betas", "AdamW's decay of the first and second moment"),
    ("training", "eps", "added to the root of AdamW's second moment"),
    ("training", "weight_decay", "AdamW's decoupled weight decay"),
    (
        "training",
        "max_grad_norm",
        "gradients of a larger total norm are scaled down to it; 0: never",
    ),
    (
        "training",
        "non_finite",
        "gradients that are NaN or infinite: \"stop\" (a step is skipped in float16), or become \"zero\"",
    ),
    (
        "training",
        "ema_decay",
        "decay of the averaged weights that are sampled and exported; 0: none",
    ),
    (
        "training",
        "ema_widths",
        "widths of power-function averages, as shares of the training, instead of ema_decay: [0.05, 0.1]",
    ),
    (
        "training",
        "label_dropout",
        "share of images shown without their label, which `sample --guidance` without --guide needs",
    ),
    ("training", "seed", "of weights, order of images, timesteps and noise"),
    ("training", "log_every", "steps between lines in the metrics"),
    ("training", "sample_every", "steps between sample grids; 0: only at the end"),
    ("training", "checkpoint_every", "steps between checkpoints; 0: only at the end"),
    ("training", "keep_checkpoints", "how many of the last checkpoints are kept"),
    (
        "training",
        "average_every",
        "steps between snapshots of the ema_widths, from which `cyanea ema` makes others; 0: none",
    ),
    ("sampling", "sampler", "\"ddpm\", \"ddim\" or \"dpmpp-2m\"; of the process edm, \"heun\""),
    ("sampling", "steps", "steps an image: as many network evaluations, or with heun 2·steps − 1"),
    (
        "sampling",
        "spacing",
        "of the timesteps: \"leading\", \"linspace\", \"trailing\", or \"auto\": the sampler's own",
    ),
    ("sampling", "eta", "share of fresh noise in ddim, 0 to 1"),
    ("sampling", "variance", "of ddpm's noise: \"fixed_small\" or \"fixed_large\""),
    ("sampling", "clip", "whether predicted images are clipped to the range of pixels"),
    ("sampling", "seeds", "one image each: numbers and ranges such as \"0-15\" or \"1,5,9-12\""),
    (
        "sampling",
        "labels",
        "the images' classes, written like the seeds; empty: one class after another",
    ),
    ("sampling", "batch", "images sampled at once; shows in last bits on kernels"),
    ("sampling", "sigma_min", "heun: the lowest noise level; this and what follows is for heun"),
    ("sampling", "sigma_max", "the noise level that a run starts from"),
    ("sampling", "rho", "how much the levels crowd together at the low end"),
    ("sampling", "churn", "noise added on the way (S_churn); 0: none"),
    ("sampling", "churn_min", "the lowest level at which it is added"),
    ("sampling", "churn_max", "the highest"),
    ("sampling", "churn_noise", "its standard deviation, 1: as much as keeps the level"),
];

/// What `key` of `section` means.
pub fn explanation(section: &str, key: &str) -> Option<&'static str> {
    KEYS.iter().find(|(s, k, _)| (*s, *k) == (section, key)).map(|(_, _, text)| *text)
}
