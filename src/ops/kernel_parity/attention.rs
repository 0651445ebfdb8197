//! Attention and its gradient, for each width of head that the kernels are built for.

use super::{check, compare_on, emulate, rounded};
use crate::device::{Space, Target, TensorType, View};
use crate::ops::attention::{Attention, AttentionGrad, PackedAttention};
use crate::ops::testing::{Host, run};
use crate::ops::{LaunchArgs, Op};

/// q, k, v and dy for samples, queries, keys and channels.
fn inputs([b, n, m, channels]: [usize; 4]) -> [Host; 4] {
    [(n, 1), (m, 2), (m, 3), (n, 4)].map(|(rows, seed)| Host::random(&[b, rows, channels], seed))
}

/// Both directions in both precisions.
fn check_both(heads: usize, scale: f32, [q, k, v, dy]: &[Host; 4], tolerance: f32) {
    let forward = Attention { heads, scale };
    check(&forward, &[q, k, v], tolerance);
    let [y, lse] = &run(&forward, &[q, k, v])[..] else { unreachable!() };
    check(&AttentionGrad { heads, scale }, &[dy, q, k, v, y, lse], tolerance);
}

/// Samples, queries, keys, heads, channels a head.
fn check_shapes(shapes: &[[usize; 5]]) {
    for &[b, n, m, heads, depth] in shapes {
        let scale = 3.0 / (depth as f32).sqrt();
        check_both(heads, scale, &inputs([b, n, m, heads * depth]), 1e-5);
    }
}

#[test]
pub(super) fn narrow_heads() {
    // With one key the gradients of scores are differences of equal numbers.
    check_both(2, 0.5, &inputs([3, 1, 1, 16]), 1e-4);
    check_shapes(&[[2, 33, 33, 3, 8], [1, 40, 70, 2, 12], [1, 33, 77, 1, 40], [1, 67, 66, 1, 64]]);
}

/// More keys than a tile, and more queries than a block has rows.
#[test]
fn larger_narrow_heads() {
    check_shapes(&[[1, 5, 300, 1, 8], [1, 130, 77, 1, 4], [1, 77, 130, 2, 12]]);
}

/// On a target so small that a block goes over several parts of its own rows.
#[test]
fn several_parts_a_block() {
    let (heads, scale) = (6, 0.5);
    let packed = Host::random(&[1, 130, 3 * 4 * heads], 5);
    super::check_on_chips_of(1, &PackedAttention { heads, scale }, &[&packed], 1e-5);
    let given = inputs([1, 130, 20, 4 * heads]);
    let forward = Attention { heads, scale };
    let backward = AttentionGrad { heads, scale };
    for target in [Target::V100, Target::H100].map(|full| Target { multiprocessors: 1, ..full }) {
        for half in [false, true] {
            let [q, k, v, dy] =
                given.each_ref().map(|host| if half { rounded(host) } else { host.clone() });
            // The CPU's kernels take float16's values as float32.
            let plain = |host: &Host| Host::new(&host.ty.shape, host.data.clone());
            let tolerance = if half { 2e-3 } else { 1e-5 };
            let want = run(&forward, &[&plain(&q), &plain(&k), &plain(&v)]);
            compare_on(&target, &forward, &[&q, &k, &v], &[], &want, tolerance);
            let y = if half { rounded(&want[0]) } else { want[0].clone() };
            let of = [&dy, &q, &k, &v, &y, &want[1]];
            let want = run(&backward, &of.map(plain).each_ref());
            compare_on(&target, &backward, &of, &[], &want, tolerance);
        }
    }
}

#[test]
pub(super) fn wide_heads() {
    check_shapes(&[
        [1, 33, 35, 1, 72],
        [2, 3, 34, 1, 128],
        [1, 1, 33, 2, 256],
        [1, 34, 33, 1, 512],
    ]);
}

/// Heads of each width that kernels are built for.
#[test]
pub(super) fn of_one_tensor() {
    check_packed(&[
        [2, 33, 3, 8],
        [1, 77, 2, 12],
        [1, 33, 1, 32],
        [1, 33, 2, 64],
        [2, 35, 1, 72],
        [1, 34, 1, 128],
        [1, 33, 1, 256],
        [1, 34, 1, 512],
    ]);
}

/// More tokens than a tile has.
#[test]
fn larger_tensors() {
    check_packed(&[[1, 300, 1, 4], [1, 130, 1, 32], [1, 67, 1, 60], [1, 66, 1, 128]]);
}

/// The most tokens that the kernels are for, on one side and on the other.
#[test]
fn largest_numbers_of_tokens() {
    check_shapes(&[
        [1, 17, 10_240, 1, 8],
        [1, 10_240, 17, 1, 8],
        [1, 3, 10_240, 1, 72],
        [1, 10_240, 3, 1, 72],
    ]);
}

