use super::*;
use crate::device::cpu::Cpu;
use crate::ops::grad_norm::GradNorm;
use crate::ops::state::{BIAS1, BIAS2, EMA_DECAY, LEARNING_RATE, LOSS_SCALE, STEP, StepState};
use crate::ops::testing::{Host, assert_close, assert_same_bits, run, run_on};

const ADAM: AdamW = AdamW {
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-6,
    weight_decay: 0.1,
    decoupled: true,
    max_norm: None,
    zero_non_finite: false,
    ema: false,
};

const START: [f32; 4] = [0.5, -1.25, 2.0, 0.0];
const GRADS: [[f32; 4]; 3] =
    [[0.1, -0.2, 3.0, 0.0], [0.4, 0.05, -1.0, 1e-4], [-0.3, 0.6, 0.5, -2e-4]];

// PyTorch 2.15: `torch.optim.AdamW([w], lr=0.01, betas=(0.9, 0.99), eps=1e-6, weight_decay=0.1)` after
// three steps with GRADS from START; `torch.optim.Adam` with the same arguments; and AdamW with
// weight_decay=0 after `clip_grad_norm_([w], 1.0)` in each step.
const ADAMW: [f32; 4] = [0.47793967, -1.236421, 1.9759506, -0.0042064264];
const ADAM_L2: [f32; 4] = [0.47757655, -1.2334089, 1.9804068, -0.0016188733];
const CLIPPED: [f32; 4] = [0.48119754, -1.2449389, 1.9880761, -0.00397514];

fn state_of(step: usize, loss_scale: f32) -> Host {
    let mut state = StepState::new(0);
    let t = step as i32 + 1;
    state.words[STEP] = step as u32;
    state.set_float(LEARNING_RATE, 0.01);
    state.set_float(BIAS1, (1.0 - 0.9f64.powi(t)) as f32);
    state.set_float(BIAS2, (1.0 - 0.99f64.powi(t)) as f32);
    state.set_float(LOSS_SCALE, loss_scale);
    state.set_float(EMA_DECAY, 0.75);
    Host::bits(&[16], &state.words)
}

/// Three steps from START; returns what is updated in place.
fn three_steps(op: AdamW, loss_scale: f32) -> Vec<Host> {
    let zeros = || Host::new(&[4], vec![0.0; 4]);
    let mut values = vec![Host::new(&[4], START.to_vec()), zeros(), zeros()];
    if op.ema {
        values.push(Host::new(&[4], START.to_vec()));
    }
    values.push(zeros());
    for (step, grads) in GRADS.iter().enumerate() {
        let grads = Host::new(&[4], grads.iter().map(|g| g * loss_scale).collect());
        let norm = run(&GradNorm, &[&grads])[0].clone();
        *values.last_mut().unwrap() = state_of(step, loss_scale);
        values = run_on(&Cpu::new(2), &op, &[&grads, &norm], &values).unwrap();
    }
    values
}

#[test]
fn follows_pytorch() {
    assert_close(&three_steps(ADAM, 1.0)[0].data, &ADAMW, 2e-7);
    let l2 = AdamW { decoupled: false, ..ADAM };
    assert_close(&three_steps(l2, 1.0)[0].data, &ADAM_L2, 2e-7);
    let clipped = AdamW { weight_decay: 0.0, max_norm: Some(1.0), ..ADAM };
    assert_close(&three_steps(clipped, 1.0)[0].data, &CLIPPED, 2e-7);
    // A power of two as loss scale changes nothing, clipping included.
    assert_close(&three_steps(clipped, 1024.0)[0].data, &CLIPPED, 2e-7);
}

#[test]
fn the_average_follows_the_weights() {
    let values = three_steps(AdamW { ema: true, ..ADAM }, 1.0);
    assert_close(&values[0].data, &ADAMW, 2e-7);
    // The weights moved from 2.0 by about 0.01 a step, and so the average by about
    // 0.01·(0.25 + 0.4375 + 0.578).
    let lag = (2.0 - values[3].data[2]) / (2.0 - values[0].data[2]);
    assert!((0.3..0.6).contains(&lag), "{lag}");
}

#[test]
fn non_finite_gradients_skip_the_step() {
    let host = |seed| Host::random(&[4], seed);
    let before = vec![host(1), host(2), host(3), state_of(41, 1.0)];
    let grads = Host::new(&[4], vec![0.0, f32::NAN, 0.0, 0.0]);
    let norm = run(&GradNorm, &[&grads])[0].clone();
    let mut values = before.clone();
    for skipped in 1..=2 {
        values = run_on(&Cpu::new(2), &ADAM, &[&grads, &norm], &values).unwrap();
        for (a, b) in before.iter().zip(&values).take(3) {
            assert_same_bits(a, b, "skipped");
        }
        let words: Vec<u32> = values[3].data.iter().map(|x| x.to_bits()).collect();
        assert_eq!((words[state::SKIPPED], words[state::FIRST_BAD]), (skipped, 42));
        values[3].data[STEP] = f32::from_bits(50);
    }
}

#[test]
fn non_finite_gradients_become_zero_where_asked_for() {
    let host = |seed| Host::random(&[4], seed);
    let mut v = host(3);
    v.data.iter_mut().for_each(|v| *v = v.abs());
    let before = [host(1), host(2), v, state_of(3, 1.0)];
    let step = |op: AdamW, grads: [f32; 4]| {
        let grads = Host::new(&[4], grads.to_vec());
        let norm = run(&GradNorm, &[&grads])[0].clone();
        run_on(&Cpu::new(2), &op, &[&grads, &norm], &before).unwrap()
    };
    let zeroing = AdamW { zero_non_finite: true, ..ADAM };
    let bad = step(zeroing, [0.5, f32::NAN, f32::NEG_INFINITY, -0.25]);
    let good = step(ADAM, [0.5, 0.0, 0.0, -0.25]);
    for (a, b) in bad.iter().zip(&good) {
        assert_same_bits(a, b, "zeroed");
    }
}

#[test]
fn threads_do_not_matter() {
    let host = |seed| Host::random(&[50_001], seed);
    let mut v = host(3);
    v.data.iter_mut().for_each(|v| *v = v.abs());
    let op = AdamW { ema: true, max_norm: Some(1.0), ..ADAM };
    let (grads, norm) = (host(5), Host::new(&[2], vec![100.0, 1.0]));
    let state = [host(1), host(2), v, host(4), state_of(3, 1.0)];
    let one = run_on(&Cpu::new(1), &op, &[&grads, &norm], &state).unwrap();
    for threads in [2, 5] {
        let many = run_on(&Cpu::new(threads), &op, &[&grads, &norm], &state).unwrap();
        for (a, b) in one.iter().zip(&many) {
            assert_same_bits(a, b, "threads");
        }
    }
}
