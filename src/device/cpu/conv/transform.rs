//! The Winograd transforms of one tile, 16 channels at a time.
//!
//! F(m×m, 3×3) computes m×m outputs from a tile of (m+2)² inputs with (m+2)² multiplications:
//! Y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A (Lavin and Gray, "Fast Algorithms for Convolutional Neural
//! Networks", 2016, eq. 8; matrices from points by Toom and Cook's construction).
//! * F(2×2): points 0, ±1, ∞.
//! * F(4×4): points 0, ±1/√2, ±√2, ∞, whose rounding error is half of that of 0, ±1, ±2, ∞.

use super::super::lanes::Lanes;
use std::f32::consts::{FRAC_1_SQRT_2, SQRT_2};

/// Bᵀd for F(4×4).
#[inline(always)]
unsafe fn input4<V: Lanes>(d: [V; 6]) -> [V; 6] {
    // SAFETY: arithmetic; the caller's code is compiled for this level.
    unsafe {
        let wide = V::splat(-2.5);
        let (two, half) = (V::splat(-2.0), V::splat(-0.5));
        let (even1, odd1) = (d[2].mul_add(two, d[4]), d[1].mul_add(two, d[3]));
        let (even2, odd2) = (d[2].mul_add(half, d[4]), d[1].mul_add(half, d[3]));
        [
            d[2].mul_add(wide, d[0].add(d[4])),
            odd1.mul_add(V::splat(FRAC_1_SQRT_2), even1),
            odd1.mul_add(V::splat(-FRAC_1_SQRT_2), even1),
            odd2.mul_add(V::splat(SQRT_2), even2),
            odd2.mul_add(V::splat(-SQRT_2), even2),
            d[3].mul_add(wide, d[1].add(d[5])),
        ]
    }
}

/// Aᵀm for F(4×4).
#[inline(always)]
unsafe fn output4<V: Lanes>(m: [V; 6]) -> [V; 4] {
    // SAFETY: as in `input4`.
    unsafe {
        let (two, half) = (V::splat(2.0), V::splat(0.5));
        let (sum1, difference1) = (m[1].add(m[2]), m[1].sub(m[2]));
        let (sum2, difference2) = (m[3].add(m[4]), m[3].sub(m[4]));
        let root = V::splat(FRAC_1_SQRT_2);
        [
            m[0].add(sum1).add(sum2),
            difference2.mul_add(two, difference1).mul(root),
            sum2.mul_add(two, sum1.mul(half)),
            difference2.mul_add(V::splat(4.0), difference1.mul(half)).mul_add(root, m[5]),
        ]
    }
}

/// Gg for F(4×4).
#[inline(always)]
unsafe fn weight4<V: Lanes>(g: [V; 3]) -> [V; 6] {
    // SAFETY: as in `input4`.
    unsafe {
        let even1 = g[2].mul_add(V::splat(0.5), g[0]).mul(V::splat(-2.0 / 3.0));
        let even2 = g[2].mul_add(V::splat(2.0), g[0]).mul(V::splat(1.0 / 6.0));
        let (root1, root2) = (V::splat(SQRT_2 / 3.0), V::splat(SQRT_2 / 6.0));
        let (minus1, minus2) = (V::splat(-SQRT_2 / 3.0), V::splat(-SQRT_2 / 6.0));
        [
            g[0],
            g[1].mul_add(minus1, even1),
            g[1].mul_add(root1, even1),
            g[1].mul_add(root2, even2),
            g[1].mul_add(minus2, even2),
            g[2],
        ]
    }
}

/// A y for F(4×4): the transpose of [`output4`].
#[inline(always)]
unsafe fn gradient4<V: Lanes>(y: [V; 4]) -> [V; 6] {
    // SAFETY: as in `input4`.
    unsafe {
        let (two, half) = (V::splat(2.0), V::splat(0.5));
        let (even1, odd1) = (y[2].mul_add(half, y[0]), y[3].mul_add(half, y[1]));
        let (even2, odd2) = (y[2].mul_add(two, y[0]), y[3].mul_add(two, y[1]));
        [
            y[0],
            odd1.mul_add(V::splat(FRAC_1_SQRT_2), even1),
            odd1.mul_add(V::splat(-FRAC_1_SQRT_2), even1),
            odd2.mul_add(V::splat(SQRT_2), even2),
            odd2.mul_add(V::splat(-SQRT_2), even2),
            y[3],
        ]
    }
}

