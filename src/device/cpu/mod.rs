//! The CPU device: float32, NHWC, SIMD chosen at run time.
//!
//! Results have the same bits for any number of threads: tasks are cut by shape, never by thread
//! count, and a reduction's tree depends on the shape of one sample only.

pub mod conv;
mod device;
mod lanes;
mod parts;
mod pool;
pub mod simd;

pub use device::CpuDevice;
pub use parts::Cut;
pub use pool::{Awake, Cpu};
pub use simd::Simd;

/// A tensor that a kernel reads.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    pub shape: &'a [usize],
    /// Elements in row-major order. Integer tensors are bit patterns ([`f32::to_bits`]).
    pub data: &'a [f32],
}

/// A tensor that a kernel writes (and may read first, where it updates in place).
#[derive(Debug)]
pub struct TensorMut<'a> {
    pub shape: &'a [usize],
    pub data: &'a mut [f32],
}

/// What a launch gives its kernel: inputs and outputs never overlap.
pub struct Io<'a, 'b> {
    pub inputs: &'b [Tensor<'a>],
    pub outputs: &'b mut [TensorMut<'a>],
    /// As long as the operation asked for; contents undefined.
    pub scratch: &'b mut [f32],
}

/// The CPU form of an operation.
pub trait CpuKernel: Send + Sync {
    /// Computes all outputs. Allocates nothing.
    fn run(&self, cpu: &Cpu, io: Io<'_, '_>);
}
