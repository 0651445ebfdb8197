//! SIMD levels, their choice at run time, and vectorised pointwise code in safe Rust.
//!
//! # How to write a fast pointwise loop
//! ```
//! use cyanea::device::cpu::{Cpu, simd};
//!
//! cyanea::vectorised! {
//!     /// y = silu(x), element by element.
//!     pub fn silu_forward<'a>(x: &'a [f32], y: &'a mut [f32]) {
//!         for (y, &x) in y.iter_mut().zip(x) {
//!             *y = simd::silu(x);
//!         }
//!     }
//! }
//!
//! let (cpu, x, mut y) = (Cpu::shared(), vec![1.0f32; 1000], vec![0.0f32; 1000]);
//! cpu.chunks_mut(&mut y, 256, &|index, y| silu_forward(cpu.simd(), &x[index * 256..][..y.len()], y));
//! ```
//! The macro compiles the body once for each SIMD level and makes a function that takes the level
//! first. Two habits keep the bits of an element independent of where it stands in a vector, of
//! how a tensor is cut into pieces, and of the SIMD level:
//! * the compiler never fuses `a * b + c` by itself, so write `a.mul_add(b, c)` where you want it;
//! * a reduction is never reordered by the compiler, so write its lanes out, as [`sum`] and [`dot`]
//!   do, over slices whose bounds depend on shapes only.
//!
//! Helpers called from such a body must be `#[inline(always)]`, as those here are; otherwise
//! they are compiled for the lowest level only, where `mul_add` may be a library call.

use crate::error::{Error, Result};

/// A set of vector instructions, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Simd {
    /// What the compilation target guarantees.
    Scalar,
    /// x86-64 with AVX2 and FMA: 8 lanes.
    Avx2,
    /// x86-64 with AVX-512 F, DQ, BW and VL: 16 lanes.
    Avx512,
}

impl Simd {
    /// The best level of this machine.
    pub fn available() -> Simd {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
            let avx512 = is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512vl");
            if avx2 && avx512 {
                return Simd::Avx512;
            }
            if avx2 {
                return Simd::Avx2;
            }
        }
        Simd::Scalar
    }

    /// The limit that the environment variable `CYANEA_SIMD` sets.
    ///
    /// # Errors
    /// A value that is none of `avx512`, `avx2` and `scalar`.
    pub fn limit() -> Result<Simd> {
        let Some(value) = std::env::var_os("CYANEA_SIMD") else { return Ok(Simd::Avx512) };
        match value.to_str() {
            Some("avx512") => Ok(Simd::Avx512),
            Some("avx2") => Ok(Simd::Avx2),
            Some("scalar") => Ok(Simd::Scalar),
            _ => Err(Error::invalid(format!(
                "CYANEA_SIMD is {value:?}; set it to avx512, avx2 or scalar, or unset it"
            ))),
        }
    }

    /// The best level of this machine within [`Simd::limit`], which opening a device by its name
    /// checks; here a value that is none sets no limit.
    pub fn detect() -> Simd {
        Simd::limit().unwrap_or(Simd::Avx512).min(Simd::available())
    }

    /// Runs `work` compiled for this level, or for the best one that the machine has.
    #[inline]
    pub fn dispatch<W: Vectorised>(self, work: W) -> W::Output {
        #[cfg(target_arch = "x86_64")]
        {
            let level = self.min(Simd::available());
            if level == Simd::Avx512 {
                // SAFETY: the machine has these features.
                return unsafe { with_avx512(work) };
            }
            if level == Simd::Avx2 {
                // SAFETY: the machine has these features.
                return unsafe { with_avx2(work) };
            }
        }
        work.run()
    }
}

/// Code that [`Simd::dispatch`] compiles for every level; usually made by
/// [`vectorised!`](crate::vectorised).
pub trait Vectorised {
    type Output;

    /// The work. Implementations must carry `#[inline(always)]`.
    fn run(self) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi1,bmi2")]
fn with_avx512<W: Vectorised>(work: W) -> W::Output {
    work.run()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn with_avx2<W: Vectorised>(work: W) -> W::Output {
    work.run()
}

/// Makes a function that is compiled for every SIMD level and takes the level as its first
/// argument. Lifetimes are written out; there is exactly one. See [`simd`](crate::device::cpu::simd).
#[macro_export]
macro_rules! vectorised {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$life:lifetime>($($arg:ident : $ty:ty),* $(,)?) $body:block
    ) => {
        $crate::vectorised! { $(#[$meta])* $vis fn $name<$life>($($arg: $ty),*) -> () $body }
    };
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$life:lifetime>($($arg:ident : $ty:ty),* $(,)?) -> $ret:ty
        $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$life>(simd: $crate::device::cpu::Simd, $($arg: $ty),*) -> $ret {
            struct Work<$life> {
                $($arg: $ty,)*
                _life: ::std::marker::PhantomData<&$life ()>,
            }
            impl<$life> $crate::device::cpu::simd::Vectorised for Work<$life> {
                type Output = $ret;
                #[inline(always)]
                fn run(self) -> $ret {
                    let Work { $($arg,)* .. } = self;
                    $body
                }
            }
            simd.dispatch(Work { $($arg,)* _life: ::std::marker::PhantomData })
        }
    };
}

/// exp(x) with a relative error below 1.2e-7 over the whole range (subnormal results lose bits);
/// overflows to infinity, underflows to 0, keeps NaN. Vectorises.
///
/// x = n·ln 2 + r with |r| ≤ ln 2 / 2; exp(r) by its Taylor polynomial of degree 7, whose
/// truncation error there is 5e-9; 2ⁿ in two factors, so that the ends of the range are right.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding and subtracting 1.5·2²³ rounds to the nearest integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts; the first has trailing zeros, so that n·LN2_HIGH is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let p = 1.0f32 / 5040.0;
    let p = p.mul_add(r, 1.0 / 720.0);
    let p = p.mul_add(r, 1.0 / 120.0);
    let p = p.mul_add(r, 1.0 / 24.0);
    let p = p.mul_add(r, 1.0 / 6.0);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r, 1.0);
    let p = p.mul_add(r, 1.0);
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |n: i32| f32::from_bits((n.wrapping_add(127) as u32) << 23);
    p * power(half) * power(n.wrapping_sub(half))
}

