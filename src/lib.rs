//! **cyanea** trains and samples diffusion U-Nets.
//!
//! Two ideas carry everything. *Everything that runs is a [`device::Program`]*: a flat list of
//! launches over memory whose size is known before anything runs. And *a node runs as often as
//! what it depends on changes*: [`graph`] sorts a network's nodes into programs by that rule.
//!
//! Rooms, lowest first; a room imports only what stands before it in this list:
//! [`error`], [`device`], [`ops`], [`graph`], [`models`], [`diffusion`], [`data`], [`formats`],
//! [`training`], [`cli`].

pub mod cli;
pub mod compare;
pub mod data;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod formats;
pub mod graph;
pub mod models;
pub mod ops;
pub mod training;

pub use error::{Error, Result};
