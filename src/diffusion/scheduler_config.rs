//! Settings of noise schedules and samplers: those of diffusers' `DDPMScheduler`, `DDIMScheduler`
//! and `DPMSolverMultistepScheduler`, under its names and with its defaults.

use crate::error::{Error, Result};
use crate::models::json_config;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// How the variance of the noise that is added at a timestep grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BetaSchedule {
    /// Evenly spaced (Ho et al. 2020).
    Linear,
    /// Evenly spaced square roots (Rombach et al. 2022).
    ScaledLinear,
    /// ᾱ follows a squared cosine (Nichol and Dhariwal 2021), β at most 0.999.
    #[serde(rename = "squaredcos_cap_v2", alias = "cosine")]
    Cosine,
}

/// What the network predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Prediction {
    /// The noise ε.
    #[serde(rename = "epsilon")]
    Epsilon,
    /// The clean image x₀.
    #[serde(rename = "sample")]
    Sample,
    /// `v = √ᾱ·ε − √(1−ᾱ)·x₀` (Salimans and Ho 2022).
    #[serde(rename = "v_prediction", alias = "v")]
    Velocity,
}

/// Variance of the noise that ancestral (DDPM) sampling adds at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarianceType {
    /// That of the posterior, β(1−ᾱ_prev)/(1−ᾱ). In diffusers `fixed_small_log` is the same value.
    #[serde(alias = "fixed_small_log")]
    FixedSmall,
    /// β.
    FixedLarge,
}

/// How the timesteps of a sampling run are spread over those of training
/// (Lin et al. 2024, table 2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

/// The noise level on which DPM-Solver ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinalSigma {
    Zero,
    /// That of the first timestep.
    SigmaMin,
}

/// A diffusers scheduler configuration; the keys of all three classes. Absent keys take the
/// defaults of the class that uses them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    pub num_train_timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub beta_schedule: BetaSchedule,
    /// `null`, the only one supported.
    pub trained_betas: Option<Vec<f64>>,
    pub prediction_type: Prediction,
    /// DDPM; absent: `fixed_small`.
    pub variance_type: Option<VarianceType>,
    /// DDPM and DDIM: whether the predicted image is clipped to ± `clip_sample_range`.
    pub clip_sample: bool,
    pub clip_sample_range: f64,
    /// Absent: leading for DDPM and DDIM, linspace for DPM-Solver.
    pub timestep_spacing: Option<Spacing>,
    /// Added to the timesteps of leading spacing.
    pub steps_offset: usize,
    /// DDIM: whether the last step ends on ᾱ = 1 or on that of timestep 0.
    pub set_alpha_to_one: bool,
    /// DPM-Solver: 1 or 2.
    pub solver_order: usize,
    /// DPM-Solver: first order in the last of fewer than 15 steps.
    pub lower_order_final: bool,
    /// DPM-Solver: first order in the last step.
    pub euler_at_final: bool,
    pub final_sigmas_type: FinalSigma,
    /// `dpmsolver++`, the only one supported.
    pub algorithm_type: String,
    /// `midpoint`, the only one supported.
    pub solver_type: String,
    /// `null` or `-Infinity`, the only ones supported.
    pub lambda_min_clipped: Option<f64>,
    // Switches of which only `false` is supported, and parameters without effect while it is.
    pub thresholding: bool,
    pub dynamic_thresholding_ratio: f64,
    pub sample_max_value: f64,
    pub rescale_betas_zero_snr: bool,
    pub use_karras_sigmas: bool,
    pub use_exponential_sigmas: bool,
    pub use_beta_sigmas: bool,
    pub use_lu_lambdas: bool,
    pub use_flow_sigmas: bool,
    pub flow_shift: f64,
    pub use_dynamic_shifting: bool,
    pub time_shift_type: String,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: BetaSchedule::Linear,
            trained_betas: None,
            prediction_type: Prediction::Epsilon,
            variance_type: None,
            clip_sample: true,
            clip_sample_range: 1.0,
            timestep_spacing: None,
            steps_offset: 0,
            set_alpha_to_one: true,
            solver_order: 2,
            lower_order_final: true,
            euler_at_final: false,
            final_sigmas_type: FinalSigma::Zero,
            algorithm_type: "dpmsolver++".into(),
            solver_type: "midpoint".into(),
            lambda_min_clipped: None,
            thresholding: false,
            dynamic_thresholding_ratio: 0.995,
            sample_max_value: 1.0,
            rescale_betas_zero_snr: false,
            use_karras_sigmas: false,
            use_exponential_sigmas: false,
            use_beta_sigmas: false,
            use_lu_lambdas: false,
            use_flow_sigmas: false,
            flow_shift: 1.0,
            use_dynamic_shifting: false,
            time_shift_type: "exponential".into(),
        }
    }
}

