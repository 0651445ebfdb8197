use super::*;
use crate::device::cpu::Cpu;
use crate::ops::noise::normal::Stream;
use crate::ops::state::{ROW, StepState};
use crate::ops::testing::{Host, assert_close, assert_same_bits, run, run_on};

const PHILOX: Noise = Noise::Philox { purpose: 77 };

fn row(seed: u64) -> Row {
    let mut row: Row = *bytemuck::from_bytes(bytemuck::cast_slice(&Host::random(&[16], seed).data));
    row.clip = 0.5;
    row
}

fn table(rows: &[Row]) -> Host {
    Host::new(&[rows.len(), COLUMNS], bytemuck::cast_slice(rows).to_vec())
}

fn at_row(row: u32) -> Host {
    let mut state = StepState::new(3);
    state.words[ROW] = row;
    Host::bits(&[16], &state.words)
}

/// What `given` becomes in row `row`, which counts on.
fn update(
    threads: usize,
    op: SamplerUpdate,
    inputs: &[&Host],
    given: &[Host],
    row: u32,
) -> Vec<Host> {
    let given = [given, &[at_row(row)]].concat();
    let mut got = run_on(&Cpu::new(threads), &op, inputs, &given).unwrap();
    let state = got.pop().expect("the state is the last");
    assert_same_bits(&state, &at_row(row + 1), "the state");
    got
}

#[test]
fn follows_its_row() {
    let shape = [2, 3, 5, 4];
    let (x, h, o) = (Host::random(&shape, 1), Host::random(&shape, 2), Host::random(&shape, 3));
    let rows = [row(4), row(5)];
    let noise = Host::random(&[2, 2, 3, 5, 4], 6);
    let op =
        SamplerUpdate { history: true, noise: Noise::Given, pairs: false, preconditioned: false };
    let inputs = [&o, &table(&rows), &noise];
    let got = update(2, op, &inputs, &[x.clone(), h.clone()], 1);
    let r = rows[1];
    for i in 0..x.data.len() {
        let (x, h, o, z) = (x.data[i], h.data[i], o.data[i], noise.data[120 + i]);
        let x0 = (r.x0_from_x * x + r.x0_from_output * o).clamp(-0.5, 0.5);
        let eps = r.eps_from_x * x + r.eps_from_output * o;
        let new = r.x * x + r.x0 * x0 + r.eps * eps + r.history * h + r.sigma * z;
        let next = r.next_x * x + r.next_x0 * x0 + r.next_eps * eps + r.next_history * h;
        assert_close(&[got[0].data[i], got[1].data[i]], &[new, next], 5e-7);
    }
}

#[test]
fn a_preconditioned_output_is_that_of_its_own_operation() {
    let shape = [2, 70, 90, 4];
    let (x, h, o) = (Host::random(&shape, 1), Host::random(&shape, 2), Host::random(&shape, 3));
    let seeds = Host::bits(&[2, 2], &[1, 0, 2, 0]);
    let (table, given) = (table(&[row(4)]), [x.clone(), h]);
    let op = SamplerUpdate { history: true, noise: PHILOX, pairs: false, preconditioned: false };
    for rows in [1, 2] {
        let [c_skip, c_out] = [5, 6].map(|seed| Host::random(&[rows, 4], seed));
        let whole = &run(&Preconditioned, &[&x, &o, &c_skip, &c_out])[0];
        let want = update(2, op, &[whole, &table, &seeds], &given, 0);
        let inside = SamplerUpdate { preconditioned: true, ..op };
        let got = update(2, inside, &[&o, &table, &c_skip, &c_out, &seeds], &given, 0);
        for (got, want) in got.iter().zip(&want) {
            assert_same_bits(got, want, "preconditioned");
        }
    }
}

/// Each value and coefficient with a second float32 behind it, a millionth of the first.
#[test]
fn pairs_follow_their_row_in_float64() {
    let shape = [2, 3, 5, 4];
    let with_rest = |seed| {
        let high = Host::random(&shape, seed);
        let rest = high.data.iter().rev().map(|v| 1e-8 * v).collect();
        [Host::new(&shape, rest), high]
    };
    let ([x_rest, x], [h_rest, h]) = (with_rest(1), with_rest(2));
    let (o, noise) = (Host::random(&shape, 3), Host::random(&[1, 2, 3, 5, 4], 6));
    let high = row(4);
    let mut low = row(5);
    bytemuck::cast_slice_mut(std::slice::from_mut(&mut low))
        .iter_mut()
        .for_each(|v: &mut f32| *v *= 1e-8);
    let rows = Host::new(&[1, 32], bytemuck::cast_slice(&[high, low]).to_vec());
    let op =
        SamplerUpdate { history: true, noise: Noise::Given, pairs: true, preconditioned: false };
    let state = [x.clone(), x_rest.clone(), h.clone(), h_rest.clone()];
    let got = update(2, op, &[&o, &rows, &noise], &state, 0);
    let sum = |a: f32, b: f32| f64::from(a) + f64::from(b);
    for i in 0..x.data.len() {
        let (old, last) = (sum(x.data[i], x_rest.data[i]), sum(h.data[i], h_rest.data[i]));
        let (o, z) = (f64::from(o.data[i]), f64::from(noise.data[i]));
        let c = |column: fn(&Row) -> f32| sum(column(&high), column(&low));
        let x0 = (c(|r| r.x0_from_x) * old + c(|r| r.x0_from_output) * o).clamp(-0.5, 0.5);
        let eps = c(|r| r.eps_from_x) * old + c(|r| r.eps_from_output) * o;
        let new = c(|r| r.x) * old
            + c(|r| r.x0) * x0
            + c(|r| r.eps) * eps
            + c(|r| r.history) * last
            + c(|r| r.sigma) * z;
        let next = c(|r| r.next_x) * old
            + c(|r| r.next_x0) * x0
            + c(|r| r.next_eps) * eps
            + c(|r| r.next_history) * last;
        for (high, want) in [(0, new), (2, next)] {
            let error = (sum(got[high].data[i], got[high + 1].data[i]) - want).abs();
            assert!(error <= 1e-13, "{error}");
        }
    }
}