/// Gᵀ p for F(4×4): the transpose of [`weight4`].
#[inline(always)]
unsafe fn kernel4<V: Lanes>(p: [V; 6]) -> [V; 3] {
    // SAFETY: as in `input4`.
    unsafe {
        let (sum1, difference1) = (p[1].add(p[2]), p[1].sub(p[2]));
        let (sum2, difference2) = (p[3].add(p[4]), p[3].sub(p[4]));
        let third = V::splat(1.0 / 3.0);
        let root1 = difference1.mul(V::splat(-SQRT_2 / 3.0));
        [
            sum1.mul_add(V::splat(-2.0 / 3.0), sum2.mul_add(V::splat(1.0 / 6.0), p[0])),
            difference2.mul_add(V::splat(SQRT_2 / 6.0), root1),
            sum2.sub(sum1).mul_add(third, p[5]),
        ]
    }
}

/// Bᵀd for F(2×2).
#[inline(always)]
unsafe fn input2<V: Lanes>(d: [V; 4]) -> [V; 4] {
    // SAFETY: as in `input4`.
    unsafe { [d[0].sub(d[2]), d[1].add(d[2]), d[2].sub(d[1]), d[1].sub(d[3])] }
}

/// Aᵀm for F(2×2).
#[inline(always)]
unsafe fn output2<V: Lanes>(m: [V; 4]) -> [V; 2] {
    // SAFETY: as in `input4`.
    unsafe { [m[0].add(m[1]).add(m[2]), m[1].sub(m[2]).sub(m[3])] }
}

/// Gg for F(2×2).
#[inline(always)]
unsafe fn weight2<V: Lanes>(g: [V; 3]) -> [V; 4] {
    // SAFETY: as in `input4`.
    unsafe {
        let half = V::splat(0.5);
        let even = g[0].add(g[2]).mul(half);
        [g[0], g[1].mul_add(half, even), g[1].mul_add(V::splat(-0.5), even), g[2]]
    }
}

/// A transform along one axis. A trait and no closure, because it must be inlined for certain.
pub(super) trait Axis<const N: usize, const M: usize> {
    unsafe fn along<V: Lanes>(values: [V; N]) -> [V; M];
}

macro_rules! axes {
    ($($m:literal of $size:literal: $input:ident, $output:ident, $weight:ident;)*) => {$(
        // SAFETY (all methods): arithmetic; the caller's code is compiled for this level.
        impl Axis<$size, $size> for Input<$m> {
            #[inline(always)]
            unsafe fn along<V: Lanes>(values: [V; $size]) -> [V; $size] {
                unsafe { $input(values) }
            }
        }
        impl Axis<$size, $m> for Back<$m> {
            #[inline(always)]
            unsafe fn along<V: Lanes>(values: [V; $size]) -> [V; $m] {
                unsafe { $output(values) }
            }
        }
        impl Axis<3, $size> for Weight<$m> {
            #[inline(always)]
            unsafe fn along<V: Lanes>(values: [V; 3]) -> [V; $size] {
                unsafe { $weight(values) }
            }
        }
    )*};
}

/// Bᵀ, Aᵀ and G of F(M×M).
struct Input<const M: usize>;
struct Back<const M: usize>;
struct Weight<const M: usize>;

struct Gradient;
struct Kernel;

// SAFETY (both methods): arithmetic; the caller's code is compiled for this level.
impl Axis<4, 6> for Gradient {
    #[inline(always)]
    unsafe fn along<V: Lanes>(values: [V; 4]) -> [V; 6] {
        unsafe { gradient4(values) }
    }
}
impl Axis<6, 3> for Kernel {
    #[inline(always)]
    unsafe fn along<V: Lanes>(values: [V; 6]) -> [V; 3] {
        unsafe { kernel4(values) }
    }
}

axes! {
    4 of 6: input4, output4, weight4;
    2 of 4: input2, output2, weight2;
}

