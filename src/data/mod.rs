//! Pictures in: folders of images, synthetic jellyfish, and the batches that training reads.

pub mod counter;
pub mod dataset;
pub mod decode;
pub mod image_folder;
pub mod synthetic;
pub mod transforms;

pub use dataset::{Dataset, Picture};
pub use image_folder::{FolderOptions, Loaded, Skipped};
pub use transforms::Crop;
