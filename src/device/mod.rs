//! What a launch, a view, a target and a device are, and the three devices.
//!
//! A device executes [`Program`]s. It knows no operation by name: on the CPU a launch carries an
//! object that implements [`CpuKernel`]; on GPUs it carries a kernel of the build-time manifest
//! with its grid and its parameter bytes.

pub mod cpu;
pub mod cuda;
pub mod emulated;
pub mod kernels;
mod program;
mod select;
mod speed;
mod target;
mod types;

pub use program::{CpuWork, KernelWork, Launch, Program, Space, View, Work};
pub use select::{check_name, open_by_name, open_by_name_with};
pub use speed::Speed;
pub use target::{CodePath, Numerics, Precision, Target};
pub use types::{DType, TensorType};

use crate::error::Result;
use std::sync::Arc;

/// A place where programs run: the embedded CPU, the emulator, or one GPU.
pub trait Device: Send + Sync {
    /// As the user names it: `cpu`, `emulated:h100`, `cuda:0`.
    fn name(&self) -> String;

    /// What programs for this device are compiled for.
    fn target(&self) -> &Target;

    /// Allocates memory once: `persistent_bytes` that outlive a run (zeroed) and one arena of
    /// `arena_bytes` that every program of this session shares.
    ///
    /// # Errors
    /// When the device does not have that much memory.
    fn open(&self, persistent_bytes: usize, arena_bytes: usize) -> Result<Box<dyn Session>>;
}

/// Memory on a device and the programs loaded into it.
pub trait Session: Send {
    /// Checks a program against this session's memory and prepares it to run.
    ///
    /// # Errors
    /// A view outside the memory, an output that overlaps another view of the same launch, or a
    /// kernel that the device does not have.
    fn load(&mut self, program: Arc<Program>) -> Result<Loaded>;

    /// Runs a loaded program to its end.
    fn run(&mut self, program: Loaded) -> Result<()>;

    /// Copies bytes into persistent memory at `offset`.
    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()>;

    /// Copies persistent memory from `offset` into `bytes`.
    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()>;

    /// Launches executed since the session was opened, as counted by the device.
    fn launches(&self) -> u64;

    /// Library calls (cuDNN, cuBLAS) executed since the session was opened.
    fn library_calls(&self) -> u64 {
        0
    }

    /// Names of the kernels launched so far, without repetition, sorted; empty on `cpu`.
    fn kernels(&self) -> Vec<String>;
}

/// A program that a session has loaded: an index, valid in that session only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loaded(pub usize);
