//! The EDM2 network (Karras et al. 2024, "Analyzing and Improving the Training Dynamics of Diffusion
//! Models", arXiv:2312.02696, configuration G): a U-Net whose activations, weights and sums keep
//! their magnitude, with the preconditioning of Karras et al. 2022 (arXiv:2206.00364) and a learned
//! log-variance of the loss. Parameter names are those of the reference implementation.

use super::edm2_config::Edm2Config;
use super::layers::{Conditions, dropout};
use super::{Given, Network};
use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::graph::{Build, Graph, Rate, Region, TensorId};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::combine::Combine;
use crate::ops::concat::{Concat, PadChannels, SliceChannels};
use crate::ops::fourier_features::FourierFeatures;
use crate::ops::mp_layer::mp_layer;
use crate::ops::pixel_norm::PixelNorm;
use crate::ops::preconditioned::Preconditioned;
use crate::ops::preconditioning::Preconditioning;
use crate::ops::resample::{Pool2d, UpsampleNearest2d};
use crate::ops::scale_add::ScaleAdd;
use crate::ops::weight_norm::WeightNorm;

/// See the module.
#[derive(Clone, Debug)]
pub struct Edm2Unet {
    config: Edm2Config,
}

/// What the preconditioned network gives.
#[derive(Clone, Copy, Debug)]
pub struct Denoised {
    /// The expected clean image, [B, H, W, C].
    pub image: TensorId,
    /// Logarithm of the variance of its error, [B, 1], or [1, 1] for one noise level.
    pub log_variance: TensorId,
}

/// What a block is, besides its name.
#[derive(Clone, Copy, Debug)]
struct Block {
    kind: Kind,
    /// Channels of its output.
    channels: usize,
    attends: bool,
}

/// A block on the way down or up, and what it does to height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Encoder,
    Decoder,
    Down,
    Up,
}

impl Kind {
    /// Whether pixels are normalised first, as in the encoder.
    fn normalises(self) -> bool {
        matches!(self, Kind::Encoder | Kind::Down)
    }
}

impl Edm2Unet {
    /// # Errors
    /// Whatever [`Edm2Config::validate`] refuses.
    pub fn new(config: Edm2Config) -> Result<Edm2Unet> {
        config.validate()?;
        Ok(Edm2Unet { config })
    }

    pub fn config(&self) -> &Edm2Config {
        &self.config
    }

