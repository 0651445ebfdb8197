//! Every kernel against the CPU's form of its operation: on odd shapes, for both code paths, with
//! several orders of blocks and lanes that must give the same bits.

use super::testing::{Host, assert_same_bits, run_on};
use super::{LaunchArgs, Op};
use crate::device::cpu::Cpu;
use crate::device::emulated::Emulated;
use crate::device::kernels::KERNELS;
use crate::device::{
    DType, Device, KernelWork, Launch, Program, Space, Target, TensorType, View, Work,
};
use crate::graph::Engine;
use half::f16;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

mod attention;
mod convolution;
mod diffusion;
mod elementwise;
mod fused;
mod moments;
mod narrow;
mod normalisation;
mod patches;
mod shortcuts;
mod small_convolutions;
mod training;

/// Orders of blocks and lanes: two, or as many as `CYANEA_ORDERS` says. The run that leaves out barriers asks for more.
fn orders() -> u64 {
    let wanted = std::env::var("CYANEA_ORDERS").map(|orders| orders.parse());
    wanted.map_or(2, |orders| orders.expect("CYANEA_ORDERS is a number"))
}

/// A chip of either code path.
const BOTH: [Target; 2] = [Target::V100, Target::H100];

/// The convolutions that an engine's programs launch.
fn convolutions(engine: &Engine) -> Vec<&KernelWork> {
    let launches = engine.plan().programs.iter().flat_map(|program| &program.launches);
    let kernels = launches.filter_map(|launch| match &launch.work {
        Work::Kernel(work) => Some(work),
        _ => None,
    });
    kernels
        .filter(|work| work.kernel.starts_with("conv2d") && !work.kernel.contains("pack"))
        .collect()
}

thread_local! {
    /// Kernels that the test of this thread has launched.
    static LAUNCHED: RefCell<BTreeSet<String>> = const { RefCell::new(BTreeSet::new()) };
}

/// Memory that a test lays out: everything persistent, so that it can be read back.
#[derive(Default)]
struct Memory {
    bytes: usize,
}

impl Memory {
    fn place(&mut self, ty: &TensorType) -> View {
        let view = View { space: Space::Persistent, offset: self.bytes, ty: ty.clone() };
        // An odd number of lines between tensors keeps them from being neighbours by chance.
        self.bytes += ty.bytes().next_multiple_of(64) + 64;
        view
    }
}

/// Runs one operation's kernels. Outputs and working memory start as NaN; an operation in place
/// starts from `state`.
fn emulate(target: &Target, seed: u64, op: &dyn Op, inputs: &[&Host], state: &[Host]) -> Vec<Host> {
    let types: Vec<&TensorType> = inputs.iter().map(|host| &host.ty).collect();
    let outputs = op.infer(&types).unwrap();
    let output_types: Vec<&TensorType> = outputs.iter().collect();
    let mut memory = Memory::default();
    let input_views: Vec<View> = types.iter().map(|ty| memory.place(ty)).collect();
    let output_views: Vec<View> = outputs.iter().map(|ty| memory.place(ty)).collect();
    let elements = op.scratch(target, &types, &output_types);
    let scratch = (elements > 0).then(|| View {
        space: Space::Arena,
        offset: 0,
        ty: TensorType::f32([elements]),
    });
    let count = op.tickets(target, &types, &output_types);
    let tickets = (count > 0).then(|| memory.place(&TensorType::u32([count])));
    let args = LaunchArgs {
        target,
        inputs: &input_views,
        outputs: &output_views,
        scratch: scratch.as_ref(),
        tickets: tickets.as_ref(),
    };
    let launches: Vec<Launch> = (op.launch(&args).unwrap().into_iter())
        .map(|work| Launch {
            operation: op.name(),
            label: op.name().into(),
            flops: 0,
            bytes: 0,
            work: Work::Kernel(work),
        })
        .collect();
    let count = launches.len() as u64;
    assert!(count > 0, "{} launches nothing", op.name());
    let program = Program {
        name: "test".into(),
        target: target.clone(),
        launches,
        arena_bytes: 4 * elements,
    };
    let device = Emulated::with_seed(target.clone(), seed).unwrap();
    let mut session = device.open(memory.bytes, program.arena_bytes).unwrap();
    for (view, host) in input_views.iter().zip(inputs) {
        session.write(view.offset, &bytes(host)).unwrap();
    }
    let mut hosts: Vec<Host> = outputs
        .iter()
        .map(|ty| Host { ty: ty.clone(), data: vec![f32::NAN; ty.elements()] })
        .collect();
    if op.in_place() {
        hosts = state.to_vec();
    }
    for (view, host) in output_views.iter().zip(&hosts) {
        session.write(view.offset, &bytes(host)).unwrap();
    }
    let loaded = session.load(Arc::new(program)).unwrap();
    session.run(loaded).unwrap();
    assert_eq!(session.launches(), count);
    LAUNCHED.with_borrow_mut(|launched| launched.extend(session.kernels()));
    for (view, host) in output_views.iter().zip(&mut hosts) {
        let mut read = vec![0u8; view.ty.bytes()];
        session.read(view.offset, &mut read).unwrap();
        host.data = match host.ty.dtype {
            DType::F16 => {
                read.chunks(2).map(|b| f16::from_ne_bytes([b[0], b[1]]).to_f32()).collect()
            }
            _ => bytemuck::pod_collect_to_vec(&read),
        };
    }
    for (view, host) in input_views.iter().zip(inputs) {
        let mut after = vec![0u8; view.ty.bytes()];
        session.read(view.offset, &mut after).unwrap();
        assert!(after == bytes(host), "an input was changed");
    }
    if let Some(view) = tickets {
        let mut after = vec![0u8; view.ty.bytes()];
        session.read(view.offset, &mut after).unwrap();
        assert!(after.iter().all(|&byte| byte == 0), "{} leaves tickets behind", op.name());
    }
    hosts
}

