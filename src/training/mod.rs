//! Training.

pub mod init;
