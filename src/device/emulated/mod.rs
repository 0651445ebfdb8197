//! The emulated device: the kernels of `kernels/`, compiled by the host's C++ compiler, run with
//! the grid, blocks, shared memory and parameters that a GPU would get.
//!
//! Every CUDA thread is a coroutine. Blocks run in parallel and in shuffled order, the lanes of a
//! block in shuffled order too; shared memory and the arena are filled with NaN before they are
//! used, and barriers that lanes don't agree on come back as errors with file and line. With the
//! feature `checked` so do races, reads of what nobody wrote and stray or misaligned accesses. What
//! this can't tell: races through global memory, speed, and the rounding of tensor cores.

#[cfg(feature = "checked")]
mod barriers;
mod block;
#[cfg(feature = "checked")]
mod checked;
mod lanes;
mod memory;
mod session;

pub use session::Emulated;
