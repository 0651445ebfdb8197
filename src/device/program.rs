//! The program: a flat list of launches over memory whose size is known before anything runs.

use super::cpu::CpuKernel;
use super::{Target, TensorType};
use std::sync::Arc;

/// Which of a session's two allocations a view lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Lives inside one run of one program; shared by all programs of a session.
    Arena,
    /// Outlives a run: weights, moments, inputs, sampler state, step state.
    Persistent,
}

/// A typed stretch of memory. Offsets are in bytes and multiples of 64 unless the view is a part
/// of a larger tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub space: Space,
    pub offset: usize,
    pub ty: TensorType,
}

impl View {
    /// The byte range that the view covers in its space.
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.ty.bytes()
    }

    /// Whether two views share at least one byte.
    pub fn overlaps(&self, other: &View) -> bool {
        let (a, b) = (self.range(), other.range());
        self.space == other.space && a.start < b.end && b.start < a.end
    }
}

/// One launch: what runs, on which memory, and what it costs in theory.
#[derive(Clone, Debug)]
pub struct Launch {
    /// Name of the operation, e.g. `conv2d`.
    pub operation: &'static str,
    /// Where in the network it stands, e.g. `down_blocks.0.resnets.0.conv1`.
    pub label: String,
    /// Twice the multiplications of convolutions, products and attention.
    pub flops: u64,
    /// Bytes that must move: inputs read once, outputs written once.
    pub bytes: u64,
    pub work: Work,
}

#[derive(Clone, Debug)]
pub enum Work {
    Cpu(CpuWork),
    Kernel(KernelWork),
}

/// A launch for the CPU device.
#[derive(Clone)]
pub struct CpuWork {
    pub kernel: Arc<dyn CpuKernel>,
    pub inputs: Vec<View>,
    /// Written; read too where the kernel updates in place.
    pub outputs: Vec<View>,
    /// Working memory in the arena, contents undefined.
    pub scratch: Option<View>,
}

impl std::fmt::Debug for CpuWork {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CpuWork")
            .field("inputs", &self.inputs)
            .field("outputs", &self.outputs)
            .field("scratch", &self.scratch)
            .finish()
    }
}

/// A launch of a kernel from `kernels/`, the same for a GPU and for the emulator.
#[derive(Clone, Debug)]
pub struct KernelWork {
    /// Name in the kernel manifest, e.g. `silu_fwd_nhwc_f32`.
    pub kernel: &'static str,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared_bytes: u32,
    /// The kernel's single by-value parameter struct; pointer fields are filled in at load time.
    pub params: Vec<u8>,
    /// (byte offset of an 8-byte pointer field in `params`, what it points to).
    pub pointers: Vec<(usize, View)>,
    /// How many of `pointers`, counted from the end, the kernel writes.
    pub written: usize,
    /// Whether it moves some tensor an element or a few at a time, as sizes that are no whole pieces of 16 bytes (three
    /// channels) or a stride ask for, though its kernel has a faster path for others.
    pub general: bool,
}

impl KernelWork {
    /// The launch, which takes the general path if `general`.
    pub fn with_general(self, general: bool) -> KernelWork {
        KernelWork { general, ..self }
    }
}

/// A compiled program. It belongs to one graph, batch and target.
#[derive(Clone, Debug)]
pub struct Program {
    /// `prepare`, `table`, `denoise`, `accumulate`, `update`.
    pub name: String,
    pub target: Target,
    pub launches: Vec<Launch>,
    /// Arena that it needs, in bytes.
    pub arena_bytes: usize,
}

impl Program {
    pub fn flops(&self) -> u64 {
        self.launches.iter().map(|launch| launch.flops).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.launches.iter().map(|launch| launch.bytes).sum()
    }
}
