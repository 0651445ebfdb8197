//! Single operations of the reference format, and the U-Net, as graphs.

use super::attributes::Attributes;
use super::recipe::{Arrangement, Recipe};
use crate::error::{Error, Result};
use crate::graph::{Build, TensorId};
use crate::models::{DdpmUnet, Edm2Config, Edm2Unet, Given, Network, UnetConfig};
use crate::ops::activation::Activation;
use crate::ops::attention::Attention;
use crate::ops::combine::Combine;
use crate::ops::concat::Concat;
use crate::ops::conv_transpose2d::ConvTranspose2d;
use crate::ops::conv2d::{Conv2d, Operands};
use crate::ops::fourier_features::FourierFeatures;
use crate::ops::group_norm::GroupNorm;
use crate::ops::linear;
use crate::ops::mp_layer::mp_layer;
use crate::ops::mse_loss::MseLoss;
use crate::ops::pixel_norm::PixelNorm;
use crate::ops::resample::UpsampleNearest2d;
use crate::ops::weight_norm::WeightNorm;

use Arrangement::{ChannelsLast, Heads, Same};

/// Builds a single operation's graph; `None` for an operation that is not one of these.
///
/// # Errors
/// Arguments or attributes that are missing or out of range.
pub fn build(op: &str, attributes: &Attributes, r: &mut Recipe) -> Result<Option<()>> {
    match op {
        "conv2d" => conv2d(attributes, r)?,
        "conv_transpose2d" => conv_transpose2d(attributes, r)?,
        "group_norm" | "group_norm_silu" => group_norm(attributes, r, op == "group_norm_silu")?,
        "silu" => {
            let x = r.operand("x", Same)?;
            let y = r.graph.one(Activation::SILU, &[x])?;
            r.output("y", Same, y);
        }
        "clip" => {
            let limit = attributes.number("limit")? as f32;
            if !(limit > 0.0 && limit.is_finite()) {
                return Err(Error::invalid(format!(
                    "`limit` is {limit}; it must be finite and above 0"
                )));
            }
            let x = r.operand("x", Same)?;
            let y = r.graph.one(Activation::Clip { limit }, &[x])?;
            r.output("y", Same, y);
        }
        "upsample_nearest2d" => {
            let x = r.operand("x", ChannelsLast)?;
            let factor = attributes.size("scale_factor")?;
            let y = r.graph.one(UpsampleNearest2d { factor, scale: 1.0 }, &[x])?;
            r.output("y", ChannelsLast, y);
        }
        "linear" => {
            let x = r.operand("x", Same)?;
            let weight = r.operand("weight", Same)?;
            let bias = if r.has("bias") { Some(r.operand("bias", Same)?) } else { None };
            let y = linear::linear(&mut r.graph, x, weight, bias)?;
            r.output("y", Same, y);
        }
        "mse_loss" => {
            let x = r.operand("x", Same)?;
            let target = r.operand("target", Same)?;
            let y = r.graph.one(MseLoss, &[x, target])?;
            r.output("y", Same, y);
        }
        "attention" => attention(attributes, r)?,
        "pixel_norm" => {
            let x = r.operand("x", ChannelsLast)?;
            let y = r.graph.one(PixelNorm { groups: 1 }, &[x])?;
            r.output("y", ChannelsLast, y);
        }
        "mp_silu" => {
            let x = r.operand("x", Same)?;
            let y = r.graph.one(Activation::MP_SILU, &[x])?;
            r.output("y", Same, y);
        }
        "mp_sum" | "mp_cat" => mp_join(attributes, r, op == "mp_cat")?,
        "mp_conv2d" | "mp_linear" => mp_single(attributes, r, op == "mp_conv2d")?,
        "mp_fourier" => {
            let [x, freqs, phases] = ["x", "freqs", "phases"].map(|name| r.operand(name, Same));
            let y = r.graph.one(FourierFeatures, &[x?, freqs?, phases?])?;
            r.output("y", Same, y);
        }
        "norm_silu_conv2d" => norm_silu_conv2d(attributes, r)?,
        "unet2d" => unet2d(attributes, r)?,
        "edm2_precond" => edm2_precond(attributes, r)?,
        _ => return Ok(None),
    }
    Ok(Some(()))
}

fn image(name: &str, r: &mut Recipe) -> Result<TensorId> {
    let shape = r.shape(name)?;
    if shape.len() != 4 {
        return Err(Error::invalid(format!("`{name}` must be [B, C, H, W], not {shape:?}")));
    }
    r.operand(name, ChannelsLast)
}

fn weight_and_bias(r: &mut Recipe) -> Result<(TensorId, Option<TensorId>)> {
    let weight = r.operand("weight", Same)?;
    let bias = if r.has("bias") { Some(r.operand("bias", Same)?) } else { None };
    Ok((weight, bias))
}

fn convolve(
    attributes: &Attributes,
    r: &mut Recipe,
    x: TensorId,
    weight: TensorId,
    bias: Option<TensorId>,
) -> Result<TensorId> {
    let op = Conv2d {
        stride: attributes.stride()?,
        padding: attributes.padding()?,
        operands: Operands { bias: bias.is_some(), ..Operands::default() },
    };
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    r.graph.one(op, &inputs)
}

fn conv2d(attributes: &Attributes, r: &mut Recipe) -> Result<()> {
    attributes.only("dilation", 1)?;
    attributes.only("groups", 1)?;
    let x = image("x", r)?;
    let (weight, bias) = weight_and_bias(r)?;
    let y = convolve(attributes, r, x, weight, bias)?;
    r.output("y", ChannelsLast, y);
    Ok(())
}

