//! NVIDIA GPUs, through cudarc's driver API; everything of cudarc is in this folder.
//!
//! The kernels' machine code is built into the binary. A session allocates twice when it is
//! opened; a program becomes one CUDA graph; nothing is compiled or allocated in a step.

mod graph;
mod image;
mod probe;
mod session;

pub use probe::devices;
pub use session::Cuda;

use crate::error::Error;
use cudarc::driver::DriverError;

/// A failed call of the driver as an error: what was tried, and the driver's name for the failure.
fn refused(what: &str, error: DriverError) -> Error {
    let name = error.error_name().ok().map(|name| name.to_string_lossy().into_owned());
    let name = name.unwrap_or_else(|| format!("{:?}", error.0));
    let text = error.error_string().ok().map(|text| text.to_string_lossy().into_owned());
    Error::device(format!("the GPU driver could not {what}: {name}, {}", text.unwrap_or_default()))
}
