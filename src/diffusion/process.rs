//! The process from image to noise that a network is trained for: what model folders keep beside the
//! network's settings.

use super::{NoiseSchedule, SchedulerConfig};
use crate::error::{Error, Result};
use crate::models::{Network, NetworkConfig, NoiseInput, json_config};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// See the module.
#[derive(Clone, Debug, PartialEq)]
pub enum Process {
    /// Of discrete timesteps (Ho et al. 2020), under diffusers' names.
    Ddpm(SchedulerConfig),
    /// Of noise levels σ, with a preconditioned network (Karras et al. 2022, arXiv:2206.00364).
    Edm(EdmProcess),
}

/// Noise levels of any size: a noisy image is x₀ + σ·ε, and training draws ln σ from a normal
/// distribution (the same paper, table 1).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EdmProcess {
    /// Mean of ln σ.
    pub p_mean: f64,
    /// Its standard deviation.
    pub p_std: f64,
}

impl Default for EdmProcess {
    /// As for EDM2 on latents of ImageNet at 512×512 (Karras et al. 2024, arXiv:2312.02696, table 6).
    fn default() -> Self {
        EdmProcess { p_mean: -0.4, p_std: 1.0 }
    }
}

impl EdmProcess {
    const CLASS: &str = "EdmProcess";

    fn from_json(object: &Map<String, Value>) -> Result<EdmProcess> {
        let process: EdmProcess = json_config::from_object("noise configuration", object)?;
        process.validate()?;
        Ok(process)
    }

    fn to_json(self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(object)) => object,
            _ => unreachable!("a struct of plain values is a JSON object"),
        }
    }

    fn validate(&self) -> Result<()> {
        let refuse = |key: &str, value: f64, needed: &str| {
            Err(Error::invalid(format!("{key} is {value}; {needed} is needed")))
        };
        // Levels far outside can't be told from no noise, or from noise alone, in float32.
        if !(-20.0..=20.0).contains(&self.p_mean) {
            return refuse("p_mean", self.p_mean, "a number from -20 to 20");
        }
        if !(self.p_std > 0.0 && self.p_std <= 10.0) {
            return refuse("p_std", self.p_std, "a number above 0, and at most 10,");
        }
        Ok(())
    }

    /// The level σ that a standard normal number stands for.
    pub fn level(&self, normal: f64) -> f32 {
        (self.p_mean + self.p_std * normal).exp() as f32
    }
}

impl Process {
    /// Reads and validates the object of a `scheduler_config.json`.
    ///
    /// # Errors
    /// What the process's own settings refuse.
    pub fn from_json(object: &Map<String, Value>) -> Result<Process> {
        match object.get("_class_name").and_then(Value::as_str) {
            Some(EdmProcess::CLASS) => EdmProcess::from_json(object).map(Process::Edm),
            _ => SchedulerConfig::from_json(object).map(Process::Ddpm),
        }
    }

    /// The object of a `scheduler_config.json`, without notes on who wrote it.
    pub fn to_json(&self) -> Map<String, Value> {
        match self {
            Process::Ddpm(config) => config.to_ddpm_json(),
            Process::Edm(process) => process.to_json(),
        }
    }

    /// Library and class, as `model_index.json` has them.
    pub fn class(&self) -> [&'static str; 2] {
        match self {
            Process::Ddpm(_) => ["diffusers", "DDPMScheduler"],
            Process::Edm(_) => ["cyanea", EdmProcess::CLASS],
        }
    }

    /// # Errors
    /// Settings out of range.
    pub fn validate(&self) -> Result<()> {
        match self {
            Process::Ddpm(config) => config.validate(),
            Process::Edm(process) => process.validate(),
        }
    }

    /// Whether networks for both are told and predict the same, so that one can guide the other.
    ///
    /// # Errors
    /// Settings out of range.
    pub fn agrees_with(&self, other: &Process) -> Result<bool> {
        Ok(match (self, other) {
            (Process::Ddpm(a), Process::Ddpm(b)) => {
                NoiseSchedule::new(a)? == NoiseSchedule::new(b)?
            }
            (Process::Edm(_), Process::Edm(_)) => true,
            _ => false,
        })
    }

    /// The network for this process.
    ///
    /// # Errors
    /// Settings out of range, or a network that is not made for such a process.
    pub fn network(&self, config: &NetworkConfig) -> Result<Box<dyn Network>> {
        match self {
            Process::Ddpm(scheduler) => {
                config.network(NoiseInput::Timesteps(&NoiseSchedule::new(scheduler)?.steps()))
            }
            Process::Edm(_) => config.network(NoiseInput::Levels),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::scheduler_config::Prediction;
    use serde_json::json;

    fn parse(value: Value) -> Result<Process> {
        Process::from_json(value.as_object().unwrap())
    }

    #[test]
    fn what_is_written_reads_back() {
        for process in [
            Process::Ddpm(SchedulerConfig::default()),
            Process::Edm(EdmProcess { p_mean: -0.8, p_std: 1.6 }),
        ] {
            let mut object = process.to_json();
            object.insert("_class_name".into(), process.class()[1].into());
            assert_eq!(Process::from_json(&object).unwrap(), process);
        }
    }

    #[test]
    fn impossible_levels_are_refused() {
        for (key, value) in [("p_mean", 90.0), ("p_std", 0.0), ("p_std", -1.0)] {
            let said = parse(json!({"_class_name": "EdmProcess", (key): value})).unwrap_err();
            assert!(said.to_string().contains(&format!("{key} is {value}")), "{said}");
        }
        let said = parse(json!({"_class_name": "EdmProcess", "p_men": 0})).unwrap_err();
        assert!(said.to_string().contains("did you mean `p_mean`"), "{said}");
    }

    #[test]
    fn processes_agree_where_networks_are_told_and_predict_the_same() {
        let ddpm = |change: &dyn Fn(&mut SchedulerConfig)| {
            let mut config = SchedulerConfig::default();
            change(&mut config);
            Process::Ddpm(config)
        };
        let plain = ddpm(&|_| ());
        let edm = Process::Edm(EdmProcess::default());
        let edms = Process::Edm(EdmProcess { p_mean: -0.8, p_std: 1.6 });
        for (a, b, agree) in [
            (&plain, &ddpm(&|config| config.clip_sample = !config.clip_sample), true),
            (&plain, &ddpm(&|config| config.prediction_type = Prediction::Velocity), false),
            (&plain, &ddpm(&|config| config.num_train_timesteps = 500), false),
            (&edm, &edms, true),
            (&plain, &edm, false),
        ] {
            assert_eq!(a.agrees_with(b).unwrap(), agree, "{a:?} {b:?}");
        }
    }

    #[test]
    fn the_ddpm_network_has_no_noise_levels() {
        let network = NetworkConfig::Ddpm(crate::models::UnetConfig::default());
        let said = Process::Edm(EdmProcess::default()).network(&network).err().unwrap();
        assert!(said.to_string().contains("edm2"), "{said}");
    }
}