/// A tensor as it lies in memory.
fn bytes(host: &Host) -> Vec<u8> {
    match host.ty.dtype {
        DType::F16 => host.data.iter().flat_map(|&x| f16::from_f32(x).to_ne_bytes()).collect(),
        _ => bytemuck::cast_slice(&host.data).to_vec(),
    }
}

/// The host's values as float16 can hold them.
fn rounded(host: &Host) -> Host {
    let data = host.data.iter().map(|&x| f16::from_f32(x).to_f32()).collect();
    Host { ty: host.ty.with_dtype(DType::F16), data }
}

/// What operations with a float16 form give for inputs that float16 holds exactly, against the CPU on
/// the same values; results that are float16 may be rounded once more.
fn check_half(targets: &[Target], op: &dyn Op, inputs: &[&Host], tolerance: f32) {
    let halves: Vec<TensorType> = inputs.iter().map(|host| rounded(host).ty).collect();
    let half = op.half(&halves.iter().collect::<Vec<_>>());
    if !half.contains(&true) {
        return;
    }
    let marked = |index: usize| half.get(index) == Some(&true);
    let typed: Vec<Host> = (inputs.iter().enumerate())
        .map(|(index, host)| if marked(index) { rounded(host) } else { (*host).clone() })
        .collect();
    let plain: Vec<Host> = typed
        .iter()
        .zip(inputs)
        .map(|(host, given)| Host { ty: given.ty.clone(), data: host.data.clone() })
        .collect();
    let mut want = run_on(&Cpu::new(2), op, &plain.iter().collect::<Vec<_>>(), &[]).unwrap();
    let typed: Vec<&Host> = typed.iter().collect();
    let types: Vec<&TensorType> = typed.iter().map(|host| &host.ty).collect();
    for (want, ty) in want.iter_mut().zip(op.infer(&types).unwrap()) {
        if ty.dtype == DType::F16 {
            *want = rounded(want);
        }
    }
    let rounding = if tolerance == 0.0 { 0.0 } else { 1e-3 };
    compare(targets, op, &typed, &[], &want, tolerance + rounding);
}

/// Runs the form of an operation that the target wants, whose `prepare` operations run first.
fn emulate_lowered(
    target: &Target,
    seed: u64,
    op: &dyn Op,
    inputs: &[&Host],
    state: &[Host],
) -> Vec<Host> {
    let types: Vec<&TensorType> = inputs.iter().map(|host| &host.ty).collect();
    let Some(lowered) = op.lower(target, &types) else {
        return emulate(target, seed, op, inputs, state);
    };
    let mut prepared: Vec<Host> = inputs.iter().map(|&host| host.clone()).collect();
    for (index, prepare) in &lowered.prepare {
        prepared[*index] = emulate(target, 1, &**prepare, &[inputs[*index]], &[]).remove(0);
    }
    emulate(target, seed, &*lowered.op, &prepared.iter().collect::<Vec<_>>(), state)
}

/// Compares kernels and CPU: each element within `tolerance` times the largest magnitude of its
/// tensor (with 0: the same bits), in a form in which NaN fails.
fn check_state(op: &dyn Op, inputs: &[&Host], state: &[Host], tolerance: f32) {
    let want = run_on(&Cpu::new(2), op, inputs, state).unwrap();
    compare(&BOTH, op, inputs, state, &want, tolerance);
    if state.is_empty() {
        check_half(&BOTH, op, inputs, tolerance);
    }
}

