//! Finds out whether there is a usable GPU. Never panics, whatever is or is not installed.

use super::refused;
use crate::error::{Error, Result};
use cudarc::driver::{result, sys};
use std::sync::OnceLock;

/// CUDA 12.0; older drivers can't load machine code of CUDA 12.
const OLDEST_DRIVER: i32 = 12_000;

/// Number of NVIDIA GPUs that the driver shows.
///
/// # Errors
/// In one sentence: no driver, a driver too old, or a driver that fails.
pub fn devices() -> Result<u32> {
    static FOUND: OnceLock<std::result::Result<u32, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        // cudarc panics where a library lacks a function that it looks for.
        std::panic::catch_unwind(probe)
            .unwrap_or_else(|_| Err(Error::device("the NVIDIA driver lacks functions of CUDA 12")))
            .map_err(|error| error.to_string())
    });
    found.clone().map_err(Error::Device)
}

fn probe() -> Result<u32> {
    // SAFETY: only tries to load the driver's library.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::device(
            "there is no NVIDIA driver on this machine (libcuda was not found); \
             use --device cpu or --device emulated",
        ));
    }
    let mut version = 0;
    // SAFETY: writes one integer; may be called before the driver is initialised.
    unsafe { sys::cuDriverGetVersion(&mut version) }
        .result()
        .map_err(|error| refused("tell its version", error))?;
    if version < OLDEST_DRIVER {
        return Err(Error::device(format!(
            "the NVIDIA driver supports CUDA {}.{} and at least 12.0 is needed; update the driver",
            version / 1000,
            version % 1000 / 10
        )));
    }
    result::init().map_err(|error| refused("start", error))?;
    let count = result::device::get_count().map_err(|error| refused("count GPUs", error))?;
    if count == 0 {
        return Err(Error::device(
            "the NVIDIA driver shows no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES",
        ));
    }
    Ok(count as u32)
}
