//! Between PyTorch's NCHW, which files have, and the engine's NHWC.

/// `[batch, channels, height, width]` to `[batch, height, width, channels]`.
///
/// # Panics
/// Where `values` doesn't hold as many elements as the shape says.
pub fn nchw_to_nhwc<T: Copy>(values: &[T], [b, c, h, w]: [usize; 4]) -> Vec<T> {
    swap_inner(values, b, c, h * w)
}

/// `[batch, height, width, channels]` to `[batch, channels, height, width]`; `shape` is the
/// **NCHW** shape of the result.
///
/// # Panics
/// As [`nchw_to_nhwc`].
pub fn nhwc_to_nchw<T: Copy>(values: &[T], [b, c, h, w]: [usize; 4]) -> Vec<T> {
    swap_inner(values, b, h * w, c)
}

/// `[batch, rows, columns]` to `[batch, columns, rows]`.
fn swap_inner<T: Copy>(values: &[T], batch: usize, rows: usize, columns: usize) -> Vec<T> {
    assert_eq!(
        values.len(),
        batch * rows * columns,
        "elements of a {batch}×{rows}×{columns} array"
    );
    let mut out = Vec::with_capacity(values.len());
    for matrix in values.chunks_exact((rows * columns).max(1)) {
        for column in 0..columns {
            out.extend(matrix[column..].iter().step_by(columns));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_land_where_their_indices_say() {
        let [b, c, h, w] = [2, 3, 4, 5];
        let nchw: Vec<usize> = (0..b * c * h * w).collect();
        let nhwc = nchw_to_nhwc(&nchw, [b, c, h, w]);
        for n in 0..b {
            for k in 0..c {
                for y in 0..h {
                    for x in 0..w {
                        let there = nhwc[((n * h + y) * w + x) * c + k];
                        assert_eq!(there, nchw[((n * c + k) * h + y) * w + x]);
                    }
                }
            }
        }
        assert_eq!(nhwc_to_nchw(&nhwc, [b, c, h, w]), nchw);
    }

    #[test]
    fn empty_tensors_stay_empty() {
        assert!(nchw_to_nhwc::<f32>(&[], [0, 3, 2, 2]).is_empty());
        assert!(nhwc_to_nchw::<f32>(&[], [2, 0, 2, 2]).is_empty());
    }
}
