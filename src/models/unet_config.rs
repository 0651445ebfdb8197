//! Settings of the DDPM U-Net: those of diffusers' `UNet2DModel`, under its names and with its
//! constructor's defaults, so that a `config.json` means here what it means there.

use super::json_config;
use crate::error::{Error, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// A level on the way down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DownBlock {
    /// Residual blocks.
    #[serde(rename = "DownBlock2D", alias = "UNetResDownBlock2D")]
    Plain,
    /// Each residual block followed by self-attention.
    #[serde(rename = "AttnDownBlock2D", alias = "UNetResAttnDownBlock2D")]
    Attention,
}

/// A level on the way up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpBlock {
    /// Residual blocks.
    #[serde(rename = "UpBlock2D", alias = "UNetResUpBlock2D")]
    Plain,
    /// Each residual block followed by self-attention.
    #[serde(rename = "AttnUpBlock2D", alias = "UNetResAttnUpBlock2D")]
    Attention,
}

/// How the time embedding enters a residual block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TimeScaleShift {
    /// Added in front of the second normalisation.
    #[serde(rename = "default")]
    Default,
    /// Scales and shifts what the second normalisation gives: `norm2(h)·(1 + scale) + shift`.
    #[serde(rename = "scale_shift")]
    ScaleShift,
}

/// Every attribute of diffusers' `UNet2DModel`. [`UnetConfig::default`] has the values of its
/// constructor, which hold for keys that a file leaves out; `null` is a value of its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UnetConfig {
    /// Height and width the network was trained for; one number for a square.
    #[serde(serialize_with = "write_size", deserialize_with = "read_size")]
    pub sample_size: Option<[usize; 2]>,
    pub in_channels: usize,
    pub out_channels: usize,
    /// Whether the input becomes `2·x − 1` first.
    pub center_input_sample: bool,
    /// `positional`, the only one supported.
    pub time_embedding_type: String,
    /// Width of the time embedding; absent or 0: four times the first level's channels.
    pub time_embedding_dim: Option<usize>,
    /// Subtracted from the number of frequencies in the embedding's exponent.
    pub freq_shift: f64,
    /// Whether the embedding is `[cos, sin]` instead of `[sin, cos]`.
    pub flip_sin_to_cos: bool,
    /// From the finest level to the coarsest.
    pub down_block_types: Vec<DownBlock>,
    /// `UNetMidBlock2D`, the only one supported.
    pub mid_block_type: Option<String>,
    /// From the coarsest level to the finest.
    pub up_block_types: Vec<UpBlock>,
    /// Channels of each level, from the finest to the coarsest.
    pub block_out_channels: Vec<usize>,
    /// Residual blocks a level on the way down; one more on the way up.
    pub layers_per_block: usize,
    /// What the sums of residual and branch in the middle are divided by.
    pub mid_block_scale_factor: f64,
    /// 1: symmetric zero padding; 0: one zero row below and one zero column on the right.
    pub downsample_padding: usize,
    /// `conv`, the only one supported.
    pub downsample_type: String,
    /// `conv`, the only one supported.
    pub upsample_type: String,
    /// Probability of dropping an element in front of a residual block's second convolution,
    /// in training.
    pub dropout: f64,
    /// `silu`, also known as `swish`; the only one supported.
    pub act_fn: String,
    /// Channels of an attention head; `null`: one head.
    pub attention_head_dim: Option<usize>,
    pub norm_num_groups: usize,
    /// Groups of the normalisation in front of the middle's attention; see
    /// [`UnetConfig::mid_attention_groups`].
    pub attn_norm_num_groups: Option<usize>,
    pub norm_eps: f64,
    pub resnet_time_scale_shift: TimeScaleShift,
    /// Whether the middle has attention.
    pub add_attention: bool,
    /// `null`, the only one supported.
    pub class_embed_type: Option<String>,
    /// `null`, the only one supported.
    pub num_class_embeds: Option<usize>,
    /// Of the learned time embedding, which is not supported; without effect on the others.
    pub num_train_timesteps: Option<usize>,
}

impl Default for UnetConfig {
    fn default() -> Self {
        use {DownBlock as D, UpBlock as U};
        Self {
            sample_size: None,
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_type: "positional".into(),
            time_embedding_dim: None,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: vec![D::Plain, D::Attention, D::Attention, D::Attention],
            mid_block_type: Some("UNetMidBlock2D".into()),
            up_block_types: vec![U::Attention, U::Attention, U::Attention, U::Plain],
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: "conv".into(),
            upsample_type: "conv".into(),
            dropout: 0.0,
            act_fn: "silu".into(),
            attention_head_dim: Some(8),
            norm_num_groups: 32,
            attn_norm_num_groups: None,
            norm_eps: 1e-5,
            resnet_time_scale_shift: TimeScaleShift::Default,
            add_attention: true,
            class_embed_type: None,
            num_class_embeds: None,
            num_train_timesteps: None,
        }
    }
}

