//! The DDPM U-Net (Ho et al., "Denoising Diffusion Probabilistic Models", arXiv 2006.11239) in
//! all the configurations of diffusers' `UNet2DModel`, under its parameter names.

use super::layers::{
    Conditions, Padding, conv2d, conv2d_same, dropout, group_norm, linear, norm_parameters,
};
use super::unet_config::{DownBlock, TimeScaleShift, UnetConfig, UpBlock};
use super::{Given, Network};
use crate::error::{Error, Result};
use crate::graph::{Build, Graph, TensorId};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::combine::Combine;
use crate::ops::concat::{Concat, SliceChannels};
use crate::ops::group_norm::GroupNorm;
use crate::ops::resample::UpsampleNearest2d;
use crate::ops::scale_add::ScaleAdd;
use crate::ops::timestep_embedding::TimestepEmbedding;

/// See the module.
#[derive(Clone, Debug)]
pub struct DdpmUnet {
    config: UnetConfig,
}

impl DdpmUnet {
    /// # Errors
    /// Whatever [`UnetConfig::validate`] refuses.
    pub fn new(config: UnetConfig) -> Result<DdpmUnet> {
        config.validate()?;
        Ok(DdpmUnet { config })
    }

    pub fn config(&self) -> &UnetConfig {
        &self.config
    }

    /// `silu(time_embedding(timesteps))`, which every residual block projects: [B or 1, D].
    fn time_embedding(&self, g: &mut Graph, timesteps: TensorId) -> Result<TensorId> {
        let config = &self.config;
        let embedding = g.module("time_proj", |g| {
            let op = TimestepEmbedding {
                dim: config.block_out_channels[0],
                flip_sin_to_cos: config.flip_sin_to_cos,
                freq_shift: config.freq_shift,
                max_period: 10_000.0,
            };
            g.one(op, &[timesteps])
        })?;
        let embedding = g.module("time_embedding", |g| {
            let hidden = linear(g, "linear_1", embedding, config.time_embed_dim())?;
            let hidden = g.one(Activation::SILU, &[hidden])?;
            linear(g, "linear_2", hidden, config.time_embed_dim())
        })?;
        g.one(Activation::SILU, &[embedding])
    }

    /// Residual block: norm, SiLU, convolution, time, norm, SiLU, convolution, plus its input.
    fn resnet(
        &self,
        g: &mut Graph,
        name: &str,
        x: TensorId,
        told: Conditions,
        channels: usize,
        scale: f64,
    ) -> Result<TensorId> {
        let (groups, eps) = (self.config.norm_num_groups, self.config.norm_eps);
        let c_in = *g.ty(x).shape.last().unwrap_or(&0);
        g.module(name, |g| {
            let h = group_norm(g, "norm1", x, groups, eps)?;
            let h = g.one(Activation::SILU, &[h])?;
            let h = conv2d_same(g, "conv1", h, channels, 3)?;
            let h = match self.config.resnet_time_scale_shift {
                TimeScaleShift::Default => {
                    let shift = linear(g, "time_emb_proj", told.embedding, channels)?;
                    let h = g.one(Combine::ADD, &[h, shift])?;
                    group_norm(g, "norm2", h, groups, eps)?
                }
                TimeScaleShift::ScaleShift => {
                    let both = linear(g, "time_emb_proj", told.embedding, 2 * channels)?;
                    self.modulated_norm(g, "norm2", h, both, channels)?
                }
            };
            let h = g.one(Activation::SILU, &[h])?;
            let h = dropout(g, h, self.config.dropout, told)?;
            let h = conv2d_same(g, "conv2", h, channels, 3)?;
            let skip =
                if c_in == channels { x } else { conv2d_same(g, "conv_shortcut", x, channels, 1)? };
            let sum = g.one(Combine::ADD, &[h, skip])?;
            divide(g, sum, scale)
        })
    }

    /// norm(x)·(1 + scale) + shift = x̂·γ(1 + scale) + (β(1 + scale) + shift): a normalisation
    /// whose affine part is per sample.
    fn modulated_norm(
        &self,
        g: &mut Graph,
        name: &str,
        x: TensorId,
        scale_shift: TensorId,
        channels: usize,
    ) -> Result<TensorId> {
        let [weight, bias] = norm_parameters(g, name, channels)?;
        let scale = g.one(SliceChannels::plain(0, channels), &[scale_shift])?;
        let shift = g.one(SliceChannels::plain(channels, channels), &[scale_shift])?;
        let scale = g.one(ScaleAdd { scale: 1.0, offset: 1.0 }, &[scale])?;
        let weight = g.one(Combine::Product, &[scale, weight])?;
        let bias = g.one(Combine::Product, &[scale, bias])?;
        let bias = g.one(Combine::ADD, &[bias, shift])?;
        let (groups, eps) = (self.config.norm_num_groups, self.config.norm_eps);
        g.scoped(name, |g| {
            g.one(GroupNorm { groups, eps: eps as f32, silu: false }, &[x, weight, bias])
        })
    }

