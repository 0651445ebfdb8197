use super::*;
use crate::ops::concat::SliceChannels;
use crate::ops::pixel_norm::PixelNorm;
use crate::ops::testing::{Host, assert_close, check_batch, check_gradient, check_threads, run};

/// The definition in float64: y and lse.
fn reference(op: Attention, q: &Host, k: &Host, v: &Host) -> (Vec<f32>, Vec<f32>) {
    let (batch, queries, channels) = (q.ty.shape[0], q.ty.shape[1], q.ty.shape[2]);
    let (keys, depth) = (k.ty.shape[1], channels / op.heads);
    let at = |host: &Host, token: usize, c: usize| f64::from(host.data[token * channels + c]);
    let (mut y, mut lse) = (Vec::new(), Vec::new());
    for i in 0..batch * queries {
        let first = i / queries * keys;
        for h in 0..op.heads {
            let score = |j: usize| {
                let dot = (h * depth..(h + 1) * depth).map(|c| at(q, i, c) * at(k, first + j, c));
                f64::from(op.scale) * dot.sum::<f64>()
            };
            let maximum = (0..keys).map(score).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = (0..keys).map(|j| (score(j) - maximum).exp()).sum();
            for c in h * depth..(h + 1) * depth {
                let p = |j: usize| (score(j) - maximum).exp() / total;
                y.push((0..keys).map(|j| p(j) * at(v, first + j, c)).sum::<f64>() as f32);
            }
            lse.push((maximum + total.ln()) as f32);
        }
    }
    (y, lse)
}

#[test]
fn matches_the_definition_in_float64() {
    for (heads, depth, queries, keys) in [(3, 8, 21, 21), (1, 5, 1, 3), (2, 64, 18, 130)] {
        let channels = heads * depth;
        let mut q = Host::random(&[2, queries, channels], 1);
        // Scores large enough that a softmax without its maximum would overflow.
        q.data.iter_mut().for_each(|x| *x *= 100.0);
        let k = Host::random(&[2, keys, channels], 2);
        let v = Host::random(&[2, keys, channels], 3);
        for scale in [0.01, 1.0] {
            let op = Attention { heads, scale };
            let got = run(&op, &[&q, &k, &v]);
            let (y, lse) = reference(op, &q, &k, &v);
            // With scale 1 scores reach 800, whose last place is 6e-5.
            let bound = if scale < 1.0 { 4e-6 } else { 3e-4 };
            assert_close(&got[0].data, &y, bound);
            assert_close(&got[1].data, &lse, bound);
        }
    }
}

/// Queries, keys and values in one tensor are those that normalisation and slices would give.
#[test]
fn of_one_tensor() {
    for (heads, depth, tokens) in [(3, 8, 21), (1, 5, 3), (2, 20, 70)] {
        let channels = heads * depth;
        let x = Host::random(&[2, tokens, 3 * channels], 1);
        let normed = run(&PixelNorm { groups: 3 * heads }, &[&x]).remove(0);
        let [q, k, v] = [0, 1, 2].map(|part| {
            run(&SliceChannels::plain(part * channels, channels), &[&normed]).remove(0)
        });
        let scale = 0.7;
        let want = run(&Attention { heads, scale }, &[&q, &k, &v]);
        let packed = PackedAttention { heads, scale };
        for (got, want) in run(&packed, &[&x]).iter().zip(&want) {
            assert_eq!(got.data, want.data);
        }
        check_threads(&packed, &[&x]);
        check_batch(&packed, &[&x], &[true], &[0, 1]);
    }
    let op = PackedAttention { heads: 2, scale: 1.0 };
    for shape in [vec![2, 3, 8], vec![2, 24], vec![0, 3, 24]] {
        let said = op.infer(&[&TensorType::f32(shape)]).unwrap_err().to_string();
        assert!(said.contains("attention"), "{said}");
    }
}

#[test]
fn gradients() {
    for (heads, depth, queries, keys) in [(2, 4, 5, 5), (1, 9, 3, 70), (1, 3, 66, 2)] {
        let inputs = [
            Host::random(&[2, queries, heads * depth], 1),
            Host::random(&[2, keys, heads * depth], 2),
            Host::random(&[2, keys, heads * depth], 3),
        ];
        check_gradient(Arc::new(Attention { heads, scale: 0.7 }), &inputs, &[0], 2e-3);
    }
}

#[test]
fn neither_threads_nor_batch_nor_simd_matter() {
    let shape = [3, 75, 24];
    let host = |seed| Host::random(&shape, seed);
    let (q, k, v, dy) = (host(1), host(2), host(3), host(4));
    let op = Attention { heads: 2, scale: 0.3 };
    check_threads(&op, &[&q, &k, &v]);
    check_batch(&op, &[&q, &k, &v], &[true; 3], &[0, 1]);
    let results = run(&op, &[&q, &k, &v]);
    let op = AttentionGrad { heads: 2, scale: 0.3 };
    let inputs = [&dy, &q, &k, &v, &results[0], &results[1]];
    check_threads(&op, &inputs);
    check_batch(&op, &inputs, &[true; 6], &[0, 1, 2]);
}

#[test]
fn nan_is_not_hidden() {
    let (q, mut k) = (Host::random(&[1, 4, 8], 1), Host::random(&[1, 4, 8], 2));
    k.data[3] = f32::NAN;
    let y = run(&Attention { heads: 1, scale: 1.0 }, &[&q, &k, &q]);
    assert!(y[0].data.iter().all(|y| y.is_nan()));
}

#[test]
fn flops_and_bad_shapes() {
    let (q, k) = (TensorType::f32([2, 16, 24]), TensorType::f32([2, 10, 24]));
    let op = Attention { heads: 3, scale: 1.0 };
    // Two products of 16 × 8 × 10, three heads, two samples, two operations a multiplication.
    assert_eq!(op.flops(&[&q, &k, &k], &[]), 2 * 2 * 3 * 2 * (16 * 8 * 10));
    assert!(op.infer(&[&q, &k, &q]).is_err());
    assert!(Attention { heads: 5, ..op }.infer(&[&q, &k, &k]).is_err());
    assert!(op.infer(&[&q, &TensorType::f32([1, 10, 24]), &k]).is_err());
    let none = TensorType::f32([2, 0, 24]);
    for inputs in [[&none, &k, &k], [&q, &none, &none]] {
        let said = op.infer(&inputs).unwrap_err().to_string();
        assert!(said.contains("attention") && said.contains("at least 1"), "{said}");
    }
}

#[test]
fn each_launch_of_the_gradient_has_its_part_of_the_cost() {
    let (q, k) = (TensorType::f32([2, 16, 24]), TensorType::f32([2, 10, 24]));
    let op = AttentionGrad { heads: 3, scale: 1.0 };
    let lse = TensorType::f32([2, 3, 16]);
    let (inputs, outputs) = ([&q, &q, &k, &k, &q, &lse], [&q, &k, &k]);
    let [for_q, for_kv] = op.costs(&inputs, &outputs, 2)[..] else { panic!("two launches") };
    assert_eq!(for_q[0] + for_kv[0], op.flops(&inputs, &outputs));
    let [q, k, lse] = [&q, &k, &lse].map(|ty| ty.bytes() as u64);
    assert_eq!(for_q[1], 3 * q + 2 * k + lse + q);
    assert_eq!(for_kv[1], 2 * q + 2 * k + lse + 2 * k);
    assert_eq!(op.costs(&inputs, &outputs, 1), [[5 * for_q[0] / 3, op.bytes(&inputs, &outputs)]]);
}
