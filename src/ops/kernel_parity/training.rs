//! The loss, the norm of the gradients, and what an optimizer step does.

use super::{check, check_state};
use crate::device::TensorType;
use crate::ops::Op;
use crate::ops::accumulate::Accumulate;
use crate::ops::adamw::AdamW;
use crate::ops::edm_loss::{EdmLoss, EdmLossGrad};
use crate::ops::fill::Fill;
use crate::ops::grad_norm::GradNorm;
use crate::ops::mse_loss::{MseLoss, MseLossGrad};
use crate::ops::state::{BIAS1, BIAS2, EMA_DECAY, LEARNING_RATE, LOSS_SCALE, STEP, StepState};
use crate::ops::testing::{Host, run};

#[test]
pub(super) fn loss() {
    for shape in [&[3, 5, 7, 3][..], &[2, 90, 80, 3]] {
        let (x, target) = (Host::random(shape, 1), Host::random(shape, 2));
        let weights = Host::random(&shape[..1], 3);
        let dloss = Host::new(&[1], vec![1.5]);
        check(&MseLoss, &[&x, &target], 1e-6);
        check(&MseLoss, &[&x, &target, &weights], 1e-5);
        check(&MseLossGrad, &[&dloss, &x, &target], 0.0);
        check(&MseLossGrad, &[&dloss, &x, &target, &weights], 0.0);
    }
}

#[test]
pub(super) fn edm_loss() {
    let mut shapes = vec![&[3, 5, 7, 3][..], &[2, 90, 80, 3], &[300, 5]];
    // More slices than threads that add those of a sample: too many elements to watch each access.
    if !cfg!(feature = "checked") {
        shapes.push(&[130, 16_400]);
    }
    for shape in shapes {
        let (x, target) = (Host::random(shape, 1), Host::random(shape, 2));
        let (u, dloss) = (Host::random(&[shape[0], 1], 3), Host::new(&[1], vec![1.5]));
        let sigma = Host::new(&[shape[0]], (1..=shape[0]).map(|s| s as f32).collect());
        let op = EdmLoss { sigma_data: 0.5 };
        check(&op, &[&x, &target, &u, &sigma], 1e-6);
        let squares = run(&op, &[&x, &target, &u, &sigma]).remove(1);
        let gradient = EdmLossGrad { sigma_data: 0.5 };
        check(&gradient, &[&dloss, &x, &target, &u, &sigma, &squares], 1e-6);
    }
}

#[test]
pub(super) fn norm_of_gradients() {
    check(&GradNorm, &[&Host::random(&[40_003], 1)], 1e-6);
    check(&GradNorm, &[&Host::random(&[5], 1)], 1e-6);
    let mut grads = Host::random(&[40_003], 1);
    for bad in [f32::NAN, f32::INFINITY] {
        grads.data[40_000] = bad;
        for target in &super::BOTH {
            let run = |op: &dyn Op, inputs: &[&Host]| {
                super::emulate(target, 1, op, inputs, &[]).remove(0).data
            };
            assert_eq!(run(&GradNorm, &[&grads])[1], 0.0);
            let rows = Host { ty: TensorType::f32([1, 40_003]), ..grads.clone() };
            let zeros = Host { data: vec![0.0; 40_003], ..rows.clone() };
            assert!(!run(&MseLoss, &[&rows, &zeros])[0].is_finite());
        }
    }
}

fn state(loss_scale: f32) -> Host {
    let mut state = StepState::new(0);
    state.words[STEP] = 4;
    state.set_float(LEARNING_RATE, 0.01);
    state.set_float(BIAS1, 0.271);
    state.set_float(BIAS2, 0.0297);
    state.set_float(LOSS_SCALE, loss_scale);
    state.set_float(EMA_DECAY, 0.75);
    Host::bits(&[16], &state.words)
}

#[test]
pub(super) fn optimizer_step() {
    let shape = [1003];
    let grads = Host::random(&shape, 1);
    let norm = run(&GradNorm, &[&grads]).remove(0);
    let mut v = Host::random(&shape, 4);
    v.data.iter_mut().for_each(|v| *v = v.abs());
    for ema in [false, true] {
        for (decoupled, max_norm, loss_scale) in
            [(true, None, 1.0), (false, Some(1.0), 1.0), (true, Some(0.5), 128.0)]
        {
            let op = AdamW {
                beta1: 0.9,
                beta2: 0.99,
                eps: 1e-6,
                weight_decay: 0.1,
                decoupled,
                max_norm,
                zero_non_finite: false,
                ema,
            };
            let mut start = vec![Host::random(&shape, 2), Host::random(&shape, 3), v.clone()];
            if ema {
                start.push(Host::random(&shape, 5));
            }
            start.push(state(loss_scale));
            check_state(&op, &[&grads, &norm], &start, 0.0);
            // Gradients that aren't finite change two words of the state and nothing else.
            let bad = Host::new(&[2], vec![f32::NAN, 0.0]);
            check_state(&op, &[&grads, &bad], &start, 0.0);
            // Or they count as zero.
            let mut damaged = grads.clone();
            damaged.data[..3].copy_from_slice(&[f32::NAN, f32::INFINITY, f32::NEG_INFINITY]);
            let op = AdamW { zero_non_finite: true, max_norm: None, ..op };
            check_state(&op, &[&damaged, &bad], &start, 0.0);
        }
    }
}

#[test]
pub(super) fn averages_and_sums() {
    let (x, sum) = (Host::random(&[1003], 1), Host::random(&[1003], 2));
    check_state(
        &Accumulate::Average { decay: EMA_DECAY },
        &[&x, &state(1.0)],
        std::slice::from_ref(&sum),
        0.0,
    );
    check_state(&Accumulate::Sum { scale: 0.3 }, &[&x], std::slice::from_ref(&sum), 0.0);
    check(&Fill { value: 1.5, shape: vec![7, 43] }, &[], 0.0);
}