/// The first half of a two-dimensional transform: along the columns of an `N`×`N` array whose
/// element (i, j) stands at `from + i·row + j·column`.
#[inline(always)]
unsafe fn columns<A: Axis<N, M>, V: Lanes, const N: usize, const M: usize>(
    from: *const f32,
    row: usize,
    column: usize,
) -> [[V; N]; M] {
    // SAFETY: the caller vouches for the elements.
    unsafe {
        let mut middle = [[V::zero(); N]; M];
        for j in 0..N {
            let mut values = [V::zero(); N];
            for (i, value) in values.iter_mut().enumerate() {
                *value = V::load(from.add(i * row + j * column));
            }
            for (middle, value) in middle.iter_mut().zip(A::along(values)) {
                middle[j] = value;
            }
        }
        middle
    }
}

/// A two-dimensional transform to frequencies: element (i, j) goes to `to + (i·M + j)·stride`.
#[inline(always)]
unsafe fn forward<A: Axis<N, M>, V: Lanes, const N: usize, const M: usize>(
    from: *const f32,
    row: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller vouches for the elements.
    unsafe {
        for (i, values) in columns::<A, V, N, M>(from, row, 16).into_iter().enumerate() {
            for (j, value) in A::along(values).into_iter().enumerate() {
                value.store(to.add((i * M + j) * stride));
            }
        }
    }
}

/// A transform from frequencies to outputs.
#[inline(always)]
unsafe fn back<A: Axis<N, M>, V: Lanes, const N: usize, const M: usize>(
    from: *const f32,
    stride: usize,
) -> [[V; M]; M] {
    // SAFETY: the caller vouches for the elements.
    unsafe {
        let middle = columns::<A, V, N, M>(from, N * stride, stride);
        let mut outputs = [[V::zero(); M]; M];
        for (outputs, values) in outputs.iter_mut().zip(middle) {
            *outputs = A::along(values);
        }
        outputs
    }
}

/// Transforms an input tile of F(4×4) (`FOUR`) or F(2×2): element (i, j) at
/// `from + 16·(i·pitch + j)`, frequency f to `to + f·stride`.
///
/// # Safety
/// All elements are readable and writable, 16 values each.
#[inline(always)]
pub(super) unsafe fn input<V: Lanes, const FOUR: bool>(
    from: *const f32,
    pitch: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if FOUR {
            forward::<Input<4>, V, 6, 6>(from, 16 * pitch, to, stride);
        } else {
            forward::<Input<2>, V, 4, 4>(from, 16 * pitch, to, stride);
        }
    }
}

/// Transforms products back: frequency f at `from + f·stride`. F(2×2) fills the first two rows and
/// columns.
///
/// # Safety
/// As for [`input`].
#[inline(always)]
pub(super) unsafe fn output<V: Lanes, const FOUR: bool>(
    from: *const f32,
    stride: usize,
) -> [[V; 4]; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        if FOUR {
            return back::<Back<4>, V, 6, 4>(from, stride);
        }
        let small = back::<Back<2>, V, 4, 2>(from, stride);
        let mut outputs = [[V::zero(); 4]; 4];
        for (outputs, small) in outputs.iter_mut().zip(small) {
            outputs[..2].copy_from_slice(&small);
        }
        outputs
    }
}

/// Transforms 16 kernels of 3×3: tap t at `from + 16·t`, frequency f to `to + f·stride`.
///
/// # Safety
/// As for [`input`].
#[inline(always)]
pub(super) unsafe fn weight<V: Lanes, const FOUR: bool>(
    from: *const f32,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        if FOUR {
            forward::<Weight<4>, V, 3, 6>(from, 48, to, stride);
        } else {
            forward::<Weight<2>, V, 3, 4>(from, 48, to, stride);
        }
    }
}

/// Transforms a 4×4 tile of the output's gradient as [`input`] does a tile of the input.
///
/// # Safety
/// As for [`input`].
#[inline(always)]
pub(super) unsafe fn gradient<V: Lanes>(
    from: *const f32,
    pitch: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { forward::<Gradient, V, 4, 6>(from, 16 * pitch, to, stride) }
}

/// Transforms sums of products to 16 kernels of 3×3: frequency f at `from + f·stride`.
///
/// # Safety
/// As for [`input`].
#[inline(always)]
pub(super) unsafe fn kernel<V: Lanes>(from: *const f32, stride: usize) -> [[V; 3]; 3] {
    // SAFETY: the caller's promise.
    unsafe { back::<Kernel, V, 6, 3>(from, stride) }
}
