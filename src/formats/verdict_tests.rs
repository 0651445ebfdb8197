use super::*;
use crate::formats::tensors::{Tensor, TensorData, Tensors};
use half::f16;
use std::path::Path;

/// Deterministic values of about unit size.
fn wave(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.7).sin() * 1.414).collect()
}

/// A case whose wanted tensors are these, each of one dimension.
fn case(op: &str, wanted: &[(&str, Vec<f32>)], half: &[(&str, Vec<f32>)]) -> ReferenceCase {
    let mut tensors = Tensors::new();
    tensors.metadata.insert("format".into(), "reference-case/1".into());
    tensors.metadata.insert("op".into(), op.into());
    for (name, values) in wanted {
        if let Some(of) = name.strip_prefix("grad_") {
            tensors.insert(of, Tensor::f32([values.len()], vec![0.0; values.len()]));
        }
        tensors.insert(*name, Tensor::f32([values.len()], values.clone()));
    }
    for (name, values) in half {
        let twin = values.iter().map(|&v| f16::from_f32(v)).collect();
        tensors.insert(format!("half.{name}"), Tensor::new([values.len()], TensorData::F16(twin)));
    }
    ReferenceCase::from_tensors(tensors, Path::new("case")).unwrap()
}

fn judged(case: &ReferenceCase, got: &[(&str, Vec<f32>)], precision: Precision) -> Verdict {
    let got = got.iter().map(|(name, values)| (name.to_string(), values.clone())).collect();
    judge(case, &got, precision).unwrap()
}

/// `values` with `by` added to one element.
fn off(values: &[f32], index: usize, by: f32) -> Vec<f32> {
    let mut values = values.to_vec();
    values[index] += by;
    values
}

#[test]
fn single_operations_are_held_to_narrow_bounds() {
    let want = wave(100);
    let size = rms(&want);
    let fine = (1e-5 * size + 1e-4 * f64::from(want[3].abs())) as f32;
    let conv = case("conv2d", &[("output.y", want.clone())], &[]);
    let near = judged(&conv, &[("output.y", off(&want, 3, 0.98 * fine))], Precision::Fp32);
    assert!(near.pass && near.tensors[0].pass == Some(true));
    let share = near.tensors[0].allowed_share.unwrap();
    assert!(share > 0.9 && share <= 1.0, "{share}");
    let far = judged(&conv, &[("output.y", off(&want, 3, 1.03 * fine))], Precision::Fp32);
    assert!(!far.pass);
    assert_eq!(far.tensors[0].at, [3]);
    let error = far.tensors[0].max_abs_error;
    assert!((error - 1.03 * f64::from(fine)).abs() <= 1e-6, "{error}");
    // Ten times as much is allowed to a network.
    let network = case("unet2d", &[("output.y", want.clone())], &[]);
    assert!(judged(&network, &[("output.y", off(&want, 3, 9.5 * fine))], Precision::Fp32).pass);
    assert!(!judged(&network, &[("output.y", off(&want, 3, 10.5 * fine))], Precision::Fp32).pass);
}

#[test]
fn gradients_are_measured_by_the_largest_of_them() {
    let (large, small) = (wave(400), wave(100).iter().map(|v| v * 1e-4).collect::<Vec<_>>());
    let wanted = [("grad_input.x", large.clone()), ("grad_input.z", small.clone())];
    let case = case("conv2d", &[wanted.as_slice(), &[("output.y", vec![1.0])]].concat(), &[]);
    // s of z is 1 % of the other's RMS, so 1e-4·s is about 1e-6; its own would allow 1e-7.
    let got = |by| {
        [
            ("grad_input.x", large.clone()),
            ("grad_input.z", off(&small, 0, by)),
            ("output.y", vec![1.0]),
        ]
    };
    assert!(judged(&case, &got(0.9e-6), Precision::Fp32).pass);
    assert!(!judged(&case, &got(1.1e-6), Precision::Fp32).pass);
}

#[test]
fn a_files_own_tolerances_hold() {
    let want = vec![0.0, 2.0];
    let mut case = case("conv2d", &[("output.y", want.clone())], &[]);
    (case.rtol, case.atol) = (Some(0.0), Some(0.5));
    assert!(judged(&case, &[("output.y", off(&want, 0, 0.5))], Precision::Fp32).pass);
    assert!(!judged(&case, &[("output.y", off(&want, 0, 0.51))], Precision::Fp32).pass);
    case.atol = Some(0.0);
    assert!(judged(&case, &[("output.y", want.clone())], Precision::Fp32).pass);
    assert!(!judged(&case, &[("output.y", off(&want, 1, 1e-6))], Precision::Fp32).pass);
}