fn conv_transpose2d(attributes: &Attributes, r: &mut Recipe) -> Result<()> {
    attributes.only("dilation", 1)?;
    attributes.only("groups", 1)?;
    attributes.only("output_padding", 0)?;
    let x = image("x", r)?;
    let (weight, bias) = weight_and_bias(r)?;
    let op = ConvTranspose2d {
        stride: attributes.stride()?,
        padding: attributes.padding()?,
        bias: bias.is_some(),
    };
    let mut inputs = vec![x, weight];
    inputs.extend(bias);
    let y = r.graph.one(op, &inputs)?;
    r.output("y", ChannelsLast, y);
    Ok(())
}

fn group_norm(attributes: &Attributes, r: &mut Recipe, silu: bool) -> Result<()> {
    let x = r.operand("x", ChannelsLast)?;
    let shape = r.graph.ty(x).shape.clone();
    let weight = r.operand("weight", Same)?;
    let bias = r.operand("bias", Same)?;
    let op = GroupNorm {
        groups: attributes.size("groups")?,
        eps: attributes.number_or("eps", 1e-5)? as f32,
        silu,
    };
    let y = r.graph.one(op, &[x, weight, bias])?;
    let y = r.graph.reshape(y, &shape)?;
    r.output("y", ChannelsLast, y);
    Ok(())
}

fn attention(attributes: &Attributes, r: &mut Recipe) -> Result<()> {
    let shape = r.shape("q")?;
    let [_, heads, _, depth] = shape[..] else {
        return Err(Error::invalid(format!("`q` must be [B, heads, N, D], not {shape:?}")));
    };
    let q = r.operand("q", Heads)?;
    let k = r.operand("k", Heads)?;
    let v = r.operand("v", Heads)?;
    let scale = attributes.number_or("scale", 1.0 / (depth as f64).sqrt())? as f32;
    let y = r.graph.one(Attention { heads, scale }, &[q, k, v])?;
    r.output("y", Heads, y);
    Ok(())
}

/// Magnitude-preserving sum, or concatenation along the channels, of `a` and `b`.
fn mp_join(attributes: &Attributes, r: &mut Recipe, concatenate: bool) -> Result<()> {
    let (a, b) = (r.operand("a", ChannelsLast)?, r.operand("b", ChannelsLast)?);
    let t = attributes.number_or("t", 0.5)?;
    let y = match concatenate {
        true => {
            let channels = [a, b].map(|tensor| *r.graph.ty(tensor).shape.last().unwrap_or(&1));
            r.graph.one(Concat::mp_cat(channels, t), &[a, b])?
        }
        false => r.graph.one(Combine::mp_sum(t), &[a, b])?,
    };
    r.output("y", ChannelsLast, y);
    Ok(())
}

/// A layer whose stored weight is normalised in use.
fn mp_single(attributes: &Attributes, r: &mut Recipe, convolution: bool) -> Result<()> {
    let gain = attributes.number_or("gain", 1.0)? as f32;
    let arrangement = if convolution { ChannelsLast } else { Same };
    let x = if convolution { image("x", r)? } else { r.operand("x", Same)? };
    let weight = r.operand("weight", Same)?;
    let y = mp_layer(&mut r.graph, x, weight, WeightNorm { gain, ..WeightNorm::PLAIN }, None)?;
    r.output("y", arrangement, y);
    Ok(())
}

fn norm_silu_conv2d(attributes: &Attributes, r: &mut Recipe) -> Result<()> {
    let mut x = image("x", r)?;
    if r.has("skip") {
        let skip = image("skip", r)?;
        x = r.graph.one(Concat::PLAIN, &[x, skip])?;
    }
    let gamma = r.operand("norm.weight", Same)?;
    let beta = r.operand("norm.bias", Same)?;
    let op = GroupNorm {
        groups: attributes.size("groups")?,
        eps: attributes.number_or("eps", 1e-5)? as f32,
        silu: false,
    };
    let mut h = r.graph.one(op, &[x, gamma, beta])?;
    if attributes.flag_or("silu", true)? {
        h = r.graph.one(Activation::SILU, &[h])?;
    }
    let (weight, bias) = weight_and_bias(r)?;
    let mut y = convolve(attributes, r, h, weight, bias)?;
    if r.has("shift") {
        let shift = r.operand("shift", Same)?;
        y = r.graph.one(Combine::ADD, &[y, shift])?;
    }
    if r.has("residual") {
        let residual = image("residual", r)?;
        y = r.graph.one(Combine::ADD, &[y, residual])?;
    }
    r.output("y", ChannelsLast, y);
    Ok(())
}

fn unet2d(attributes: &Attributes, r: &mut Recipe) -> Result<()> {
    let network = DdpmUnet::new(UnetConfig::from_json(attributes.object())?)?;
    let x = image("x", r)?;
    let timesteps = r.operand("timesteps", Same)?;
    let y = network.build(&mut r.graph, x, Given::times(timesteps))?;
    r.take_parameters()?;
    r.output("y", ChannelsLast, y);
    r.intermediates();
    Ok(())
}

fn edm2_precond(attributes: &Attributes, r: &mut Recipe) -> Result<()> {
    let network = Edm2Unet::new(Edm2Config::from_json(attributes.object())?)?;
    let x = image("x", r)?;
    super::edm::check_levels(&r.values("sigma")?)?;
    let sigma = r.operand("sigma", Same)?;
    let levels = r.graph.ty(sigma).elements();
    let sigma = r.graph.reshape(sigma, &[levels])?;
    let labels = if r.has("labels") { Some(r.operand("labels", Same)?) } else { None };
    let denoised = network.denoise(&mut r.graph, x, Given { labels, ..Given::times(sigma) })?;
    r.take_parameters()?;
    r.output("y", ChannelsLast, denoised.image);
    r.output("logvar", Same, denoised.log_variance);
    r.intermediates();
    Ok(())
}
