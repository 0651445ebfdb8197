//! The product kernel: a few rows times a panel of 16 or 32 columns, accumulators in registers.
//!
//! Register blocks: 12×32 with AVX-512 (24 accumulators of 32 registers), 6×16 with AVX2 (12 of
//! 16). An element is one chain of fused multiply-adds along K, whatever block it falls into, so
//! bits depend neither on the block nor on the level (where it has a fused instruction).

use super::super::Simd;
use super::super::lanes::{Lanes, Portable};

/// c[r][j] (+)= Σ_s Σ_k a[s·segment_stride + r·row_stride + k·k_stride] · b[(s·length + k)·b_stride + j].
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub a: *const f32,
    pub row_stride: usize,
    pub k_stride: usize,
    pub segments: usize,
    pub segment_stride: usize,
    pub length: usize,
    pub b: *const f32,
    pub b_stride: usize,
    pub c: *mut f32,
    pub c_stride: usize,
    /// Add to `c` instead of overwriting it.
    pub accumulate: bool,
}

/// How `a` is laid out; a stride known at compile time saves address registers.
#[derive(Clone, Copy)]
pub(super) enum Layout {
    /// k_stride 1, any row stride.
    Rows,
    /// k_stride 1, row stride 16.
    Rows16,
    /// Row stride 1, any k_stride.
    Columns,
}

#[inline(always)]
unsafe fn product<V: Lanes, const M: usize, const N: usize, const LAYOUT: usize>(p: &Product) {
    let (row, step) = match LAYOUT {
        0 => (p.row_stride, 1),
        1 => (16, 1),
        _ => (1, p.k_stride),
    };
    // SAFETY: the caller vouches for every element that the sums above name.
    unsafe {
        let mut sums = [[V::zero(); N]; M];
        let mut b = p.b;
        for segment in 0..p.segments {
            let mut a = p.a.add(segment * p.segment_stride);
            for _ in 0..p.length {
                let mut columns = [V::zero(); N];
                for (j, column) in columns.iter_mut().enumerate() {
                    *column = V::load(b.add(16 * j));
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    let value = V::splat(*a.add(r * row));
                    for (sum, column) in sums.iter_mut().zip(columns) {
                        *sum = value.mul_add(column, *sum);
                    }
                }
                a = a.add(step);
                b = b.add(p.b_stride);
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let to = p.c.add(r * p.c_stride + 16 * j);
                let sum = if p.accumulate { V::load(to).add(sum) } else { sum };
                sum.store(to);
            }
        }
    }
}

type Kernel = unsafe fn(&Product);

/// The kernels of one level, by layout, columns (16 or 32) and rows.
pub(super) struct Kernels {
    /// Most rows of a block.
    rows: usize,
    /// Most vectors of 16 columns of a block.
    vectors: usize,
    /// `[layout][vectors − 1][rows − 1]`.
    table: [[&'static [Kernel]; 2]; 3],
}

/// The kernels of every level are listed by these macros, one function a register block.
macro_rules! kernel_rows {
    ($kernel:ident, $n:literal, $layout:literal, $($m:literal)*) => {
        &[$($kernel::<$m, $n, $layout> as Kernel),*]
    };
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::super::lanes::x86::{Avx2, Avx512};
    use super::{Kernel, Kernels, Product, product};

    #[target_feature(enable = "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,bmi1,bmi2")]
    unsafe fn avx512<const M: usize, const N: usize, const LAYOUT: usize>(p: &Product) {
        // SAFETY: the caller's promise.
        unsafe { product::<Avx512, M, N, LAYOUT>(p) }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const M: usize, const N: usize, const LAYOUT: usize>(p: &Product) {
        // SAFETY: the caller's promise.
        unsafe { product::<Avx2, M, N, LAYOUT>(p) }
    }

    pub(super) static AVX512: Kernels = Kernels {
        rows: 12,
        vectors: 2,
        table: [
            [
                kernel_rows!(avx512, 1, 0, 1 2 3 4 5 6 7 8 9 10 11 12),
                kernel_rows!(avx512, 2, 0, 1 2 3 4 5 6 7 8 9 10 11 12),
            ],
            [
                kernel_rows!(avx512, 1, 1, 1 2 3 4 5 6 7 8 9 10 11 12),
                kernel_rows!(avx512, 2, 1, 1 2 3 4 5 6 7 8 9 10 11 12),
            ],
            [
                kernel_rows!(avx512, 1, 2, 1 2 3 4 5 6 7 8 9 10 11 12),
                kernel_rows!(avx512, 2, 2, 1 2 3 4 5 6 7 8 9 10 11 12),
            ],
        ],
    };

    pub(super) static AVX2: Kernels = Kernels {
        rows: 6,
        vectors: 1,
        table: [
            [kernel_rows!(avx2, 1, 0, 1 2 3 4 5 6), &[]],
            [kernel_rows!(avx2, 1, 1, 1 2 3 4 5 6), &[]],
            [kernel_rows!(avx2, 1, 2, 1 2 3 4 5 6), &[]],
        ],
    };
}

unsafe fn portable<const M: usize, const N: usize, const LAYOUT: usize>(p: &Product) {
    // SAFETY: the caller's promise.
    unsafe { product::<Portable, M, N, LAYOUT>(p) }
}

static PORTABLE: Kernels = Kernels {
    rows: 4,
    vectors: 1,
    table: [
        [kernel_rows!(portable, 1, 0, 1 2 3 4), &[]],
        [kernel_rows!(portable, 1, 1, 1 2 3 4), &[]],
        [kernel_rows!(portable, 1, 2, 1 2 3 4), &[]],
    ],
};

impl Kernels {
    /// Those of a level, or of the best one that the machine has.
    pub(super) fn of(simd: Simd) -> &'static Kernels {
        match simd.min(Simd::available()) {
            #[cfg(target_arch = "x86_64")]
            Simd::Avx512 => &x86::AVX512,
            #[cfg(target_arch = "x86_64")]
            Simd::Avx2 => &x86::AVX2,
            _ => &PORTABLE,
        }
    }

    /// Computes `rows` × `16·vectors` sums (`vectors` 1 or 2) in register blocks of about equal
    /// height.
    ///
    /// # Safety
    /// `product` names readable memory for `a` and `b`, writable memory for `c`, for all rows and
    /// columns, and its strides agree with `layout`.
    pub(super) unsafe fn multiply(
        &self,
        layout: Layout,
        rows: usize,
        vectors: usize,
        product: &Product,
    ) {
        let blocks = rows.div_ceil(self.rows);
        let mut vector = 0;
        while vector < vectors {
            let wide = self.vectors.min(vectors - vector);
            let kernels = self.table[layout as usize][wide - 1];
            let mut row = 0;
            for block in 0..blocks {
                let height = (block + 1) * rows / blocks - row;
                // SAFETY: a part of what the caller vouches for, at a level that the machine has.
                unsafe {
                    let part = Product {
                        a: product.a.add(row * product.row_stride),
                        b: product.b.add(16 * vector),
                        c: product.c.add(row * product.c_stride + 16 * vector),
                        ..*product
                    };
                    kernels[height - 1](&part);
                }
                row += height;
            }
            vector += wide;
        }
    }
}
