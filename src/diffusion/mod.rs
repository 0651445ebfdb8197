//! Noise schedules, what a network predicts, and samplers as tables of coefficients.

pub mod denoiser;
pub mod edm;
pub mod process;
pub mod samplers;
pub mod schedule;
pub mod scheduler_config;
pub mod seeds;

pub use process::{EdmProcess, Process};
pub use schedule::NoiseSchedule;
pub use scheduler_config::{Prediction, SchedulerConfig};