    /// Self-attention over all pixels, plus its input.
    fn attention(
        &self,
        g: &mut Graph,
        name: &str,
        x: TensorId,
        groups: Option<usize>,
        scale: f64,
    ) -> Result<TensorId> {
        let shape = g.ty(x).shape.clone();
        let [batch, height, width, channels] = shape[..] else {
            return Err(Error::operation(
                "attention",
                format!("needs [B, H, W, C], not {shape:?}"),
            ));
        };
        let (heads, depth) = self.config.heads(channels);
        let inner = heads * depth;
        g.module(name, |g| {
            let normed = match groups {
                Some(groups) => group_norm(g, "group_norm", x, groups, self.config.norm_eps)?,
                None => x,
            };
            let tokens = g.reshape(normed, &[batch, height * width, channels])?;
            let q = linear(g, "to_q", tokens, inner)?;
            let k = linear(g, "to_k", tokens, inner)?;
            let v = linear(g, "to_v", tokens, inner)?;
            let op = Attention { heads, scale: (1.0 / (depth as f64).sqrt()) as f32 };
            let mixed = g.one(op, &[q, k, v])?;
            let projected = g.scoped("to_out", |g| linear(g, "0", mixed, channels))?;
            let projected = g.reshape(projected, &shape)?;
            let sum = g.one(Combine::ADD, &[projected, x])?;
            divide(g, sum, scale)
        })
    }

    fn middle(&self, g: &mut Graph, x: TensorId, told: Conditions) -> Result<TensorId> {
        let channels = self.config.block_out_channels[self.config.levels() - 1];
        let scale = self.config.mid_block_scale_factor;
        g.module("mid_block", |g| {
            let mut h = self.resnet(g, "resnets.0", x, told, channels, scale)?;
            if self.config.add_attention {
                let groups = self.config.mid_attention_groups();
                h = self.attention(g, "attentions.0", h, groups, scale)?;
            }
            self.resnet(g, "resnets.1", h, told, channels, scale)
        })
    }
}

impl Network for DdpmUnet {
    fn channels(&self) -> [usize; 2] {
        [self.config.in_channels, self.config.out_channels]
    }

    fn check_size(&self, height: usize, width: usize) -> Result<()> {
        self.config.check_size(height, width)
    }

    fn build(&self, g: &mut Graph, x: TensorId, given: Given) -> Result<TensorId> {
        let config = &self.config;
        if given.labels.is_some() {
            return Err(Error::operation("unet2d", "takes no labels; leave them out"));
        }
        match g.ty(x).shape[..] {
            [_, height, width, channels] if channels == config.in_channels => {
                config.check_size(height, width)?;
            }
            _ => {
                return Err(Error::operation(
                    "unet2d",
                    format!("needs [B, H, W, {}], not {:?}", config.in_channels, g.ty(x)),
                ));
            }
        }
        let levels = config.levels();
        let groups = Some(config.norm_num_groups);
        let x = if config.center_input_sample {
            g.one(ScaleAdd { scale: 2.0, offset: -1.0 }, &[x])?
        } else {
            x
        };
        let embedding = self.time_embedding(g, given.times)?;
        let told = Conditions { embedding, training: given.training };

        let mut h = conv2d_same(g, "conv_in", x, config.block_out_channels[0], 3)?;
        let mut skips = vec![h];
        for level in 0..levels {
            let channels = config.block_out_channels[level];
            g.scoped(&format!("down_blocks.{level}"), |g| {
                for layer in 0..config.layers_per_block {
                    h = self.resnet(g, &format!("resnets.{layer}"), h, told, channels, 1.0)?;
                    if config.down_block_types[level] == DownBlock::Attention {
                        h = self.attention(g, &format!("attentions.{layer}"), h, groups, 1.0)?;
                    }
                    skips.push(h);
                }
                if level + 1 < levels {
                    let padding = match config.downsample_padding {
                        0 => Padding::RIGHT_BOTTOM,
                        symmetric => Padding::all(symmetric),
                    };
                    h = g.module("downsamplers.0", |g| {
                        conv2d(g, "conv", h, channels, 3, 2, padding)
                    })?;
                    skips.push(h);
                }
                Ok(())
            })?;
        }

        h = self.middle(g, h, told)?;

        for level in 0..levels {
            let channels = config.block_out_channels[levels - 1 - level];
            h = g.module(&format!("up_blocks.{level}"), |g| {
                for layer in 0..=config.layers_per_block {
                    let skip = skips.pop().ok_or_else(|| {
                        Error::operation("unet2d", "there are fewer skips than residual blocks")
                    })?;
                    h = g.one(Concat::PLAIN, &[h, skip])?;
                    h = self.resnet(g, &format!("resnets.{layer}"), h, told, channels, 1.0)?;
                    if config.up_block_types[level] == UpBlock::Attention {
                        h = self.attention(g, &format!("attentions.{layer}"), h, groups, 1.0)?;
                    }
                }
                if level + 1 < levels {
                    h = g.module("upsamplers.0", |g| {
                        let up = g.one(UpsampleNearest2d { factor: 2, scale: 1.0 }, &[h])?;
                        conv2d_same(g, "conv", up, channels, 3)
                    })?;
                }
                Ok(h)
            })?;
        }

        let h = group_norm(g, "conv_norm_out", h, config.norm_num_groups, config.norm_eps)?;
        let h = g.one(Activation::SILU, &[h])?;
        conv2d_same(g, "conv_out", h, config.out_channels, 3)
    }
}

fn divide(g: &mut Graph, x: TensorId, by: f64) -> Result<TensorId> {
    if by == 1.0 {
        return Ok(x);
    }
    g.one(ScaleAdd { scale: (1.0 / by) as f32, offset: 0.0 }, &[x])
}
