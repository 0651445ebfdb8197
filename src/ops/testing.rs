//! A harness for tests of operations: a graph that executes each node as it is pushed, gradient
//! checks by central differences, and checks that results don't depend on threads or batch.

use super::{Build, GradArgs, Op, TensorId};
use crate::device::cpu::{Cpu, Io, Simd, Tensor, TensorMut};
use crate::device::{DType, Target, TensorType};
use crate::error::Result;
use std::sync::Arc;

/// A tensor on the host. Integers are bit patterns.
#[derive(Clone, Debug)]
pub struct Host {
    pub ty: TensorType,
    pub data: Vec<f32>,
}

impl Host {
    pub fn new(shape: &[usize], data: Vec<f32>) -> Host {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Host { ty: TensorType::f32(shape), data }
    }

    pub fn bits(shape: &[usize], data: &[u32]) -> Host {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        let data = data.iter().map(|&bits| f32::from_bits(bits)).collect();
        Host { ty: TensorType::u32(shape), data }
    }

    /// Values spread evenly over (−1, 1), repeatable: the upper bits of a Weyl sequence, scrambled.
    pub fn random(shape: &[usize], seed: u64) -> Host {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
        let data = (0..shape.iter().product())
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let mixed = (state ^ (state >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                ((mixed >> 40) as f32 + 0.5) / (1u64 << 23) as f32 - 1.0
            })
            .collect();
        Host::new(shape, data)
    }

    /// The samples `range` of a tensor whose first dimension is the batch.
    pub fn samples(&self, range: std::ops::Range<usize>) -> Host {
        let each = self.data.len() / self.ty.shape[0];
        let mut ty = self.ty.clone();
        ty.shape[0] = range.len();
        Host { ty, data: self.data[range.start * each..range.end * each].to_vec() }
    }
}

/// Runs one operation. Outputs and working memory start as NaN; an operation in place starts from
/// `state`.
pub fn run_on(cpu: &Cpu, op: &dyn Op, inputs: &[&Host], state: &[Host]) -> Result<Vec<Host>> {
    let types: Vec<&TensorType> = inputs.iter().map(|host| &host.ty).collect();
    let outputs = op.infer(&types)?;
    let nan = |ty: &TensorType| Host { ty: ty.clone(), data: vec![f32::NAN; ty.elements()] };
    let mut hosts: Vec<Host> = if op.in_place() {
        assert_eq!(outputs, state.iter().map(|host| host.ty.clone()).collect::<Vec<_>>());
        state.to_vec()
    } else {
        assert!(state.is_empty(), "only operations in place start from a state");
        outputs.iter().map(nan).collect()
    };
    let output_types: Vec<&TensorType> = outputs.iter().collect();
    let mut scratch = vec![f32::NAN; op.scratch(&Target::CPU, &types, &output_types)];
    let inputs: Vec<Tensor> =
        inputs.iter().map(|host| Tensor { shape: &host.ty.shape, data: &host.data }).collect();
    let mut views: Vec<TensorMut> = hosts
        .iter_mut()
        .map(|host| TensorMut { shape: &host.ty.shape, data: &mut host.data })
        .collect();
    op.run(cpu, Io { inputs: &inputs, outputs: &mut views, scratch: &mut scratch });
    drop(views);
    Ok(hosts)
}

/// [`run_on`] two threads, with no state.
pub fn run(op: &dyn Op, inputs: &[&Host]) -> Vec<Host> {
    run_on(&Cpu::new(2), op, inputs, &[]).unwrap()
}

/// A graph whose nodes are executed at once.
#[derive(Default)]
pub struct Eager {
    pub values: Vec<Host>,
}

impl Eager {
    pub fn add(&mut self, host: Host) -> TensorId {
        self.values.push(host);
        TensorId(self.values.len() - 1)
    }
}

impl Build for Eager {
    fn ty(&self, tensor: TensorId) -> &TensorType {
        &self.values[tensor.0].ty
    }

    fn push(&mut self, op: Arc<dyn Op>, inputs: &[TensorId]) -> Result<Vec<TensorId>> {
        let hosts: Vec<&Host> = inputs.iter().map(|id| &self.values[id.0]).collect();
        let outputs = run_on(&Cpu::new(2), &*op, &hosts, &[])?;
        Ok(outputs.into_iter().map(|host| self.add(host)).collect())
    }

    fn reshape(&mut self, tensor: TensorId, shape: &[usize]) -> Result<TensorId> {
        let mut host = self.values[tensor.0].clone();
        assert_eq!(shape.iter().product::<usize>(), host.ty.elements());
        host.ty.shape = shape.to_vec();
        Ok(self.add(host))
    }
}

