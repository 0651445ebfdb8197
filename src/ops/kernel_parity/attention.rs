//! Attention and its gradient, for each length of row that the kernels are built for.

use super::check;
use crate::ops::attention::{Attention, AttentionGrad};
use crate::ops::testing::{Host, run};

#[test]
pub(super) fn attention_and_gradient() {
    // Samples, queries, keys, heads, depth.
    for [b, n, m, heads, depth] in
        [[2, 5, 5, 3, 8], [1, 70, 67, 2, 5], [2, 9, 11, 1, 33], [1, 6, 5, 1, 130]]
    {
        let channels = heads * depth;
        let q = Host::random(&[b, n, channels], 1);
        let (k, v) = (Host::random(&[b, m, channels], 2), Host::random(&[b, m, channels], 3));
        let scale = 3.0 / (depth as f32).sqrt();
        let forward = Attention { heads, scale };
        check(&forward, &[&q, &k, &v], 1e-5);
        let [y, lse] = &run(&forward, &[&q, &k, &v])[..] else { unreachable!() };
        let dy = Host::random(&[b, n, channels], 4);
        check(&AttentionGrad { heads, scale }, &[&dy, &q, &k, &v, y, lse], 1e-5);
    }
}

/// Scores beyond the range of exp must not overflow.
#[test]
pub(super) fn large_scores() {
    let [q, k, v] = [1, 2, 3].map(|seed| Host::random(&[1, 40, 8], seed));
    check(&Attention { heads: 1, scale: 500.0 }, &[&q, &k, &v], 1e-3);
}

#[test]
pub(super) fn rows_beyond_the_kernels_are_refused() {
    let ty = crate::device::TensorType::f32([1, 2, 513]);
    let view = crate::device::View { space: crate::device::Space::Persistent, offset: 0, ty };
    let target = crate::device::Target::H100;
    let inputs = vec![view.clone(), view.clone(), view.clone()];
    let outputs = vec![view.clone(), view];
    let args = crate::ops::LaunchArgs {
        target: &target,
        inputs: &inputs,
        outputs: &outputs,
        scratch: None,
        tickets: None,
    };
    let error = crate::ops::Op::launch(&Attention { heads: 1, scale: 1.0 }, &args).unwrap_err();
    assert!(error.to_string().contains("at most 512"), "{error}");
}
