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

/// A two-dimensional transform of an `N`×`N` array by a one-dimensional one, to `M`×`M`.
#[inline(always)]
unsafe fn both<V: Lanes, const N: usize, const M: usize>(
    load: impl Fn(usize, usize) -> V,
    along: impl Fn([V; N]) -> [V; M],
    mut store: impl FnMut(usize, usize, V),
) {
    // SAFETY: a zero of the level.
    let mut middle = [[unsafe { V::zero() }; N]; M];
    for column in 0..N {
        let transformed = along(std::array::from_fn(|row| load(row, column)));
        for row in 0..M {
            middle[row][column] = transformed[row];
        }
    }
    for (row, values) in middle.into_iter().enumerate() {
        for (column, value) in along(values).into_iter().enumerate() {
            store(row, column, value);
        }
    }
}

/// Transforms an input tile: element (i, j) at `from + 16·(i·pitch + j)`, frequency f to
/// `to + f·stride`.
///
/// # Safety
/// All elements are readable and writable, 16 values each; `M` is 4 or 2.
#[inline(always)]
pub(super) unsafe fn input<V: Lanes, const M: usize>(
    from: *const f32,
    pitch: usize,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let load = |row: usize, column: usize| V::load(from.add(16 * (row * pitch + column)));
        if M == 4 {
            both(
                load,
                |d: [V; 6]| input4(d),
                |row, column, value: V| value.store(to.add((row * 6 + column) * stride)),
            );
        } else {
            both(
                load,
                |d: [V; 4]| input2(d),
                |row, column, value: V| value.store(to.add((row * 4 + column) * stride)),
            );
        }
    }
}

/// Transforms products back: frequency f at `from + f·stride`; `store(row, column, value)`.
///
/// # Safety
/// As for [`input`].
#[inline(always)]
pub(super) unsafe fn output<V: Lanes, const M: usize>(
    from: *const f32,
    stride: usize,
    store: impl FnMut(usize, usize, V),
) {
    // SAFETY: the caller's promise.
    unsafe {
        if M == 4 {
            let load = |row: usize, column: usize| V::load(from.add((row * 6 + column) * stride));
            both(load, |m: [V; 6]| output4(m), store);
        } else {
            let load = |row: usize, column: usize| V::load(from.add((row * 4 + column) * stride));
            both(load, |m: [V; 4]| output2(m), store);
        }
    }
}

/// Transforms 16 kernels of 3×3: tap t at `from + 16·t`, frequency f to `to + f·stride`.
///
/// # Safety
/// As for [`input`].
#[inline(always)]
pub(super) unsafe fn weight<V: Lanes, const M: usize>(
    from: *const f32,
    to: *mut f32,
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let load = |row: usize, column: usize| V::load(from.add(16 * (row * 3 + column)));
        if M == 4 {
            both(
                load,
                |g: [V; 3]| weight4(g),
                |row, column, value: V| value.store(to.add((row * 6 + column) * stride)),
            );
        } else {
            both(
                load,
                |g: [V; 3]| weight2(g),
                |row, column, value: V| value.store(to.add((row * 4 + column) * stride)),
            );
        }
    }
}
