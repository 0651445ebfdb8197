//! Files that people and other programs read: what is written here is written whole or not at all.

pub mod atomic;
pub mod diffusers;
pub mod event_file;
pub mod image_grid;
pub mod layout;
pub mod metrics;
pub mod picture;
pub mod reference_case;
pub mod run_folder;
pub mod tensors;
pub mod verdict;