#[test]
fn what_is_not_finite_never_passes() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let want = wave(300);
        let mut got = want.clone();
        got[7] = bad;
        let case = case("silu", &[("output.y", want.clone())], &[("output.y", want)]);
        for precision in [Precision::Fp32, Precision::Fp16] {
            let verdict = judged(&case, &[("output.y", got.clone())], precision);
            assert!(!verdict.pass, "{bad} {precision:?}");
            assert_eq!(verdict.tensors[0].at, [7]);
            assert!(verdict.tensors[0].max_abs_error.is_nan());
        }
    }
    // Not even where the file wants it.
    let case = case("silu", &[("output.y", vec![f32::INFINITY])], &[]);
    assert!(!judged(&case, &[("output.y", vec![f32::INFINITY])], Precision::Fp32).pass);
}

#[test]
fn half_precision_may_err_as_pytorch_does_and_a_little_more() {
    let want = vec![1.0; 512];
    let half = off(&want, 0, 0.25);
    let case = case("silu", &[("output.y", want.clone())], &[("output.y", half)]);
    // max: 2·0.25 + 0.004; RMS: 2·0.25/√512 + 0.001 allows 0.5226 in one element.
    assert!(judged(&case, &[("output.y", off(&want, 9, 0.503))], Precision::Fp16).pass);
    assert!(!judged(&case, &[("output.y", off(&want, 9, 0.505))], Precision::Fp16).pass);
    // Everywhere a little: RMS 0.0231 is the limit.
    let all = |by: f32| want.iter().map(|v| v + by).collect::<Vec<_>>();
    assert!(judged(&case, &[("output.y", all(0.023))], Precision::Fp16).pass);
    assert!(!judged(&case, &[("output.y", all(0.0232))], Precision::Fp16).pass);
}

#[test]
fn small_tensors_are_judged_together_but_outputs_apart_from_gradients() {
    let (a, b) = (vec![1.0; 100], vec![1.0; 100]);
    let wanted =
        [("output.a", a.clone()), ("output.b", b.clone()), ("grad_input.x", vec![1.0; 100])];
    // PyTorch erred in `a` alone; `b` may use that allowance, the gradient may not.
    let twins =
        [("output.a", off(&a, 0, 0.25)), ("output.b", b.clone()), ("grad_input.x", vec![1.0; 100])];
    let case = case("unet2d", &wanted, &twins);
    let got = |output: f32, gradient: f32| {
        [
            ("output.a", a.clone()),
            ("output.b", off(&b, 5, output)),
            ("grad_input.x", off(&[1.0; 100], 5, gradient)),
        ]
    };
    assert!(judged(&case, &got(0.5, 0.0), Precision::Fp16).pass);
    let verdict = judged(&case, &got(0.0, 0.05), Precision::Fp16);
    let passes: Vec<_> = verdict.tensors.iter().map(|t| t.pass).collect();
    assert_eq!(passes, [Some(false), Some(true), Some(true)]);
    assert!(!judged(&case, &got(0.6, 0.0), Precision::Fp16).pass);
}

#[test]
fn without_twins_nothing_is_judged_and_the_case_fails() {
    let case = case("silu", &[("output.y", vec![1.0])], &[]);
    let verdict = judged(&case, &[("output.y", vec![1.0])], Precision::Fp16);
    assert_eq!((verdict.tensors[0].pass, verdict.pass), (None, false));
}

#[test]
fn the_first_intermediate_that_is_off_is_named() {
    let mut case = case("unet2d", &[("output.y", vec![1.0])], &[]);
    let values = wave(50);
    for path in ["conv_in", "mid_block", "conv_out"] {
        case.intermediates.push((path.into(), Tensor::f32([50], values.clone())));
    }
    let mut got: BTreeMap<String, Vec<f32>> =
        case.intermediates.iter().map(|(path, _)| (path.clone(), values.clone())).collect();
    let first = |got: &BTreeMap<String, Vec<f32>>| {
        first_divergence(&intermediates(&case, got)).map(str::to_string)
    };
    assert_eq!(first(&got), None);
    assert!(intermediates(&case, &got).iter().all(|verdict| verdict.pass.is_none()));
    got.insert("conv_out".into(), off(&values, 1, 1.0));
    assert_eq!(first(&got).as_deref(), Some("conv_out"));
    got.insert("mid_block".into(), vec![f32::NAN; 50]);
    assert_eq!(first(&got).as_deref(), Some("mid_block"));
    got.insert("conv_in".into(), vec![0.0]);
    assert_eq!(first(&got).as_deref(), Some("conv_in"));
}

#[test]
fn a_replay_must_give_what_is_wanted() {
    let case = case("silu", &[("output.y", vec![1.0])], &[]);
    let judge = |got: &[(&str, Vec<f32>)]| {
        let got = got.iter().map(|(name, values)| (name.to_string(), values.clone())).collect();
        super::judge(&case, &got, Precision::Fp32).unwrap_err().to_string()
    };
    assert!(judge(&[]).contains("no tensor `output.y`"));
    assert!(judge(&[("output.y", vec![1.0, 2.0])]).contains("2 elements"));
}

#[test]
fn places_are_told_as_indices() {
    assert!(coordinates(0, &[]).is_empty());
    assert_eq!(coordinates(23, &[2, 3, 4]), [1, 2, 3]);
    assert_eq!(coordinates(0, &[0, 4]), [0, 0]);
}
