//! Pictures in: folders of images, synthetic jellyfish, and the batches that training reads.

pub mod counter;
pub mod synthetic;
