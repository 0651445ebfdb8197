//! Training: settings, learning rates, initial weights, optimizer, checkpoints and the loop.

pub mod config;
pub mod init;
pub mod lr_schedule;

pub use config::Config;
