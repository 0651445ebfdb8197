//! Settings of the EDM2 network, under the names of the keyword arguments that the reference
//! implementation's `Precond` takes, and with its defaults.

use super::json_config;
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// See the module. [`Edm2Config::default`] has the values that hold for keys that are left out; files
/// must name the resolution and the channels of their images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Edm2Config {
    /// Resolution of the finest level. It names levels, in parameters and in `attn_resolutions`;
    /// inputs may have another height and width.
    pub img_resolution: usize,
    pub img_channels: usize,
    /// Height and width the network was trained for, where they are not the resolution: ours, not
    /// the reference's.
    pub sample_size: Option<[usize; 2]>,
    /// Classes; 0: the network takes no labels.
    pub label_dim: usize,
    /// Of the reference; here precision belongs to the target, so this has no effect.
    pub use_fp16: bool,
    /// Standard deviation of the data.
    pub sigma_data: f64,
    /// Fourier features that the log-variance is made from.
    pub logvar_channels: usize,
    pub model_channels: usize,
    /// Channels of each level, from the finest to the coarsest, as multiples of `model_channels`.
    pub channel_mult: Vec<f64>,
    /// Fourier features of the noise level, as a multiple of `model_channels`; absent: as the finest
    /// level.
    pub channel_mult_noise: Option<f64>,
    /// Channels of the embedding, as a multiple of `model_channels`; absent: as the widest level.
    pub channel_mult_emb: Option<f64>,
    /// Blocks a level on the way down; one more on the way up.
    pub num_blocks: usize,
    /// Levels with self-attention, by their resolution; in the middle it is always there.
    pub attn_resolutions: Vec<usize>,
    /// Share of the label in the embedding, from 0 to 1.
    pub label_balance: f64,
    /// Share of the skip in a concatenation, from 0 to 1.
    pub concat_balance: f64,
    /// Weights of the resampling filter; [1, 1], the only one supported.
    pub resample_filter: Vec<f64>,
    /// Channels of an attention head.
    pub channels_per_head: usize,
    /// Probability of dropping an element in front of a block's second convolution, in training.
    pub dropout: f64,
    /// Share of the branch in the sum of a residual, from 0 to 1.
    pub res_balance: f64,
    /// The same for attention.
    pub attn_balance: f64,
    /// Limit of a block's output; absent: none.
    pub clip_act: Option<f64>,
}

impl Default for Edm2Config {
    fn default() -> Self {
        Self {
            img_resolution: 64,
            img_channels: 3,
            sample_size: None,
            label_dim: 0,
            use_fp16: true,
            sigma_data: 0.5,
            logvar_channels: 128,
            model_channels: 192,
            channel_mult: vec![1.0, 2.0, 3.0, 4.0],
            channel_mult_noise: None,
            channel_mult_emb: None,
            num_blocks: 3,
            attn_resolutions: vec![16, 8],
            label_balance: 0.5,
            concat_balance: 0.5,
            resample_filter: vec![1.0, 1.0],
            channels_per_head: 64,
            dropout: 0.0,
            res_balance: 0.3,
            attn_balance: 0.3,
            clip_act: Some(256.0),
        }
    }
}

/// Bounds that keep a hostile file from asking for unbounded work; all are far above real networks.
const MOST_LEVELS: usize = 16;
const MOST_BLOCKS: usize = 64;
const MOST_CHANNELS: usize = 1 << 16;

impl Edm2Config {
    /// Reads and validates a JSON object.
    ///
    /// # Errors
    /// Missing or unknown keys, wrong types, and whatever [`Edm2Config::validate`] refuses.
    pub fn from_json(object: &Map<String, Value>) -> Result<Self> {
        for key in ["img_resolution", "img_channels"] {
            if !object.contains_key(key) {
                return Err(Error::invalid(format!(
                    "EDM2 configuration: {key} is missing; add it"
                )));
            }
        }
        let config: Self = json_config::from_object("EDM2 configuration", object)?;
        config.validate()?;
        Ok(config)
    }