/// Tables have this many rows at most, whatever a file says.
pub const MOST_TIMESTEPS: usize = 1_000_000;

const CLASSES: [&str; 3] = ["DDPMScheduler", "DDIMScheduler", "DPMSolverMultistepScheduler"];

/// The keys of `DDPMScheduler`, which exported models name.
const DDPM_KEYS: [&str; 11] = [
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "variance_type",
    "clip_sample",
    "clip_sample_range",
    "timestep_spacing",
    "steps_offset",
];

impl SchedulerConfig {
    /// Reads and validates a `scheduler_config.json` object.
    ///
    /// # Errors
    /// Another class than the three, unknown keys, wrong types, and whatever
    /// [`SchedulerConfig::validate`] refuses.
    pub fn from_json(object: &Map<String, Value>) -> Result<Self> {
        if let Some(class) = object.get("_class_name")
            && !CLASSES.iter().any(|known| class == known)
        {
            return Err(Error::invalid(format!(
                "scheduler configuration: the class {} is not supported; supported are {}",
                json_config::shorten(&class.to_string()),
                CLASSES.join(", ")
            )));
        }
        let config: Self = json_config::from_object("scheduler configuration", object)?;
        config.validate()?;
        Ok(config)
    }

    /// The object of a `scheduler_config.json` for diffusers' `DDPMScheduler`.
    pub fn to_ddpm_json(&self) -> Map<String, Value> {
        let Ok(Value::Object(all)) = serde_json::to_value(self) else {
            unreachable!("a struct of plain values is a JSON object")
        };
        let mut object = Map::new();
        object.insert("_class_name".into(), "DDPMScheduler".into());
        for key in DDPM_KEYS {
            // An absent choice is written as the class's own default.
            if let Some(value) = all.get(key).filter(|v| !v.is_null() || key == "trained_betas") {
                object.insert(key.into(), value.clone());
            }
        }
        object
    }

    /// # Errors
    /// The first value that is out of range or not supported, with its key and the remedy.
    pub fn validate(&self) -> Result<()> {
        let refuse = |key: &str, value: &dyn std::fmt::Display, remedy: &str| {
            Err(Error::invalid(format!("scheduler configuration: {key} is {value}; {remedy}")))
        };
        let steps = self.num_train_timesteps;
        if !(1..=MOST_TIMESTEPS).contains(&steps) {
            let remedy = format!("a number from 1 to {MOST_TIMESTEPS} is needed");
            return refuse("num_train_timesteps", &steps, &remedy);
        }
        for (key, beta) in [("beta_start", self.beta_start), ("beta_end", self.beta_end)] {
            if !(beta > 0.0 && beta < 1.0) {
                return refuse(key, &beta, "a number between 0 and 1 is needed");
            }
        }
        if self.beta_end < self.beta_start {
            let remedy = format!("at least beta_start = {} is needed", self.beta_start);
            return refuse("beta_end", &self.beta_end, &remedy);
        }
        if !(self.clip_sample_range > 0.0 && self.clip_sample_range.is_finite()) {
            return refuse(
                "clip_sample_range",
                &self.clip_sample_range,
                "a positive number is needed",
            );
        }
        if self.steps_offset >= steps {
            let remedy = format!("it must be below num_train_timesteps = {steps}");
            return refuse("steps_offset", &self.steps_offset, &remedy);
        }
        if !(1..=2).contains(&self.solver_order) {
            return refuse("solver_order", &self.solver_order, "supported is 1 or 2");
        }
        if self.trained_betas.is_some() {
            return refuse("trained_betas", &"a list", "supported is null; name a beta_schedule");
        }
        for (key, value, supported) in [
            ("algorithm_type", &self.algorithm_type, "dpmsolver++"),
            ("solver_type", &self.solver_type, "midpoint"),
        ] {
            if value != supported {
                let value = format!("\"{}\"", json_config::shorten(value));
                return refuse(key, &value, &format!("supported is {supported}"));
            }
        }
        if let Some(clipped) = self.lambda_min_clipped {
            return refuse("lambda_min_clipped", &clipped, "supported is null or -Infinity");
        }
        for (key, on) in [
            ("thresholding", self.thresholding),
            ("rescale_betas_zero_snr", self.rescale_betas_zero_snr),
            ("use_karras_sigmas", self.use_karras_sigmas),
            ("use_exponential_sigmas", self.use_exponential_sigmas),
            ("use_beta_sigmas", self.use_beta_sigmas),
            ("use_lu_lambdas", self.use_lu_lambdas),
            ("use_flow_sigmas", self.use_flow_sigmas),
            ("use_dynamic_shifting", self.use_dynamic_shifting),
        ] {
            if on {
                return refuse(key, &"true", "supported is false");
            }
        }
        Ok(())
    }

