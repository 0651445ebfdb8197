//! The steps around the network. Noise and what is made of it must have the same bits everywhere.

use super::{BOTH, check, compare, rounded};
use crate::device::cpu::Cpu;
use crate::ops::add_noise::{AddNoise, Shares};
use crate::ops::fourier_features::{FourierFeatures, FourierFeaturesGrad};
use crate::ops::preconditioning::{Preconditioning, PreconditioningGrad};
use crate::ops::sampler_update::{Noise, Row, SamplerUpdate};
use crate::ops::select_row::SelectRow;
use crate::ops::state::{ROW, SAMPLE, STEP, StepState};
use crate::ops::testing::{Host, run_on};
use crate::ops::timestep_embedding::TimestepEmbedding;

fn state() -> Host {
    let mut state = StepState::new(0x1234_5678_9abc_def0);
    state.words[STEP] = 7;
    state.words[ROW] = 1;
    state.words[SAMPLE] = 40;
    Host::bits(&[16], &state.words)
}

#[test]
pub(super) fn forward_process() {
    let (x0, noise) = (Host::random(&[3, 5, 7, 3], 1), Host::random(&[3, 5, 7, 3], 2));
    let table = Host::new(&[2, 2], vec![0.8, 0.6, 0.28, 0.96]);
    let timesteps = Host::new(&[3], vec![1.0, 0.0, 1.0]);
    let sigma = Host::new(&[3], vec![80.0, 0.002, 1.5]);
    for (draws, source) in [(None, &noise), (Some(99), &state())] {
        for velocity in [false, true] {
            let op = AddNoise { shares: Shares::Timesteps { velocity }, draws };
            check(&op, &[&x0, source, &table, &timesteps], 0.0);
        }
        check(&AddNoise { shares: Shares::Sigma, draws }, &[&x0, source, &sigma], 0.0);
    }
}

#[test]
pub(super) fn tables() {
    let table = Host::random(&[3, 4, 100], 1);
    check(&SelectRow::Current, &[&table, &state()], 0.0);
    let rows = Host::new(&[4], vec![2.0, 0.0, 2.0, 1.0]);
    check(&SelectRow::Each, &[&table, &rows], 0.0);
}

#[test]
pub(super) fn timesteps() {
    let t = Host::new(&[4], vec![0.0, 1.0, 999.0, 0.25]);
    for (dim, flip_sin_to_cos, freq_shift) in [(8, false, 1.0), (33, true, 0.0)] {
        let op = TimestepEmbedding { dim, flip_sin_to_cos, freq_shift, max_period: 1e4 };
        check(&op, &[&t], 1e-7);
    }
}

#[test]
pub(super) fn fourier_features() {
    for (batch, channels) in [(1, 7), (3, 301)] {
        let (x, dy) = (Host::random(&[batch], 1), Host::random(&[batch, channels], 2));
        let (freqs, phases) = (Host::random(&[channels], 3), Host::random(&[channels], 4));
        check(&FourierFeatures, &[&x, &freqs, &phases], 1e-6);
        check(&FourierFeaturesGrad, &[&dy, &x, &freqs, &phases], 1e-5);
    }
}

#[test]
pub(super) fn preconditioning() {
    let sigma = Host::new(&[3], vec![0.002, 1.5, 80.0]);
    let op = Preconditioning { sigma_data: 0.5, channels: 4 };
    check(&op, &[&sigma], 1e-6);
    let (row, noise) = (Host::random(&[3, 4], 1), Host::random(&[3], 2));
    let all = PreconditioningGrad { of: op, given: [true; 4] };
    check(&all, &[&row, &row, &row, &noise, &sigma], 1e-6);
    let one = PreconditioningGrad { of: op, given: [false, true, false, false] };
    check(&one, &[&row, &sigma], 1e-6);
}

#[test]
pub(super) fn sampler_updates() {
    let row = |sigma| Row {
        x0_from_x: 1.3,
        x0_from_output: -0.9,
        eps_from_x: 0.2,
        eps_from_output: 0.7,
        clip: 0.8,
        x: 0.5,
        x0: 0.4,
        eps: -0.3,
        history: 0.2,
        sigma,
        next_x: 0.6,
        next_x0: 1.0,
        next_eps: 0.1,
        next_history: -0.4,
        reserved: [0.0; 2],
    };
    let shape = [2, 5, 3, 3];
    let output = Host::random(&shape, 1);
    let seeds = Host::bits(&[2, 2], &[1, 0, 2, 5]);
    let given = Host::random(&[2, 2, 5, 3, 3], 2);
    // A row of factors for both images, and one each.
    let factors = [1, 2].map(|rows| [7, 8].map(|seed| Host::random(&[rows, 3], seed)));
    let cases = [(false, false), (true, false), (false, true), (true, true)];
    for ((history, pairs), factors) in cases
        .into_iter()
        .flat_map(|case| [None, Some(&factors[0]), Some(&factors[1])].map(|f| (case, f)))
    {
        let start = [3, 4, 5, 6].map(|seed| Host::random(&shape, seed));
        let tensors = (1 + usize::from(history)) * (1 + usize::from(pairs));
        let start = [&start[..tensors], &[state()]].concat();
        for (sigma, noise, extra) in [
            (0.0, Noise::None, None),
            (0.5, Noise::Philox { purpose: 3 }, Some(&seeds)),
            (0.5, Noise::Given, Some(&given)),
        ] {
            let op = SamplerUpdate { history, noise, pairs, preconditioned: factors.is_some() };
            let rest = Row { x: 1e-8, x0: -1e-8, next_x: 2e-8, ..Row::default() };
            let rows = match pairs {
                true => vec![row(1.0), rest, row(sigma), rest],
                false => vec![row(1.0), row(sigma)],
            };
            let table = Host::new(&[2, op.columns()], bytemuck::cast_slice(&rows).to_vec());
            // The network's output is float16 where that computes so.
            let half = rounded(&output);
            for output in [&output, &half] {
                let plain = Host::new(&output.ty.shape, output.data.clone());
                let mut inputs = vec![&plain, &table];
                inputs.extend(factors.into_iter().flatten());
                inputs.extend(extra);
                let want = run_on(&Cpu::new(2), &op, &inputs, &start).unwrap();
                inputs[0] = output;
                compare(&BOTH, &op, &inputs, &start, &want, 0.0);
            }
        }
    }
}