/// Checks the gradient rule against central differences (fourth order, step 2⁻⁴) of
/// Σ rᵢ·yᵢ with random r, the sum in float64. `smooth` names the outputs that take part.
/// The bound is `tolerance` times the largest gradient of that input.
pub fn check_gradient(op: Arc<dyn Op>, inputs: &[Host], outputs: &[usize], tolerance: f64) {
    let references: Vec<&Host> = inputs.iter().collect();
    let values = run(&*op, &references);
    let weights: Vec<Host> = (values.iter().enumerate())
        .map(|(index, value)| Host::random(&value.ty.shape, 1000 + index as u64))
        .collect();
    let mut graph = Eager::default();
    let ids: Vec<TensorId> = inputs.iter().map(|host| graph.add(host.clone())).collect();
    let results = graph.push(op.clone(), &ids).unwrap();
    let upstream: Vec<Option<TensorId>> = (0..results.len())
        .map(|index| outputs.contains(&index).then(|| graph.add(weights[index].clone())))
        .collect();
    let needs: Vec<bool> = inputs.iter().map(|host| host.ty.dtype == DType::F32).collect();
    let args = GradArgs { inputs: &ids, outputs: &results, output_grads: &upstream, needs: &needs };
    let grads = op.grad(&mut graph, &args).unwrap();
    assert_eq!(grads.len(), inputs.len());
    let objective = |inputs: &[Host]| -> f64 {
        let references: Vec<&Host> = inputs.iter().collect();
        let values = run(&*op, &references);
        let products = outputs.iter().flat_map(|&index| {
            (values[index].data.iter())
                .zip(&weights[index].data)
                .map(|(&y, &r)| y as f64 * r as f64)
        });
        products.sum()
    };
    let step = 0.0625f32;
    for (which, grad) in grads.iter().enumerate() {
        let Some(grad) = grad else { continue };
        let grad = &graph.values[grad.0];
        assert_eq!(grad.ty, inputs[which].ty, "type of the gradient of input {which}");
        let largest = grad.data.iter().fold(0.0f64, |m, &g| m.max((g as f64).abs()));
        let elements = grad.data.len();
        let stride = elements.div_ceil(60);
        for element in (0..elements).step_by(stride) {
            let mut moved = inputs.to_vec();
            let mut at = |offset: f32| {
                moved[which].data[element] = inputs[which].data[element] + offset;
                objective(&moved)
            };
            let near = at(step) - at(-step);
            let far = at(2.0 * step) - at(-2.0 * step);
            let numeric = (8.0 * near - far) / (12.0 * step as f64);
            let error = (numeric - grad.data[element] as f64).abs();
            let bound = tolerance * largest.max(1e-3);
            assert!(
                error <= bound,
                "{}: input {which}, element {element}: {numeric} by differences, {} by the rule",
                op.name(),
                grad.data[element]
            );
        }
    }
}

/// Asserts that two results have the same bits.
pub fn assert_same_bits(a: &Host, b: &Host, what: &str) {
    assert_eq!(a.ty, b.ty, "{what}");
    for (index, (x, y)) in a.data.iter().zip(&b.data).enumerate() {
        assert_eq!(x.to_bits(), y.to_bits(), "{what}: element {index}: {x} and {y}");
    }
}

/// Asserts |got − want| ≤ bound for all elements, so that NaN fails.
pub fn assert_close(got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len());
    for (index, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (got - want).abs();
        assert!(error <= bound, "element {index}: {got}, expected {want}");
    }
}

/// Asserts that 1, 2, 3 and 7 threads and all SIMD levels give the same bits.
pub fn check_threads(op: &dyn Op, inputs: &[&Host]) {
    let one = run_on(&Cpu::new(1), op, inputs, &[]).unwrap();
    for threads in [2, 3, 7] {
        let many = run_on(&Cpu::new(threads), op, inputs, &[]).unwrap();
        for (a, b) in one.iter().zip(&many) {
            assert_same_bits(a, b, &format!("{} on {threads} threads", op.name()));
        }
    }
    for level in [Simd::Scalar, Simd::Avx2] {
        let other = run_on(&Cpu::with_simd(1, level), op, inputs, &[]).unwrap();
        for (a, b) in one.iter().zip(&other) {
            assert_same_bits(a, b, &format!("{} at level {level:?}", op.name()));
        }
    }
}

/// Asserts that each sample of a batch gets the bits that it gets alone. `batched` says which
/// inputs have a batch dimension, `outputs` which outputs.
pub fn check_batch(op: &dyn Op, inputs: &[&Host], batched: &[bool], outputs: &[usize]) {
    let batch = inputs[batched.iter().position(|&b| b).unwrap()].ty.shape[0];
    let together = run(op, inputs);
    for sample in 0..batch {
        let alone: Vec<Host> = (inputs.iter().zip(batched))
            .map(|(host, &b)| if b { host.samples(sample..sample + 1) } else { (*host).clone() })
            .collect();
        let alone = run(op, &alone.iter().collect::<Vec<_>>());
        for &output in outputs {
            let what = format!("{}: output {output} of sample {sample}", op.name());
            let part = together[output].samples(sample..sample + 1);
            assert_same_bits(&part, &alone[output], &what);
        }
    }
}