    /// The object that [`Edm2Config::from_json`] reads.
    pub fn to_json(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            _ => unreachable!("a struct of plain values is a JSON object"),
        }
    }

    /// Number of resolutions.
    pub fn levels(&self) -> usize {
        self.channel_mult.len()
    }

    /// Channels of a level; 0 is the finest.
    pub fn channels(&self, level: usize) -> usize {
        self.multiple(self.channel_mult[level])
    }

    /// A level's resolution, which names it.
    pub fn resolution(&self, level: usize) -> usize {
        self.img_resolution >> level
    }

    /// Whether a level's blocks have self-attention.
    pub fn attends(&self, level: usize) -> bool {
        self.attn_resolutions.contains(&self.resolution(level))
    }

    /// Fourier features of the noise level.
    pub fn noise_channels(&self) -> usize {
        self.channel_mult_noise.map_or_else(|| self.channels(0), |share| self.multiple(share))
    }

    /// Channels of the embedding.
    pub fn embedding_channels(&self) -> usize {
        let widest = || (0..self.levels()).map(|level| self.channels(level)).max().unwrap_or(0);
        self.channel_mult_emb.map_or_else(widest, |share| self.multiple(share))
    }

    fn multiple(&self, share: f64) -> usize {
        (self.model_channels as f64 * share) as usize
    }

    /// Height and width must be multiples of this.
    pub fn size_multiple(&self) -> usize {
        1 << self.levels().saturating_sub(1)
    }

    /// Whether the network takes inputs of this size.
    ///
    /// # Errors
    /// A size that is 0 or doesn't divide by [`Edm2Config::size_multiple`].
    pub fn check_size(&self, height: usize, width: usize) -> Result<()> {
        super::check_size(self.levels(), height, width)
    }

    /// Whether this network can be built.
    ///
    /// # Errors
    /// The first problem found, with its key, its value and the remedy.
    pub fn validate(&self) -> Result<()> {
        let within = |key: &str, value: usize, least: usize, most: usize| {
            if (least..=most).contains(&value) {
                return Ok(());
            }
            Err(refuse(key, value, &format!("a number from {least} to {most} is needed")))
        };
        within("img_channels", self.img_channels, 1, MOST_CHANNELS)?;
        within("label_dim", self.label_dim, 0, MOST_CHANNELS)?;
        within("logvar_channels", self.logvar_channels, 1, MOST_CHANNELS)?;
        within("model_channels", self.model_channels, 1, MOST_CHANNELS)?;
        within("num_blocks", self.num_blocks, 1, MOST_BLOCKS)?;
        within("channels_per_head", self.channels_per_head, 1, MOST_CHANNELS)?;
        let levels = self.levels();
        if !(1..=MOST_LEVELS).contains(&levels) {
            let what = format!("1 to {MOST_LEVELS} levels are needed");
            return Err(refuse("channel_mult", format!("a list of {levels}"), &what));
        }
        // It names levels, so each must have one of its own.
        if self.resolution(levels - 1) == 0 {
            let what = format!("{levels} levels need at least {}", self.size_multiple());
            return Err(refuse("img_resolution", self.img_resolution, &what));
        }
        if self.resample_filter != [1.0, 1.0] {
            let given = format!("{:?}", self.resample_filter);
            return Err(refuse(
                "resample_filter",
                json_config::shorten(&given),
                "supported is [1, 1]",
            ));
        }
        self.check_shares()?;
        self.check_channels()?;
        self.sample_size.map_or(Ok(()), |[height, width]| self.check_size(height, width))
    }

    fn check_shares(&self) -> Result<()> {
        for (key, share) in [
            ("label_balance", self.label_balance),
            ("concat_balance", self.concat_balance),
            ("res_balance", self.res_balance),
            ("attn_balance", self.attn_balance),
        ] {
            if !(0.0..=1.0).contains(&share) {
                return Err(refuse(key, share, "a number from 0 to 1 is needed"));
            }
        }
        for (key, value) in [
            ("sigma_data", Some(self.sigma_data)),
            ("clip_act", self.clip_act),
            ("channel_mult_noise", self.channel_mult_noise),
            ("channel_mult_emb", self.channel_mult_emb),
        ] {
            if let Some(value) = value.filter(|value| !(*value > 0.0 && value.is_finite())) {
                return Err(refuse(key, value, "a positive number is needed"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(refuse("dropout", self.dropout, "a number from 0 to below 1 is needed"));
        }
        Ok(())
    }

    fn check_channels(&self) -> Result<()> {
        let levels = self.levels();
        for (key, channels) in [
            ("channel_mult_noise".to_string(), self.noise_channels()),
            ("channel_mult_emb".to_string(), self.embedding_channels()),
        ]
        .into_iter()
        .chain((0..levels).map(|level| (format!("channel_mult[{level}]"), self.channels(level))))
        {
            if !(1..=MOST_CHANNELS).contains(&channels) {
                let what = format!("1 to {MOST_CHANNELS} channels are needed");
                return Err(refuse(&key, format!("{channels} channels"), &what));
            }
        }
        for level in 0..levels {
            let (channels, each) = (self.channels(level), self.channels_per_head);
            // Attention in the middle is always there.
            if (self.attends(level) || level == levels - 1) && !channels.is_multiple_of(each) {
                let above = channels.div_ceil(each) * each;
                return Err(Error::invalid(format!(
                    "EDM2 configuration: level {level} has {channels} channels and self-attention, \
                     which do not divide by channels_per_head = {each}; {above} channels would, or \
                     another channels_per_head"
                )));
            }
        }
        Ok(())
    }
}

pub(super) fn refuse(key: &str, value: impl std::fmt::Display, remedy: &str) -> Error {
    Error::invalid(format!("EDM2 configuration: {key} is {value}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Images of 64×64×3 unless the text says otherwise.
    fn parse(text: &str) -> Result<Edm2Config> {
        let mut object = Map::from_iter([
            ("img_resolution".to_string(), Value::from(64)),
            ("img_channels".to_string(), Value::from(3)),
        ]);
        let given: Value = serde_json::from_str(text).unwrap();
        object.extend(given.as_object().unwrap().clone());
        Edm2Config::from_json(&object)
    }

    #[test]
    fn absent_keys_take_the_references_defaults() {
        let config = parse("{}").unwrap();
        assert_eq!(config, Edm2Config::default());
        assert_eq!((config.noise_channels(), config.embedding_channels()), (192, 768));
        let mut written = config.to_json();
        assert_eq!(Edm2Config::from_json(&written).unwrap(), config);
        written.insert("sample_size".into(), serde_json::json!([40, 64]));
        assert_eq!(Edm2Config::from_json(&written).unwrap().sample_size, Some([40, 64]));
        written.insert("sample_size".into(), serde_json::json!([40, 60]));
        assert!(Edm2Config::from_json(&written).unwrap_err().to_string().contains("40×64"));
        let attends: Vec<bool> = (0..4).map(|level| config.attends(level)).collect();
        assert_eq!(attends, [false, false, true, true]);
        let config = parse(r#"{"channel_mult_noise": 0.5, "channel_mult_emb": 2}"#).unwrap();
        assert_eq!((config.noise_channels(), config.embedding_channels()), (96, 384));
    }

    #[test]
    fn resolution_and_channels_must_be_named() {
        let object = Map::from_iter([("img_resolution".to_string(), Value::from(64))]);
        let said = Edm2Config::from_json(&object).unwrap_err().to_string();
        assert!(said.contains("img_channels is missing"), "{said}");
    }

    #[test]
    fn what_can_not_be_built_is_named_with_a_remedy() {
        for (text, parts) in [
            (r#"{"img_resolution": 7}"#, ["img_resolution is 7", "at least 8"]),
            (r#"{"channel_mult": []}"#, ["channel_mult is a list of 0", "1 to 16"]),
            (r#"{"channel_mult": [1, 0]}"#, ["channel_mult[1] is 0 channels", "1 to"]),
            (r#"{"model_channels": 100}"#, ["300 channels", "channels_per_head = 64"]),
            (r#"{"channels_per_head": 0}"#, ["channels_per_head is 0", "1 to"]),
            (r#"{"resample_filter": [1, 3, 3, 1]}"#, ["resample_filter", "[1, 1]"]),
            (r#"{"sigma_data": 0}"#, ["sigma_data is 0", "positive"]),
            (r#"{"res_balance": 1.5}"#, ["res_balance is 1.5", "0 to 1"]),
            (r#"{"dropout": 1}"#, ["dropout is 1", "below 1"]),
            (r#"{"num_blocks": -1}"#, ["num_blocks", "-1"]),
            (r#"{"num_block": 1}"#, ["num_block", "did you mean `num_blocks`"]),
        ] {
            let said = parse(text).expect_err(text).to_string();
            for part in parts {
                assert!(said.contains(part), "{text}: {said}");
            }
        }
    }
}