/// Bounds that keep a hostile file from asking for unbounded work; all are far above real networks.
const MOST_LEVELS: usize = 16;
const MOST_LAYERS: usize = 64;
const MOST_CHANNELS: usize = 1 << 16;

impl UnetConfig {
    /// Reads and validates a `config.json` object.
    ///
    /// # Errors
    /// Unknown keys, wrong types, and whatever [`UnetConfig::validate`] refuses.
    pub fn from_json(object: &Map<String, Value>) -> Result<Self> {
        let config: Self = json_config::from_object("U-Net configuration", object)?;
        config.validate()?;
        Ok(config)
    }

    /// The object of a `config.json`, without diffusers' own notes (`_class_name` and so on).
    pub fn to_json(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(mut object)) => {
                // diffusers declares an integer.
                if self.freq_shift.fract() == 0.0 && self.freq_shift.abs() < 1e9 {
                    object.insert("freq_shift".into(), Value::from(self.freq_shift as i64));
                }
                object
            }
            _ => unreachable!("a struct of plain values is a JSON object"),
        }
    }

    pub fn levels(&self) -> usize {
        self.block_out_channels.len()
    }

    /// Width of the time embedding.
    pub fn time_embed_dim(&self) -> usize {
        let first = self.block_out_channels.first().copied().unwrap_or(0);
        self.time_embedding_dim.filter(|&dim| dim > 0).unwrap_or(4 * first)
    }

    /// Attention heads at `channels` channels, and the channels of each. Where they do not add up to
    /// `channels`, attention is narrower than the activation, as in diffusers.
    pub fn heads(&self, channels: usize) -> (usize, usize) {
        self.attention_head_dim.map_or((1, channels), |dim| (channels / dim, dim))
    }

    /// Groups of the normalisation in front of the middle's attention; `None`: there is none, which
    /// is so under [`TimeScaleShift::ScaleShift`] unless `attn_norm_num_groups` is set.
    pub fn mid_attention_groups(&self) -> Option<usize> {
        self.attn_norm_num_groups.or(match self.resnet_time_scale_shift {
            TimeScaleShift::Default => Some(self.norm_num_groups),
            TimeScaleShift::ScaleShift => None,
        })
    }

    /// Height and width must be multiples of this: 2 to the number of downsamplings.
    pub fn size_multiple(&self) -> usize {
        1 << (self.levels().clamp(1, MOST_LEVELS) - 1)
    }

    /// # Errors
    /// A size that is 0 or doesn't divide by [`UnetConfig::size_multiple`].
    pub fn check_size(&self, height: usize, width: usize) -> Result<()> {
        super::check_size(self.levels(), height, width)
    }

    /// Whether this network can be built; what is not supported is named with what is.
    ///
    /// # Errors
    /// The first problem found, with its key, its value and the remedy.
    pub fn validate(&self) -> Result<()> {
        self.check_supported()?;
        self.check_numbers()?;
        self.check_channels()?;
        self.sample_size.map_or(Ok(()), |[height, width]| self.check_size(height, width))
    }

    fn check_supported(&self) -> Result<()> {
        let only = |key: &str, value: &str, supported: &[&str]| {
            if supported.contains(&value) {
                return Ok(());
            }
            let value = format!("\"{}\"", json_config::shorten(value));
            Err(refuse(key, value, &format!("supported is {}", supported.join(" or "))))
        };
        only("time_embedding_type", &self.time_embedding_type, &["positional"])?;
        only("downsample_type", &self.downsample_type, &["conv"])?;
        only("upsample_type", &self.upsample_type, &["conv"])?;
        only("act_fn", &self.act_fn, &["silu", "swish"])?;
        let mid = self.mid_block_type.as_deref().unwrap_or("null");
        only("mid_block_type", mid, &["UNetMidBlock2D"])?;
        only("class_embed_type", self.class_embed_type.as_deref().unwrap_or("null"), &["null"])?;
        if let Some(classes) = self.num_class_embeds {
            return Err(refuse(
                "num_class_embeds",
                classes,
                "class conditioning is not supported; only null is",
            ));
        }
        if self.downsample_padding > 1 {
            return Err(refuse("downsample_padding", self.downsample_padding, "0 or 1 is needed"));
        }
        Ok(())
    }

    fn check_numbers(&self) -> Result<()> {
        let within = |key: &str, value: usize, most: usize| {
            if (1..=most).contains(&value) {
                return Ok(());
            }
            Err(refuse(key, value, &format!("a number from 1 to {most} is needed")))
        };
        within("in_channels", self.in_channels, MOST_CHANNELS)?;
        within("out_channels", self.out_channels, MOST_CHANNELS)?;
        within("layers_per_block", self.layers_per_block, MOST_LAYERS)?;
        within("norm_num_groups", self.norm_num_groups, MOST_CHANNELS)?;
        if let Some(groups) = self.attn_norm_num_groups {
            within("attn_norm_num_groups", groups, MOST_CHANNELS)?;
        }
        if let Some(dim) = self.attention_head_dim {
            within("attention_head_dim", dim, MOST_CHANNELS)?;
        }
        within("time_embedding_dim", self.time_embed_dim().max(1), 16 * MOST_CHANNELS)?;
        let positive = |key: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                return Ok(());
            }
            Err(refuse(key, value, "a positive number is needed"))
        };
        positive("norm_eps", self.norm_eps)?;
        positive("mid_block_scale_factor", self.mid_block_scale_factor)?;
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(refuse("dropout", self.dropout, "a number from 0 to below 1 is needed"));
        }
        Ok(())
    }

    fn check_channels(&self) -> Result<()> {
        let levels = self.levels();
        if !(1..=MOST_LEVELS).contains(&levels) {
            let what = format!("1 to {MOST_LEVELS} levels are needed");
            return Err(refuse("block_out_channels", format!("a list of {levels}"), &what));
        }
        for (key, length) in [
            ("down_block_types", self.down_block_types.len()),
            ("up_block_types", self.up_block_types.len()),
        ] {
            if length != levels {
                let what = format!("block_out_channels has {levels}; both need as many");
                return Err(refuse(key, format!("a list of {length}"), &what));
            }
        }
        for (level, &channels) in self.block_out_channels.iter().enumerate() {
            let key = format!("block_out_channels[{level}]");
            if !(1..=MOST_CHANNELS).contains(&channels) {
                let what = format!("a number from 1 to {MOST_CHANNELS} is needed");
                return Err(refuse(&key, channels, &what));
            }
            divides(&key, channels, "norm_num_groups", self.norm_num_groups)?;
            let attends = self.down_block_types[level] == DownBlock::Attention
                || self.up_block_types[levels - 1 - level] == UpBlock::Attention
                || (level == levels - 1 && self.add_attention);
            let too_wide = |dim: &usize| attends && channels < *dim;
            if let Some(dim) = self.attention_head_dim.filter(too_wide) {
                let what = format!("attention_head_dim = {dim} leaves no head for so few");
                return Err(refuse(&key, channels, &what));
            }
        }
        let last = self.block_out_channels[levels - 1];
        if let Some(groups) = self.attn_norm_num_groups.filter(|_| self.add_attention) {
            divides(
                &format!("block_out_channels[{}]", levels - 1),
                last,
                "attn_norm_num_groups",
                groups,
            )?;
        }
        let first = self.block_out_channels[0];
        if !first.is_multiple_of(2) {
            let what = "the time embedding is half sine, half cosine: an even number is needed";
            return Err(refuse("block_out_channels[0]", first, what));
        }
        // The frequencies' exponents are divided by (half − freq_shift).
        let most = (first / 2) as f64 - 1.0;
        if !(self.freq_shift >= 0.0 && self.freq_shift <= most.max(0.0)) || first == 0 {
            let what = format!(
                "a number from 0 to {most} is needed, below half of block_out_channels[0] = {first}"
            );
            return Err(refuse("freq_shift", self.freq_shift, &what));
        }
        Ok(())
    }
}

