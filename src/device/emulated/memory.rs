//! Memory of an emulated session.

use crate::error::{Error, Result};

/// `cudaMalloc` aligns to 256 bytes.
#[repr(C, align(256))]
#[derive(Clone, Copy)]
struct Line([u8; 256]);

/// Aligned memory that kernels reach through its address alone.
pub(super) struct Memory {
    pointer: *mut Line,
    lines: usize,
}

// SAFETY: the allocation is owned by this struct alone; only a session that is borrowed mutably
// lets kernels touch it.
unsafe impl Send for Memory {}

impl Memory {
    /// Memory of at least `bytes` bytes, each `fill`.
    pub(super) fn new(bytes: usize, fill: u8) -> Result<Memory> {
        let lines = bytes.div_ceil(size_of::<Line>());
        let mut memory = Vec::new();
        memory.try_reserve_exact(lines).map_err(|_| {
            Error::device(format!("the emulated device can't allocate {bytes} bytes of memory"))
        })?;
        memory.resize(lines, Line([fill; 256]));
        let pointer = Box::into_raw(memory.into_boxed_slice()) as *mut Line;
        Ok(Memory { pointer, lines })
    }

    pub(super) fn bytes(&self) -> usize {
        self.lines * size_of::<Line>()
    }

    /// Address of the first byte.
    pub(super) fn address(&self) -> *mut u8 {
        self.pointer.cast()
    }

    /// All bytes; no kernel may be running.
    pub(super) fn slice(&mut self) -> &mut [u8] {
        // SAFETY: pointer and length come from a boxed slice that this struct owns, every byte is
        // initialised, and `&mut self` says that nobody else uses it now.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.bytes()) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: pointer and length come from `Box::into_raw` in `new`.
        drop(unsafe {
            Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.pointer, self.lines))
        });
    }
}