/// 1 / (1 + exp(−x)). Vectorises.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// x · sigmoid(x). Vectorises.
#[inline(always)]
pub fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// d silu(x) / dx = s·(1 + x·(1 − s)) with s = sigmoid(x). Vectorises.
#[inline(always)]
pub fn silu_grad(x: f32) -> f32 {
    // 1 − s = e·s without cancellation; the bound keeps e·s from becoming ∞·0.
    let e = exp(-x);
    let e = if e > 1e30 { 1e30 } else { e };
    let s = 1.0 / (1.0 + e);
    s * x.mul_add(e * s, 1.0)
}

/// Lanes of a reduction, at every SIMD level.
pub const LANES: usize = 16;

/// Adds 16 lanes pairwise.
#[inline(always)]
pub fn add_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The sum of f(x, y) over two slices of equal length, in 16 lanes; vectorises where `f` does.
#[inline(always)]
pub fn sum_of(x: &[f32], y: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (xs, ys) = (x.chunks_exact(LANES), y.chunks_exact(LANES));
    let (x_tail, y_tail) = (xs.remainder(), ys.remainder());
    for (x, y) in xs.zip(ys) {
        for lane in 0..LANES {
            lanes[lane] = f(lanes[lane], x[lane], y[lane]);
        }
    }
    for (lane, (&x, &y)) in x_tail.iter().zip(y_tail).enumerate() {
        lanes[lane] = f(lanes[lane], x, y);
    }
    add_lanes(lanes)
}

/// Σ x. The order of additions depends on the length only. Vectorises.
#[inline(always)]
pub fn sum(x: &[f32]) -> f32 {
    sum_of(x, x, |sum, x, _| sum + x)
}

/// Σ x·y. The order of additions depends on the length only. Vectorises.
#[inline(always)]
pub fn dot(x: &[f32], y: &[f32]) -> f32 {
    sum_of(x, y, |sum, x, y| x.mul_add(y, sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::vectorised! {
        fn exps<'a>(x: &'a [f32], y: &'a mut [f32]) {
            for (y, &x) in y.iter_mut().zip(x) {
                *y = exp(x);
            }
        }
    }

    crate::vectorised! {
        fn sums<'a>(x: &'a [f32]) -> (f32, f32) {
            (sum(x), dot(x, x))
        }
    }

    const LEVELS: [Simd; 3] = [Simd::Scalar, Simd::Avx2, Simd::Avx512];

    #[test]
    fn exp_is_exact_to_one_unit_and_equal_at_all_levels() {
        let x: Vec<f32> = (-872_000..=887_000).map(|i| i as f32 * 1e-4).collect();
        let mut first = vec![0.0; x.len()];
        exps(Simd::Scalar, &x, &mut first);
        let worst = x.iter().zip(&first).fold(0.0f64, |worst, (&x, &y)| {
            let want = f64::from(x).exp();
            worst.max((f64::from(y) - want).abs() / want)
        });
        assert!(worst <= 1.2e-7, "relative error {worst:e}");
        for level in LEVELS {
            // Another start moves every element to another place in its vector.
            for start in [0, 1, 5] {
                let mut y = vec![0.0; x.len() - start];
                exps(level, &x[start..], &mut y);
                assert!(y.iter().zip(&first[start..]).all(|(a, b)| a.to_bits() == b.to_bits()));
            }
        }
    }

    #[test]
    fn exp_at_the_ends() {
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp(100.0), f32::INFINITY);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-200.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
        assert!((exp(88.7) / 88.7f32.exp() - 1.0).abs() <= 1e-6);
        assert!((exp(-100.0) - (-100.0f32).exp()).abs() <= 2e-45);
        assert_eq!(silu(-1000.0), 0.0);
        assert_eq!(silu(1000.0), 1000.0);
        assert!(silu(f32::NAN).is_nan());
    }

    #[test]
    fn silu_and_its_derivative() {
        for i in -2000..2000 {
            let x = i as f32 * 0.01;
            let s = 1.0 / (1.0 + (-f64::from(x)).exp());
            let (want, slope) = (f64::from(x) * s, s * (1.0 + f64::from(x) * (1.0 - s)));
            assert!((f64::from(silu(x)) - want).abs() <= 3e-7 * want.abs());
            assert!((f64::from(silu_grad(x)) - slope).abs() <= 3e-7 * (1.0 + slope.abs()));
        }
    }

    #[test]
    fn reductions_have_the_same_bits_at_all_levels() {
        for length in [0, 1, 15, 16, 17, 1000] {
            let x: Vec<f32> = (0..length).map(|i| ((i * 37 % 101) as f32).sin()).collect();
            let want: f64 = x.iter().map(|&x| f64::from(x)).sum();
            let (first, _) = sums(Simd::Scalar, &x);
            assert!((f64::from(first) - want).abs() <= 1e-5);
            for level in LEVELS {
                assert_eq!(sums(level, &x), sums(Simd::Scalar, &x));
            }
        }
    }
}
