//! Training: settings, learning rates, initial weights, optimizer, checkpoints and the loop.

pub mod averages;
pub mod checkpoint;
pub mod config;
pub mod held_out;
pub mod init;
pub mod loss_scale;
pub mod lr_schedule;
pub mod objective;
pub mod pictures;
pub mod power_ema;
pub mod run;
pub mod trainer;

pub use config::Config;
