//! Networks: their settings, and the graphs they become.

pub mod json_config;
pub mod unet_config;

pub use unet_config::UnetConfig;