/// Queries, keys and values in one tensor, normalised while they are loaded: samples, tokens, heads,
/// channels a head. Row 1 is zero, and others are far smaller and larger than 1.
fn check_packed(shapes: &[[usize; 4]]) {
    for &[b, n, heads, depth] in shapes {
        let mut x = Host::random(&[b, n, 3 * heads * depth], 1);
        for (row, channels) in x.data.chunks_mut(depth).enumerate() {
            let factor = [1.0, 0.0, 0.02, 50.0, 1.0][row % 5];
            channels.iter_mut().for_each(|x| *x *= factor);
        }
        let scale = 3.0 / (depth as f32).sqrt();
        check(&PackedAttention { heads, scale }, &[&x], 1e-5);
        if depth == 8 || depth == 72 {
            check(&PackedAttention { heads, scale: -scale }, &[&x], 1e-5);
        }
    }
}

/// Scores beyond the range of exp must not overflow; nor need the scale be positive.
#[test]
fn unusual_scales() {
    for (depth, heads) in [(8, 1), (36, 1), (68, 1)] {
        let inputs = inputs([1, 20, 21, depth]);
        check(&Attention { heads, scale: 500.0 }, &[&inputs[0], &inputs[1], &inputs[2]], 1e-3);
        check_both(heads, -0.7, &inputs, 1e-5);
        check_both(heads, 0.0, &inputs, 1e-5);
    }
}

/// Gradients of scores far below what float16 can hold lose nothing on their way to dq and dk.
#[test]
fn small_gradients() {
    for depth in [8, 64, 72] {
        let mut inputs = inputs([1, 40, 70, depth]);
        for (host, factor) in inputs.iter_mut().zip([100.0, 100.0, 0.02, 0.02]) {
            host.data.iter_mut().for_each(|x| *x *= factor);
        }
        check_both(1, 1e-4 / (depth as f32).sqrt(), &inputs, 1e-5);
        // With a scale of 1 the largest gradients come late, after many that are tiny.
        inputs[0].data.iter_mut().for_each(|x| *x *= 1e-2);
        inputs[1].data.iter_mut().for_each(|x| *x *= 1e-2);
        let last = inputs[3].data.len() - depth;
        inputs[3].data[last..].iter_mut().for_each(|x| *x *= 5e3);
        check_both(1, 1.0 / (depth as f32).sqrt(), &inputs, 1e-5);
    }
}

/// What is not a number, or too large, shows in each result that depends on it.
#[test]
fn not_a_number_is_not_hidden() {
    let (heads, scale) = (1, 0.5);
    for (depth, half) in [(8, false), (8, true), (64, true), (72, false), (72, true)] {
        let mut inputs = inputs([1, 5, 20, depth]);
        let ops: [&dyn Op; 2] = [&Attention { heads, scale }, &AttentionGrad { heads, scale }];
        let results = run(ops[0], &[&inputs[0], &inputs[1], &inputs[2]]);
        let typed = |host: &Host| if half { rounded(host) } else { host.clone() };
        let mut broken = inputs[1].clone();
        broken.data[3 * depth] = f32::NAN;
        inputs[3].data[2 * depth] = f32::INFINITY;
        let [q, k, v, dy] = inputs.each_ref().map(typed);
        let (y, lse, broken) = (typed(&results[0]), &results[1], typed(&broken));
        for target in [Target::V100, Target::H100] {
            let forward = emulate(&target, 1, ops[0], &[&q, &broken, &v], &[]);
            assert!(forward[0].data.iter().all(|y| y.is_nan()), "{depth} on {}", target.name);
            let given = [&dy, &q, &k, &v, &y, lse];
            let [dq, dk, dv] = &emulate(&target, 1, ops[1], &given, &[])[..] else { panic!() };
            let row = &dq.data[2 * depth..3 * depth];
            assert!(row.iter().all(|x| !x.is_finite()), "{depth} on {}: {row:?}", target.name);
            assert!(dk.data.iter().all(|x| !x.is_finite()), "{depth} on {}", target.name);
            let first = |data: &[f32]| data.iter().step_by(depth).all(|x| !x.is_finite());
            assert!(first(&dv.data), "{depth} on {}", target.name);
        }
    }
}

/// The refusal of an operation on tensors of one shape.
fn refusal(channels: usize, heads: usize) -> String {
    let ty = TensorType::f32([1, 2, channels]);
    let view = View { space: Space::Persistent, offset: 0, ty };
    let (inputs, outputs) = (vec![view.clone(); 3], vec![view; 2]);
    let args = LaunchArgs {
        target: &Target::H100,
        inputs: &inputs,
        outputs: &outputs,
        scratch: None,
        tickets: None,
    };
    Attention { heads, scale: 1.0 }.launch(&args).unwrap_err().to_string()
}

#[test]
fn heads_beyond_the_kernels_are_refused() {
    for (channels, heads) in [(516, 1), (12, 2), (2, 1), (513, 1)] {
        let said = refusal(channels, heads);
        let depth = format!("{} channels a head", channels / heads);
        for part in ["attention", &depth, "multiples of 4 of at most 512"] {
            assert!(said.contains(part), "{part} is missing from: {said}");
        }
    }
}
