//! The twins of matrix instructions against plain products.

use super::*;

unsafe extern "C" {
    fn cyanea_selftest_m8n8k4(params: *const c_void);
    fn cyanea_selftest_m16n8(params: *const c_void);
    fn cyanea_selftest_tile_sm70(params: *const c_void);
    fn cyanea_selftest_tile_sm80(params: *const c_void);
}

/// What one warp writes, with several orders of its lanes.
fn run(entry: HostEntry, mode: i32, results: usize) -> Vec<f32> {
    let mut worker = Worker::new();
    let mut first: Option<Vec<f32>> = None;
    for seed in 0..4 {
        let mut out = vec![f32::NAN; results];
        let address = out.as_mut_ptr().expose_provenance() as u128;
        let params = [address | (mode as u128) << 64];
        let grid = Grid {
            entry,
            params: &params,
            grid: [1; 3],
            block: [32, 1, 1],
            dynamic_shared: 0,
            shared_limit: 64 << 10,
            #[cfg(feature = "checked")]
            regions: vec![Region::output(&out)],
        };
        // SAFETY: `out` has an element for each result; the parameters are a `Selftest`.
        unsafe { worker.run(&grid, [0; 3], seed).unwrap() };
        assert!(first.get_or_insert_with(|| out.clone()) == &out, "depends on the order of lanes");
    }
    first.unwrap()
}

/// The factors of the tests, as in `kernels/host/selftest_mma.cpp`.
fn a_at(m: usize, k: usize) -> f32 {
    ((m * 7 + k * 3) % 11) as f32 - 5.0
}

fn b_at(k: usize, n: usize) -> f32 {
    ((k * 5 + n * 2) % 13) as f32 - 6.0
}

/// Rows `first_row..first_row + m` of the product, `n` columns, `k` terms.
fn product(first_row: usize, m: usize, n: usize, k: usize) -> Vec<f32> {
    (0..m * n)
        .map(|at| (0..k).map(|k| a_at(first_row + at / n, k) * b_at(k, at % n)).sum())
        .collect()
}

#[test]
fn four_products_of_8_by_8_by_4() {
    let want: Vec<f32> = (0..4).flat_map(|p| product(p, 8, 8, 4)).collect();
    for mode in 0..4 {
        let got = run(cyanea_selftest_m8n8k4, mode, 256);
        assert_eq!(got, want, "mode {mode}");
    }
}

#[test]
fn products_of_16_by_8() {
    for (mode, k) in [(0, 16), (1, 8), (2, 16), (3, 16)] {
        let got = run(cyanea_selftest_m16n8, mode, 128);
        assert_eq!(got, product(0, 16, 8, k), "mode {mode}");
    }
}

#[test]
fn tiles_of_a_warp_on_both_code_paths() {
    for entry in [cyanea_selftest_tile_sm70 as HostEntry, cyanea_selftest_tile_sm80] {
        for (mode, k) in [(0, 16), (1, 8), (2, 16), (3, 16)] {
            let got = run(entry, mode, 256);
            assert_eq!(got, product(0, 16, 16, k), "mode {mode}");
        }
        // All values are exact in float16: at most 11 bits.
        let ab = product(0, 16, 16, 16);
        let got = run(entry, 4, 256);
        for (at, got) in got.iter().enumerate() {
            let (row, column) = (at / 16, at % 16);
            let want: f32 = (0..16).map(|k| ab[row * 16 + k] / 16.0 * a_at(k, column)).sum();
            assert_eq!(*got, want, "row {row}, column {column}");
        }
    }
}
