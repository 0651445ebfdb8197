//! What a program is compiled for. Named targets answer with no GPU in sight.

use crate::error::{Error, Result};

/// Which family of kernels a target runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CodePath {
    /// Rust, SIMD chosen at run time.
    Cpu,
    /// Volta: `mma.m8n8k4`, no `cp.async`.
    Sm70,
    /// Ampere and, until there is a path of its own, Hopper.
    Sm80,
}

/// Element type of activations and of the weights that products read. Sums, statistics, losses and
/// master weights are float32 in either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Precision {
    Fp32,
    Fp16,
}

/// What a user chooses of how a device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Numerics {
    pub precision: Precision,
    /// A sample has the same bits in any batch: sums are cut as a batch of one needs it. Without this,
    /// targets with kernels cut them as the batch at hand needs it, which is faster. The CPU is
    /// batch-invariant anyway.
    pub batch_invariant: bool,
}

impl From<Precision> for Numerics {
    fn from(precision: Precision) -> Numerics {
        Numerics { precision, batch_invariant: false }
    }
}

/// An input of compilation: code path, numerics and the figures that plans depend on.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// `cpu`, `v100`, `a100` or `h100`.
    pub name: &'static str,
    pub code_path: CodePath,
    /// Streaming multiprocessors (0 on the CPU).
    pub multiprocessors: u32,
    /// Shared memory that one block may ask for, in bytes.
    pub shared_bytes: u32,
    pub precision: Precision,
    /// See [`Numerics::batch_invariant`].
    pub batch_invariant: bool,
}

impl Target {
    pub const CPU: Target = Target {
        name: "cpu",
        code_path: CodePath::Cpu,
        multiprocessors: 0,
        shared_bytes: 0,
        precision: Precision::Fp32,
        batch_invariant: false,
    };
    pub const V100: Target = Target {
        name: "v100",
        code_path: CodePath::Sm70,
        multiprocessors: 80,
        shared_bytes: 96 << 10,
        precision: Precision::Fp32,
        batch_invariant: false,
    };
    pub const A100: Target = Target {
        name: "a100",
        code_path: CodePath::Sm80,
        multiprocessors: 108,
        shared_bytes: 163 << 10,
        precision: Precision::Fp32,
        batch_invariant: false,
    };
    pub const H100: Target = Target {
        name: "h100",
        code_path: CodePath::Sm80,
        multiprocessors: 132,
        shared_bytes: 227 << 10,
        precision: Precision::Fp32,
        batch_invariant: false,
    };

    /// Looks a target up by name.
    ///
    /// # Errors
    /// An unknown name; the message lists the known ones.
    pub fn named(name: &str) -> Result<Target> {
        [Target::CPU, Target::V100, Target::A100, Target::H100]
            .into_iter()
            .find(|target| target.name == name)
            .ok_or_else(|| {
                Error::invalid(format!(
                    "unknown target `{name}`; known are cpu, v100, a100 and h100"
                ))
            })
    }

    /// The same target, computing in another precision.
    ///
    /// # Errors
    /// Float16 on the CPU, which has no kernels for it.
    pub fn with_precision(self, precision: Precision) -> Result<Target> {
        if self.is_cpu() && precision == Precision::Fp16 {
            return Err(Error::device(
                "the cpu device computes in float32 only; leave out --precision fp16",
            ));
        }
        Ok(Target { precision, ..self })
    }

    /// The same target with other numerics.
    ///
    /// # Errors
    /// As [`Target::with_precision`].
    pub fn with_numerics(self, numerics: Numerics) -> Result<Target> {
        let target = self.with_precision(numerics.precision)?;
        Ok(Target { batch_invariant: numerics.batch_invariant, ..target })
    }

    /// The most shared memory that each of so many blocks on a multiprocessor can have, in bytes: the driver takes
    /// 1 KiB of each.
    pub fn most_shared(&self, blocks: usize) -> usize {
        ((self.shared_bytes as usize + 1024) / blocks).saturating_sub(1024)
    }

    pub fn is_cpu(&self) -> bool {
        self.code_path == CodePath::Cpu
    }
}