pub(super) fn refuse(key: &str, value: impl std::fmt::Display, remedy: &str) -> Error {
    Error::invalid(format!("U-Net configuration: {key} is {value}; {remedy}"))
}

fn divides(key: &str, channels: usize, divisor_key: &str, divisor: usize) -> Result<()> {
    if channels.is_multiple_of(divisor) {
        return Ok(());
    }
    let above = channels.div_ceil(divisor).saturating_mul(divisor);
    Err(Error::invalid(format!(
        "U-Net configuration: {key} = {channels} does not divide by {divisor_key} = {divisor}; \
         {above} channels would, or another {divisor_key}"
    )))
}

fn write_size<S: Serializer>(
    size: &Option<[usize; 2]>,
    out: S,
) -> std::result::Result<S::Ok, S::Error> {
    match size {
        None => out.serialize_none(),
        Some([height, width]) if height == width => out.serialize_u64(*height as u64),
        Some(size) => size.serialize(out),
    }
}

fn read_size<'de, D: Deserializer<'de>>(
    input: D,
) -> std::result::Result<Option<[usize; 2]>, D::Error> {
    let value = Value::deserialize(input)?;
    let number = |value: &Value| value.as_u64().and_then(|n| usize::try_from(n).ok());
    let size = match &value {
        Value::Null => return Ok(None),
        Value::Array(pair) if pair.len() == 2 => number(&pair[0]).zip(number(&pair[1])),
        single => number(single).map(|n| (n, n)),
    };
    size.map(|(height, width)| Some([height, width])).ok_or_else(|| {
        serde::de::Error::custom(format!(
            "{} is no size; a number, or [height, width], is needed",
            json_config::shorten(&value.to_string())
        ))
    })
}

#[cfg(test)]
#[path = "unet_config_tests.rs"]
mod tests;
