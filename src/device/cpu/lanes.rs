//! Sixteen float32 lanes at every SIMD level: the vocabulary of the convolution kernels.
//!
//! One generic source gives the AVX-512, the AVX2 and the portable code. Every operation is
//! element by element, so all levels with a fused multiply-add give the same bits.

use super::Simd;

/// Sixteen float32 values.
///
/// # Safety
/// The methods of a level may be called only from code compiled for that level, on a machine that
/// has it; [`run`] sees to both.
pub(super) trait Lanes: Copy {
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self;
    /// Reads 16 values, at any alignment.
    unsafe fn load(from: *const f32) -> Self;
    /// Writes 16 values, at any alignment.
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sub(self, other: Self) -> Self;
    /// self·factor + addend, rounded once where the level has a fused instruction.
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self;
    unsafe fn mul(self, factor: Self) -> Self;
}

/// Code that is compiled once for each level. `run` must carry `#[inline(always)]`, and so must
/// everything generic that it calls.
pub(super) trait LaneWork {
    unsafe fn run<V: Lanes>(self);
}

/// Runs `work` at the given level, or at the best one that the machine has.
///
/// # Safety
/// What `work` itself asks for.
pub(super) unsafe fn run<W: LaneWork>(simd: Simd, work: W) {
    match simd.min(Simd::available()) {
        // SAFETY: the machine has the level; the rest is the caller's promise.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx512 => unsafe { x86::with_avx512(work) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        Simd::Avx2 => unsafe { x86::with_avx2(work) },
        // SAFETY: portable code.
        _ => unsafe { work.run::<Portable>() },
    }
}

/// Sixteen values in an array, for any machine.
#[derive(Clone, Copy)]
pub(super) struct Portable([f32; 16]);

impl Portable {
    #[inline(always)]
    fn zip(mut self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        for (value, other) in self.0.iter_mut().zip(other.0) {
            *value = f(*value, other);
        }
        self
    }
}

// SAFETY (all methods): `load` and `store` touch the 16 values that the caller vouches for.
impl Lanes for Portable {
    #[inline(always)]
    unsafe fn zero() -> Self {
        Portable([0.0; 16])
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self {
        Portable([value; 16])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for 16 readable values.
        Portable(unsafe { from.cast::<[f32; 16]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: the caller vouches for 16 writable values.
        unsafe { to.cast::<[f32; 16]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
        Portable(std::array::from_fn(|lane| {
            let (a, b, c) = (self.0[lane], factor.0[lane], addend.0[lane]);
            // Without a fused instruction `mul_add` is a slow library call.
            if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
                a.mul_add(b, c)
            } else {
                a * b + c
            }
        }))
    }
    #[inline(always)]
    unsafe fn mul(self, factor: Self) -> Self {
        self.zip(factor, |a, b| a * b)
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod x86 {
    use super::{LaneWork, Lanes};
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi1,bmi2")]
    pub(super) unsafe fn with_avx512<W: LaneWork>(work: W) {
        // SAFETY: the caller's promise.
        unsafe { work.run::<Avx512>() }
    }

    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn with_avx2<W: LaneWork>(work: W) {
        // SAFETY: the caller's promise.
        unsafe { work.run::<Avx2>() }
    }

    /// One 512-bit register.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    // SAFETY (all methods): called from code compiled for AVX-512 only, on memory that the caller
    // vouches for.
    impl Lanes for Avx512 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Avx512(_mm512_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe { Avx512(_mm512_set1_ps(value)) }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx512(_mm512_loadu_ps(from)) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe { _mm512_storeu_ps(to, self.0) }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_add_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Avx512(_mm512_sub_ps(self.0, other.0)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            unsafe { Avx512(_mm512_fmadd_ps(self.0, factor.0, addend.0)) }
        }
        #[inline(always)]
        unsafe fn mul(self, factor: Self) -> Self {
            unsafe { Avx512(_mm512_mul_ps(self.0, factor.0)) }
        }
    }

    /// Two 256-bit registers.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256, __m256);

    // SAFETY (all methods): called from code compiled for AVX2 and FMA only, on memory that the
    // caller vouches for.
    impl Lanes for Avx2 {
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Avx2(_mm256_setzero_ps(), _mm256_setzero_ps()) }
        }
        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            unsafe {
                let value = _mm256_set1_ps(value);
                Avx2(value, value)
            }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { Avx2(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
        }
        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            unsafe {
                _mm256_storeu_ps(to, self.0);
                _mm256_storeu_ps(to.add(8), self.1);
            }
        }
        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn sub(self, other: Self) -> Self {
            unsafe { Avx2(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, addend: Self) -> Self {
            unsafe {
                Avx2(
                    _mm256_fmadd_ps(self.0, factor.0, addend.0),
                    _mm256_fmadd_ps(self.1, factor.1, addend.1),
                )
            }
        }
        #[inline(always)]
        unsafe fn mul(self, factor: Self) -> Self {
            unsafe { Avx2(_mm256_mul_ps(self.0, factor.0), _mm256_mul_ps(self.1, factor.1)) }
        }
    }
}