    /// Appends the network with its preconditioning: `x` [B, H, W, C] is a clean image plus noise of
    /// the standard deviation `given.times`.
    ///
    /// # Errors
    /// Shapes that the network can't take, and labels where label_dim is 0.
    pub fn denoise(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<Denoised> {
        let config = &self.config;
        let op =
            Preconditioning { sigma_data: config.sigma_data as f32, channels: config.img_channels };
        let scales = g.push(std::sync::Arc::new(op), &[given.times])?;
        let &[c_skip, c_out, c_in, c_noise] = &scales[..] else {
            unreachable!("preconditioning has four results")
        };
        let scaled = g.one(Combine::Product, &[x, c_in])?;
        let output = self.predict(g, scaled, Given { times: c_noise, ..given })?;
        let image = g.one(Preconditioned, &[x, output, c_skip, c_out])?;
        let features = fourier(g, "logvar_fourier", c_noise, config.logvar_channels)?;
        let log_variance = layer(g, "logvar_linear", features, &[1], WeightNorm::PLAIN, None)?;
        Ok(Denoised { image, log_variance })
    }

    /// Appends the network alone: `x` [B, H, W, C] of about unit variance, `given.times` the noise
    /// input (ln(σ)/4); gives [B, H, W, C].
    ///
    /// # Errors
    /// As [`Edm2Unet::denoise`].
    pub fn predict(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<TensorId> {
        match g.ty(x).shape[..] {
            [_, height, width, channels] if channels == self.config.img_channels => {
                self.config.check_size(height, width)?;
            }
            _ => {
                return Err(Error::operation(
                    "edm2",
                    format!("needs [B, H, W, {}], not {:?}", self.config.img_channels, g.ty(x)),
                ));
            }
        }
        g.module("unet", |g| {
            let embedding = self.embedding(g, given.times, given.labels)?;
            let told = Conditions { embedding, training: given.training };
            let (mut x, mut skips) = self.encoder(g, x, told)?;
            x = self.decoder(g, x, &mut skips, told)?;
            let gain = learned_gain(g, "out_gain")?;
            let norm = WeightNorm { learned: true, ..WeightNorm::PLAIN };
            layer(g, "out_conv", x, &[self.config.img_channels, 3, 3], norm, Some(gain))
        })
    }

    /// What every block projects: [B or 1, D].
    fn embedding(
        &self,
        g: &mut Graph,
        c_noise: TensorId,
        labels: Option<TensorId>,
    ) -> Result<TensorId> {
        let config = &self.config;
        let features = fourier(g, "emb_fourier", c_noise, config.noise_channels())?;
        let width = config.embedding_channels();
        let mut embedding = layer(g, "emb_noise", features, &[width], WeightNorm::PLAIN, None)?;
        if config.label_dim == 0 && labels.is_some() {
            return Err(Error::operation(
                "edm2",
                "the network takes no labels (label_dim is 0); leave them out",
            ));
        }
        if config.label_dim > 0 {
            let classes = config.label_dim;
            let balance = Combine::mp_sum(config.label_balance);
            embedding = match labels {
                Some(labels) => {
                    let ty = g.ty(labels);
                    if ty.shape.len() != 2 || ty.shape[1] != classes {
                        let what = format!(
                            "labels must be one-hot rows [B, {classes}] of as many numbers as label_dim \
                             says, not {ty:?}"
                        );
                        return Err(Error::operation("edm2", what));
                    }
                    // A one-hot row of L classes has magnitude 1/√L.
                    let gain = (classes as f64).sqrt() as f32;
                    let norm = WeightNorm { gain, ..WeightNorm::PLAIN };
                    let label = layer(g, "emb_label", labels, &[width], norm, None)?;
                    g.one(balance, &[embedding, label])?
                }
                None => {
                    g.scoped("emb_label", |g| g.parameter("weight", &[width, classes]))?;
                    let Combine::Sum([scale, _]) = balance else { unreachable!("it is a sum") };
                    g.one(ScaleAdd { scale, offset: 0.0 }, &[embedding])?
                }
            };
        }
        g.one(Activation::MP_SILU, &[embedding])
    }

    /// Every module's output is a skip; the last of them is the result.
    fn encoder(
        &self,
        g: &mut Graph,
        x: TensorId,
        told: Conditions,
    ) -> Result<(TensorId, Vec<TensorId>)> {
        let config = &self.config;
        // A constant channel stands for the biases that the convolutions don't have.
        let ones = PadChannels { before: 0, after: 1, scale: 1.0, value: 1.0 };
        let mut x = g.one(ones, &[x])?;
        let mut skips = Vec::new();
        g.scoped("enc", |g| {
            for level in 0..config.levels() {
                let (channels, attends) = (config.channels(level), config.attends(level));
                let resolution = config.resolution(level);
                let name = |module: &str| format!("{resolution}x{resolution}_{module}");
                x = match level {
                    0 => layer(g, &name("conv"), x, &[channels, 3, 3], WeightNorm::PLAIN, None)?,
                    _ => {
                        let channels = config.channels(level - 1);
                        let block = Block { kind: Kind::Down, channels, attends: false };
                        self.block(g, &name("down"), x, told, block)?
                    }
                };
                skips.push(x);
                for index in 0..config.num_blocks {
                    let block = Block { kind: Kind::Encoder, channels, attends };
                    x = self.block(g, &name(&format!("block{index}")), x, told, block)?;
                    skips.push(x);
                }
            }
            Ok(())
        })?;
        Ok((x, skips))
    }

    fn decoder(
        &self,
        g: &mut Graph,
        mut x: TensorId,
        skips: &mut Vec<TensorId>,
        told: Conditions,
    ) -> Result<TensorId> {
        let config = &self.config;
        g.scoped("dec", |g| {
            for level in (0..config.levels()).rev() {
                let (channels, attends) = (config.channels(level), config.attends(level));
                let resolution = config.resolution(level);
                let name = |module: &str| format!("{resolution}x{resolution}_{module}");
                if level + 1 == config.levels() {
                    for (module, attends) in [("in0", true), ("in1", false)] {
                        let block = Block { kind: Kind::Decoder, channels, attends };
                        x = self.block(g, &name(module), x, told, block)?;
                    }
                } else {
                    let channels = config.channels(level + 1);
                    let block = Block { kind: Kind::Up, channels, attends: false };
                    x = self.block(g, &name("up"), x, told, block)?;
                }
                for index in 0..=config.num_blocks {
                    let skip = skips.pop().ok_or_else(|| {
                        Error::operation("edm2", "there are fewer skips than blocks")
                    })?;
                    let widths = [x, skip].map(|tensor| channels_of(g, tensor));
                    x = g.one(Concat::mp_cat(widths, config.concat_balance), &[x, skip])?;
                    let block = Block { kind: Kind::Decoder, channels, attends };
                    x = self.block(g, &name(&format!("block{index}")), x, told, block)?;
                }
            }
            Ok(x)
        })
    }

    /// Two convolutions with the embedding between them, beside the input, then self-attention.
    fn block(
        &self,
        g: &mut Graph,
        name: &str,
        x: TensorId,
        told: Conditions,
        Block { kind, channels, attends }: Block,
    ) -> Result<TensorId> {
        let config = &self.config;
        g.module(name, |g| {
            let mut x = match kind {
                Kind::Down => g.one(Pool2d::average(2), &[x])?,
                Kind::Up => g.one(UpsampleNearest2d::copies(2), &[x])?,
                Kind::Encoder | Kind::Decoder => x,
            };
            let skip = |g: &mut Graph, x| match channels_of(g, x) == channels {
                true => Ok(x),
                false => layer(g, "conv_skip", x, &[channels, 1, 1], WeightNorm::PLAIN, None),
            };
            if kind.normalises() {
                x = skip(g, x)?;
                x = g.one(PixelNorm { groups: 1 }, &[x])?;
            }
            let gain = learned_gain(g, "emb_gain")?;
            let y = g.one(Activation::MP_SILU, &[x])?;
            let kernel = [channels, 3, 3];
            let y = layer(g, "conv_res0", y, &kernel, WeightNorm::PLAIN, None)?;
            let norm = WeightNorm { learned: true, ..WeightNorm::PLAIN };
            let c = layer(g, "emb_linear", told.embedding, &[channels], norm, Some(gain))?;
            let c = g.one(ScaleAdd { scale: 1.0, offset: 1.0 }, &[c])?;
            let y = g.one(Combine::Product, &[y, c])?;
            let y = g.one(Activation::MP_SILU, &[y])?;
            let y = dropout(g, y, config.dropout, told)?;
            let y = layer(g, "conv_res1", y, &kernel, WeightNorm::PLAIN, None)?;
            if !kind.normalises() {
                x = skip(g, x)?;
            }
            x = g.one(Combine::mp_sum(config.res_balance), &[x, y])?;
            if attends {
                x = self.attention(g, x)?;
            }
            match config.clip_act {
                Some(limit) => g.one(Activation::Clip { limit: limit as f32 }, &[x]),
                None => Ok(x),
            }
        })
    }

    /// Cosine attention over all pixels, beside its input.
    fn attention(&self, g: &mut Graph, x: TensorId) -> Result<TensorId> {
        let shape = g.ty(x).shape.clone();
        let [batch, height, width, channels] = shape[..] else {
            return Err(Error::operation(
                "attention",
                format!("needs [B, H, W, C], not {shape:?}"),
            ));
        };
        let depth = self.config.channels_per_head;
        let heads = channels / depth;
        let y = g.scoped("attn_qkv", |g| {
            let weight = g.parameter("weight", &[3 * channels, channels, 1, 1])?;
            // Its rows are query, key and value of one channel after another.
            mp_layer(g, x, weight, WeightNorm { parts: 3, ..WeightNorm::PLAIN }, None)
        })?;
        let y = g.one(PixelNorm { groups: 3 * heads }, &[y])?;
        let tokens = g.reshape(y, &[batch, height * width, 3 * channels])?;
        let [q, k, v] =
            [0, 1, 2].map(|part| g.one(SliceChannels::plain(part * channels, channels), &[tokens]));
        let op = Attention { heads, scale: (1.0 / (depth as f64).sqrt()) as f32 };
        let mixed = g.one(op, &[q?, k?, v?])?;
        let mixed = g.reshape(mixed, &shape)?;
        let y = layer(g, "attn_proj", mixed, &[channels, 1, 1], WeightNorm::PLAIN, None)?;
        g.one(Combine::mp_sum(self.config.attn_balance), &[x, y])
    }
}

/// Told noise levels: what it predicts is the clean image.
impl Network for Edm2Unet {
    fn channels(&self) -> [usize; 2] {
        [self.config.img_channels; 2]
    }

    fn check_size(&self, height: usize, width: usize) -> Result<()> {
        self.config.check_size(height, width)
    }

    fn classes(&self) -> usize {
        self.config.label_dim
    }

    fn build(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<TensorId> {
        Ok(self.denoise(g, x, given)?.image)
    }

    fn unit_weights(&self) -> bool {
        true
    }
}

fn channels_of(g: &Graph, x: TensorId) -> usize {
    *g.ty(x).shape.last().unwrap_or(&0)
}

/// A normalised layer of this name: `kernel` is [channels] of a linear layer or [channels, k, k] of a
/// convolution; parameter `weight`.
fn layer(
    g: &mut Graph,
    name: &str,
    x: TensorId,
    kernel: &[usize],
    norm: WeightNorm,
    gain: Option<TensorId>,
) -> Result<TensorId> {
    g.module(name, |g| {
        let mut shape = kernel.to_vec();
        shape.insert(1, channels_of(g, x));
        let weight = g.parameter("weight", &shape)?;
        mp_layer(g, x, weight, norm, gain)
    })
}

/// A trained scalar, as [1].
fn learned_gain(g: &mut Graph, name: &str) -> Result<TensorId> {
    let gain = g.parameter(name, &[])?;
    g.reshape(gain, &[1])
}

/// Fourier features of `c_noise` [B]; buffers `freqs` and `phases` [channels].
fn fourier(g: &mut Graph, name: &str, c_noise: TensorId, channels: usize) -> Result<TensorId> {
    g.module(name, |g| {
        let buffer = |g: &mut Graph, name: &str| {
            let path = g.path(name);
            g.slot(Region::Buffers, &path, TensorType::f32([channels]), Rate::Weights)
        };
        let (freqs, phases) = (buffer(g, "freqs")?, buffer(g, "phases")?);
        g.one(FourierFeatures, &[c_noise, freqs, phases])
    })
}