    /// Range to which DDPM and DDIM clip the predicted image; `None`: they don't.
    pub fn clip(&self) -> Option<f32> {
        self.clip_sample.then_some(self.clip_sample_range as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SchedulerConfig> {
        let value: Value = serde_json::from_str(text).unwrap();
        SchedulerConfig::from_json(value.as_object().unwrap())
    }

    #[test]
    fn absent_keys_take_defaults_and_what_is_written_reads_back() {
        assert_eq!(parse("{}").unwrap(), SchedulerConfig::default());
        let config = parse(
            r#"{"_class_name": "DDPMScheduler", "beta_schedule": "squaredcos_cap_v2",
                "prediction_type": "v_prediction", "variance_type": "fixed_large",
                "clip_sample": false, "timestep_spacing": "trailing", "steps_offset": 1}"#,
        )
        .unwrap();
        assert_eq!(config.beta_schedule, BetaSchedule::Cosine);
        assert_eq!(config.clip(), None);
        let written = config.to_ddpm_json();
        assert_eq!(written["beta_schedule"], "squaredcos_cap_v2");
        assert!(!written.contains_key("solver_order"));
        assert_eq!(SchedulerConfig::from_json(&written).unwrap(), config);
    }

    #[test]
    fn what_is_not_supported_is_named_with_what_is() {
        for (text, parts) in [
            (r#"{"_class_name": "PNDMScheduler"}"#, ["PNDMScheduler", "DDIMScheduler"]),
            (r#"{"beta_schedule": "sigmoid"}"#, ["sigmoid", "squaredcos_cap_v2"]),
            (r#"{"prediction_type": "flow_prediction"}"#, ["flow_prediction", "v_prediction"]),
            (r#"{"variance_type": "learned_range"}"#, ["learned_range", "fixed_large"]),
            (r#"{"num_train_timesteps": 0}"#, ["num_train_timesteps is 0", "1 to"]),
            (r#"{"num_train_timesteps": -4}"#, ["num_train_timesteps", "-4"]),
            (r#"{"num_train_timesteps": 1000000000000}"#, ["1000000000000", "1000000 is"]),
            (r#"{"beta_start": 0}"#, ["beta_start is 0", "between"]),
            (r#"{"beta_end": 1.5}"#, ["beta_end is 1.5", "between"]),
            (r#"{"beta_end": 0.00001}"#, ["beta_end is 0.00001", "beta_start"]),
            (r#"{"steps_offset": 1000}"#, ["steps_offset is 1000", "below"]),
            (r#"{"solver_order": 3}"#, ["solver_order is 3", "1 or 2"]),
            (r#"{"use_karras_sigmas": true}"#, ["use_karras_sigmas is true", "false"]),
            (r#"{"thresholding": true}"#, ["thresholding is true", "false"]),
            (r#"{"trained_betas": [0.1]}"#, ["trained_betas is a list", "null"]),
            (r#"{"algorithm_type": "sde-dpmsolver++"}"#, ["sde-dpmsolver++", "supported"]),
            (r#"{"clip_sample": "yes"}"#, ["clip_sample", "yes"]),
            (r#"{"betastart": 0.1}"#, ["betastart", "did you mean `beta_start`"]),
        ] {
            let said = parse(text).expect_err(text).to_string();
            for part in parts {
                assert!(said.contains(part), "{text}: {said}");
            }
        }
    }
}
