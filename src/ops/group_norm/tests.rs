use super::*;
use crate::ops::testing::{Host, assert_close, check_batch, check_gradient, check_threads, run};

const NORM: GroupNorm = GroupNorm { groups: 3, eps: 1e-5, silu: false };
const NORM_SILU: GroupNorm = GroupNorm { silu: true, ..NORM };

/// x, x2, gamma, beta: two samples of 15 pixels, 4 + 5 channels, groups that straddle both sources.
fn two_sources(rows: &[usize]) -> Vec<Host> {
    let affine: Vec<usize> = rows.iter().copied().chain([9]).collect();
    vec![
        Host::random(&[2, 3, 5, 4], 1),
        Host::random(&[2, 3, 5, 5], 2),
        Host::random(&affine, 3),
        Host::random(&affine, 4),
    ]
}

/// The two sources written as one.
fn concatenated(inputs: &[Host]) -> Host {
    let (a, b) = (&inputs[0], &inputs[1]);
    let pixels = a.data.chunks_exact(4).zip(b.data.chunks_exact(5));
    let data = pixels.flat_map(|(a, b)| a.iter().chain(b).copied()).collect();
    Host::new(&[2, 3, 5, 9], data)
}

#[test]
fn matches_the_definition_in_float64() {
    let mut inputs = two_sources(&[2]);
    // A mean far from zero, where E[x²] − E[x]² would lose everything.
    for host in &mut inputs[..2] {
        host.data.iter_mut().for_each(|x| *x += 1000.0);
    }
    let x = concatenated(&inputs);
    let results = run(&NORM, &inputs.iter().collect::<Vec<_>>());
    let mut want = vec![0.0; x.data.len()];
    for sample in 0..2 {
        for group in 0..3 {
            let at: Vec<usize> = (0..15)
                .flat_map(|pixel| (0..3).map(move |c| (sample * 15 + pixel) * 9 + group * 3 + c))
                .collect();
            let value = |i: usize| f64::from(x.data[i]);
            let mean = at.iter().map(|&i| value(i)).sum::<f64>() / 45.0;
            let variance = at.iter().map(|&i| (value(i) - mean).powi(2)).sum::<f64>() / 45.0;
            for i in at {
                let c = sample * 9 + i % 9;
                let (gamma, beta) = (f64::from(inputs[2].data[c]), f64::from(inputs[3].data[c]));
                want[i] = ((value(i) - mean) / (variance + 1e-5).sqrt() * gamma + beta) as f32;
            }
        }
    }
    // Half a unit in the last place of the mean, 1000, over a deviation of about 0.58.
    assert_close(&results[0].data, &want, 1e-4);
    let silu = run(&NORM_SILU, &inputs.iter().collect::<Vec<_>>());
    let want: Vec<f32> = want.iter().map(|&z| z / (1.0 + (-z).exp())).collect();
    assert_close(&silu[0].data, &want, 1e-4);
}

#[test]
fn two_sources_equal_their_concatenation() {
    let inputs = two_sources(&[1]);
    let x = concatenated(&inputs);
    for op in [NORM, NORM_SILU] {
        let two = run(&op, &inputs.iter().collect::<Vec<_>>());
        let one = run(&op, &[&x, &inputs[2], &inputs[3]]);
        assert_eq!(one[0].data, two[0].data);
        assert_eq!(one[1].data, two[1].data);
    }
}

#[test]
fn the_affine_form_says_the_same() {
    let inputs = two_sources(&[2]);
    let x = concatenated(&inputs);
    let y = run(&NORM, &inputs.iter().collect::<Vec<_>>());
    let op = GroupNormAffine { groups: 3, eps: 1e-5 };
    let affine = run(&op, &inputs.iter().collect::<Vec<_>>());
    let applied: Vec<f32> = (x.data.iter().enumerate())
        .map(|(i, &x)| {
            let at = i / 135 * 18 + i % 9;
            x * affine[0].data[at] + affine[0].data[at + 9]
        })
        .collect();
    assert_close(&applied, &y[0].data, 2e-6);
}

#[test]
fn gradients() {
    for op in [NORM, NORM_SILU] {
        let one = [Host::random(&[2, 7, 6], 1), Host::random(&[6], 2), Host::random(&[6], 3)];
        check_gradient(Arc::new(op), &one, &[0], 2e-3);
        for rows in [&[][..], &[1], &[2]] {
            check_gradient(Arc::new(op), &two_sources(rows), &[0], 2e-3);
        }
    }
}

#[test]
fn neither_threads_nor_batch_matter() {
    // 40 × 41 pixels of 24 channels: three slices, the last one shorter.
    let x = Host::random(&[3, 40, 41, 24], 1);
    let (gamma, beta) = (Host::random(&[24], 2), Host::random(&[24], 3));
    let inputs = [&x, &gamma, &beta];
    let batched = [true, false, false];
    check_threads(&NORM_SILU, &inputs);
    check_batch(&NORM_SILU, &inputs, &batched, &[0, 1]);
    let affine = GroupNormAffine { groups: 3, eps: 1e-5 };
    check_threads(&affine, &inputs);
    check_batch(&affine, &inputs, &batched, &[0]);
    let stats = run(&NORM_SILU, &inputs)[1].clone();
    let dy = Host::random(&[3, 40, 41, 24], 4);
    for silu in [false, true] {
        let op = GroupNormGrad::new(3, silu);
        let inputs = [&dy, &x, &gamma, &beta, &stats];
        check_threads(&op, &inputs);
        check_batch(&op, &inputs, &[true, true, false, false, true], &[0]);
    }
}

#[test]
fn a_slice_of_equal_values_is_exact() {
    let x = Host::new(&[1, 2, 2, 3], vec![7.25; 12]);
    let (gamma, beta) = (Host::random(&[3], 1), Host::random(&[3], 2));
    let results = run(&GroupNorm { groups: 1, ..NORM }, &[&x, &gamma, &beta]);
    for pixel in results[0].data.chunks_exact(3) {
        assert_eq!(pixel, beta.data);
    }
}

#[test]
fn bad_shapes_are_refused() {
    let ty = |shape: &[usize]| TensorType::f32(shape);
    let (x, c) = (ty(&[2, 4, 9]), ty(&[9]));
    let refused = |inputs: &[&TensorType]| NORM.infer(inputs).unwrap_err().to_string();
    assert!(refused(&[&ty(&[2, 4, 8]), &ty(&[8]), &ty(&[8])]).contains("3 groups"));
    assert!(refused(&[&x, &ty(&[3, 9]), &ty(&[3, 9])]).contains("gamma and beta"));
    assert!(refused(&[&x, &c, &ty(&[1, 9])]).contains("gamma and beta"));
    assert!(refused(&[&x, &ty(&[2, 5, 3]), &ty(&[12]), &ty(&[12])]).contains("agree"));
    assert!(refused(&[&x, &c]).contains("inputs"));
    // Groups of 3: moments of single channels can be, of three or of one and a half groups can not.
    let of = |slices| GroupNormOfMoments(NORM).infer(&[&x, &c, &c, &ty(&[2, 1, 3, slices])]);
    assert!(of(9).is_ok());
    for slices in [3, 2] {
        assert!(of(slices).unwrap_err().to_string().contains("power of two"));
    }
}
