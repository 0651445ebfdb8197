//! What the kernels' C++ side and the scheduler share: the structs of `kernels/host/emulated.h`.

use std::ffi::{c_char, c_int, c_void};

/// Carries a warp collective out: `operands[l]` is what lane `l` of the warp gave, for each bit of
/// the mask.
pub(super) type Collective = unsafe extern "C" fn(*mut *mut c_void, u32);

/// `CyaneaBlock`.
#[repr(C)]
pub(super) struct BlockHeader {
    pub index: [u32; 3],
    pub size: [u32; 3],
    pub grid: [u32; 3],
    pub dynamic_shared: *mut u8,
    pub barrier: unsafe extern "C" fn(*mut Lane, *const c_char, c_int),
    pub collective:
        unsafe extern "C" fn(*mut Lane, u32, Collective, *mut c_void, *const c_char, c_int),
    pub static_shared:
        unsafe extern "C" fn(*mut Lane, *const c_void, usize, *const c_char, c_int) -> *mut c_void,
    #[cfg(feature = "checked")]
    pub hooks: Hooks,
}

/// The end of `CyaneaBlock` in checked mode.
#[cfg(feature = "checked")]
#[repr(C)]
pub(super) struct Hooks {
    pub access: unsafe extern "C" fn(*mut Lane, *const c_void, usize, c_int, *const c_void),
    pub out_of_bounds: unsafe extern "C" fn(*mut Lane, usize, *const c_char, c_int),
    pub misaligned: unsafe extern "C" fn(*mut Lane, *const c_void, usize, *const c_char, c_int),
    pub copies: unsafe extern "C" fn(*mut Lane, c_int, *const c_void),
}

/// `CyaneaLane`.
#[repr(C)]
pub(super) struct Lane {
    pub thread: [u32; 3],
    pub linear: u32,
    pub block: *const BlockHeader,
}

unsafe extern "C" {
    /// Where the lane that runs on the calling thread is kept.
    pub(super) fn cyanea_lane_slot() -> *mut *mut Lane;
}

/// A place in a kernel's source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Site {
    file: *const c_char,
    line: c_int,
}

impl Site {
    /// # Safety
    /// `file` is a string literal of the compiled kernels.
    pub(super) unsafe fn new(file: *const c_char, line: c_int) -> Site {
        Site { file, line }
    }

    /// What tells places apart in the process.
    #[cfg(feature = "checked")]
    pub(super) fn key(self) -> (usize, i32) {
        (self.file.addr(), self.line)
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: `new` demands a string literal, which lives as long as the program.
        let file = unsafe { std::ffi::CStr::from_ptr(self.file) }.to_string_lossy();
        // Only what stands below `kernels/`, wherever the project was built.
        let file = file.rsplit_once("kernels/").map_or(&*file, |(_, name)| name);
        write!(f, "kernels/{file}:{}", self.line)
    }
}

/// The generator SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", OOPSLA 2014), for the order of lanes and blocks.
pub(super) struct Shuffle(pub u64);

impl Shuffle {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }

    pub(super) fn permute<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}