#[test]
fn noise_has_one_stream_an_image() {
    let x = Host::random(&[2, 4, 4, 3], 1);
    // x′ = z alone.
    let only_noise = Row { sigma: 1.0, clip: f32::INFINITY, ..Row::default() };
    let op = SamplerUpdate { history: false, noise: PHILOX, pairs: false, preconditioned: false };
    let rows = table(&[only_noise; 8]);
    let seeds = Host::bits(&[2, 2], &[11, 12, 13, 14]);
    let got = update(2, op, &[&x, &rows, &seeds], std::slice::from_ref(&x), 7);
    for (sample, key) in [[11, 12], [13, 14]].into_iter().enumerate() {
        let stream = Stream { key, purpose: 77, step: 7, sample: 0 };
        // Element 38 of NCHW: channel 2, pixel 6.
        assert_eq!(got[0].data[sample * 48 + 6 * 3 + 2], stream.quad(9)[2]);
    }
}

#[test]
fn neither_threads_nor_batch_matter() {
    let shape = [3, 90, 80, 3];
    let (x, h, o) = (Host::random(&shape, 1), Host::random(&shape, 2), Host::random(&shape, 3));
    let seeds = Host::bits(&[3, 2], &[1, 0, 2, 0, 3, 0]);
    let op = SamplerUpdate { history: true, noise: PHILOX, pairs: false, preconditioned: false };
    let rows = table(&[row(1)]);
    let run = |threads, range: std::ops::Range<usize>| {
        let part = |host: &Host| host.samples(range.clone());
        let inputs = [&part(&o), &rows, &part(&seeds)];
        update(threads, op, &inputs, &[part(&x), part(&h)], 0)
    };
    let all = run(1, 0..3);
    for threads in [2, 5] {
        let other = run(threads, 0..3);
        assert_same_bits(&all[0], &other[0], "threads");
        assert_same_bits(&all[1], &other[1], "threads");
    }
    for sample in 0..3 {
        let alone = run(2, sample..sample + 1);
        assert_same_bits(&all[0].samples(sample..sample + 1), &alone[0], "batch");
    }
}

#[test]
fn nan_is_not_clipped_away() {
    let x = Host::new(&[1, 1, 1], vec![f32::NAN]);
    let op =
        SamplerUpdate { history: false, noise: Noise::None, pairs: false, preconditioned: false };
    let take_x0 = Row { x0_from_x: 1.0, clip: 1.0, x0: 1.0, ..Row::default() };
    let o = Host::new(&[1, 1, 1], vec![0.0]);
    let got = update(1, op, &[&o, &table(&[take_x0])], &[x], 0);
    assert!(got[0].data[0].is_nan());
}

#[test]
fn bad_shapes_are_refused() {
    let (x, t) = (TensorType::f32([2, 4]), TensorType::f32([3, 16]));
    let op = SamplerUpdate { history: true, noise: PHILOX, pairs: false, preconditioned: false };
    let seeds = TensorType::u32([2, 2]);
    let outputs = op.infer(&[&x, &t, &seeds]).unwrap();
    assert_eq!(outputs, [x.clone(), x.clone(), state::ty()]);
    assert_eq!(op.infer(&[&x.with_dtype(DType::F16), &t, &seeds]).unwrap(), outputs);
    assert!(op.infer(&[&x, &t]).is_err());
    assert!(op.infer(&[&x]).is_err());
    assert!(op.infer(&[&x, &TensorType::f32([3, 12]), &seeds]).is_err());
    assert!(op.infer(&[&x, &t, &TensorType::u32([1, 2])]).is_err());
    let inside = SamplerUpdate { preconditioned: true, ..op };
    let row = TensorType::f32([2, 4]);
    assert_eq!(inside.infer(&[&x, &t, &row, &row, &seeds]).unwrap(), outputs);
    assert!(inside.infer(&[&x, &t, &seeds]).is_err());
    assert!(inside.infer(&[&x, &t, &row, &TensorType::f32([3, 4]), &seeds]).is_err());
    let given = SamplerUpdate { noise: Noise::Given, ..op };
    assert!(given.infer(&[&x, &t, &TensorType::f32([2, 2, 4])]).is_err());
}