/// Runs the kernels on these targets and in several orders, and compares with `want`.
fn compare(
    targets: &[Target],
    op: &dyn Op,
    inputs: &[&Host],
    state: &[Host],
    want: &[Host],
    tolerance: f32,
) {
    for target in targets {
        compare_on(target, op, inputs, state, want, tolerance);
    }
}

/// As [`compare`], on one target.
fn compare_on(
    target: &Target,
    op: &dyn Op,
    inputs: &[&Host],
    state: &[Host],
    want: &[Host],
    tolerance: f32,
) {
    let got = in_all_orders(target, op, inputs, state);
    assert_near(&format!("{} on {}", op.name(), target.name), &got, want, tolerance);
}

/// What `op` gives on a target, with the same bits in all orders of lanes.
fn in_all_orders(target: &Target, op: &dyn Op, inputs: &[&Host], state: &[Host]) -> Vec<Host> {
    let got = emulate_lowered(target, 1, op, inputs, state);
    for n in 2..=orders() {
        let other = emulate_lowered(target, n, op, inputs, state);
        for (index, (got, other)) in got.iter().zip(&other).enumerate() {
            let what = format!("output {index} of {} on {} in order {n}", op.name(), target.name);
            assert_same_bits(got, other, &what);
        }
    }
    got
}

/// Each output within `tolerance` of the largest value of what is wanted; 0 asks for its bits.
fn assert_near(of: &str, got: &[Host], want: &[Host], tolerance: f32) {
    for (index, got) in got.iter().enumerate() {
        let what = format!("output {index} of {of}");
        let bits = |host: &Host| host.data.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        if tolerance == 0.0 {
            assert!(bits(got) == bits(&want[index]), "{what} has other bits than cpu");
            continue;
        }
        let largest = want[index].data.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        let bound = tolerance * largest.max(1e-3);
        for (at, (got, want)) in got.data.iter().zip(&want[index].data).enumerate() {
            assert!((got - want).abs() <= bound, "{what}, element {at}: {got}, cpu {want}");
        }
    }
}

fn check(op: &dyn Op, inputs: &[&Host], tolerance: f32) {
    check_state(op, inputs, &[], tolerance);
}

/// As [`check`], on chips of so many multiprocessors: few large tiles occupy a small one.
fn check_on_chips_of(multiprocessors: u32, op: &dyn Op, inputs: &[&Host], tolerance: f32) {
    let targets = BOTH.map(|full| Target { multiprocessors, ..full });
    let want = run_on(&Cpu::new(2), op, inputs, &[]).unwrap();
    compare(&targets, op, inputs, &[], &want, tolerance);
    check_half(&targets, op, inputs, tolerance);
}

/// That this test has run these kernels in this precision.
fn assert_launched(precision: &str, kernels: &[&str]) {
    for kernel in kernels {
        let name = format!("{kernel}_nhwc_{precision}");
        let launched = LAUNCHED.with_borrow(|launched| launched.contains(&name));
        assert!(launched, "{name} has not run: the case does not reach it");
    }
}

/// Every kernel of the manifest runs in one of the comparisons above.
#[test]
fn every_kernel_is_compared() {
    attention::narrow_heads();
    attention::wide_heads();
    attention::of_one_tensor();
    convolution::plain_convolutions_and_gradients();
    convolution::many_tiles();
    convolution::weight_gradients();
    convolution::rich_weight_gradients();
    diffusion::forward_process();
    diffusion::tables();
    diffusion::timesteps();
    diffusion::fourier_features();
    diffusion::preconditioning();
    diffusion::sampler_updates();
    elementwise::add_and_mul();
    elementwise::casts();
    elementwise::channels();
    elementwise::copies();
    elementwise::dropout();
    elementwise::linear_layers_of_rows();
    elementwise::preconditioned();
    elementwise::resampling();
    elementwise::scale_add();
    elementwise::sums_over_pixels();
    small_convolutions::large_tiles();
    small_convolutions::small_tiles();
    small_convolutions::tiles_of_80_pixels();
    small_convolutions::tiles_of_blocks_alone();
    normalisation::activations();
    narrow::narrow_convolutions();
    patches::patches();
    normalisation::group_norm();
    normalisation::group_norm_gradient();
    normalisation::group_norm_of_moments();
    normalisation::pixel_norm();
    normalisation::weight_norm();
    training::loss();
    training::edm_loss();
    training::norm_of_gradients();
    training::optimizer_step();
    training::averages_and_sums();
    let launched = LAUNCHED.take();
    let missing: Vec<_> =
        KERNELS.iter().map(|kernel| kernel.name).filter(|&name| !launched.contains(name)).collect();
    assert!(missing.is_empty(), "no comparison above launches {missing:?}");
}
