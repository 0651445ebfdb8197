//! How a case's tensors become a graph's slots and back: layouts, gradients, intermediates.

use crate::device::{Device, TensorType};
use crate::error::{Error, Result};
use crate::formats::diffusers::canonical_name;
use crate::formats::reference_case::ReferenceCase;
use crate::formats::tensors::Tensor;
use crate::graph::{Build, Engine, Graph, Rate, Region, TensorId, autodiff};
use std::collections::BTreeMap;

/// How PyTorch lays a tensor out and how the engine does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrangement {
    /// The same in both.
    Same,
    /// `[B, C, …]` in PyTorch, `[B, …, C]` here.
    ChannelsLast,
    /// `[B, heads, N, D]` in PyTorch, `[B, N, heads·D]` here.
    Heads,
}

impl Arrangement {
    /// The engine's shape of a tensor that PyTorch has as `shape`.
    fn shape(self, shape: &[usize]) -> Vec<usize> {
        match (self, shape) {
            (Arrangement::ChannelsLast, [b, c, rest @ ..]) => {
                let mut out = vec![*b];
                out.extend_from_slice(rest);
                out.push(*c);
                out
            }
            (Arrangement::Heads, [b, heads, n, d]) => vec![*b, *n, heads * d],
            _ => shape.to_vec(),
        }
    }

    /// From PyTorch's order of elements to the engine's; `shape` is PyTorch's.
    fn forth(self, values: &[f32], shape: &[usize]) -> Vec<f32> {
        let [outer, first, second, inner] = self.blocks(shape);
        transpose(values, outer, first, second, inner)
    }

    /// The way back of [`Arrangement::forth`].
    fn back(self, values: &[f32], shape: &[usize]) -> Vec<f32> {
        let [outer, first, second, inner] = self.blocks(shape);
        transpose(values, outer, second, first, inner)
    }

    /// Both arrangements that are not [`Arrangement::Same`] swap the middle two of four extents.
    fn blocks(self, shape: &[usize]) -> [usize; 4] {
        match (self, shape) {
            (Arrangement::ChannelsLast, [b, c, rest @ ..]) => [*b, *c, rest.iter().product(), 1],
            (Arrangement::Heads, [b, heads, n, d]) => [*b, *heads, *n, *d],
            _ => [1, 1, 1, shape.iter().product()],
        }
    }
}

/// `[outer, first, second, inner]` → `[outer, second, first, inner]`.
fn transpose(values: &[f32], outer: usize, first: usize, second: usize, inner: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for o in 0..outer {
        for s in 0..second {
            for f in 0..first {
                let at = ((o * first + f) * second + s) * inner;
                out.extend_from_slice(&values[at..at + inner]);
            }
        }
    }
    out
}

struct Operand<'a> {
    /// As the case has it: `input.x`, `parameter.weight`.
    case_name: String,
    /// Where the engine keeps it.
    slot: (Region, String),
    arrangement: Arrangement,
    given: &'a Tensor,
    tensor: TensorId,
}

/// A graph made from a case, and where each of the case's tensors went.
pub struct Recipe<'a> {
    case: &'a ReferenceCase,
    pub graph: Graph,
    operands: Vec<Operand<'a>>,
    outputs: Vec<(String, Arrangement, TensorId)>,
    intermediates: Vec<(String, TensorId)>,
}

/// What a recipe produced, in PyTorch's layout, by the case's tensor names.
pub struct Produced {
    pub tensors: BTreeMap<String, Vec<f32>>,
    pub kernels: Vec<String>,
}

impl<'a> Recipe<'a> {
    pub fn new(case: &'a ReferenceCase) -> Recipe<'a> {
        Recipe {
            case,
            graph: Graph::new(),
            operands: Vec::new(),
            outputs: Vec::new(),
            intermediates: Vec::new(),
        }
    }

    fn find(&self, name: &str) -> Option<(String, &'a Tensor)> {
        let input = self.case.inputs.get(name).map(|tensor| ("input", tensor));
        let parameter = || self.case.parameters.get(name).map(|tensor| ("parameter", tensor));
        input.or_else(parameter).map(|(kind, tensor)| (format!("{kind}.{name}"), tensor))
    }

    /// Whether the case has this argument, as an input or as a parameter.
    pub fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// PyTorch's shape of an argument.
    pub fn shape(&self, name: &str) -> Result<Vec<usize>> {
        self.find(name).map(|(_, tensor)| tensor.shape.clone()).ok_or_else(|| missing(name))
    }

    /// Elements of an argument.
    pub fn values(&self, name: &str) -> Result<Vec<f32>> {
        f32s(self.find(name).ok_or_else(|| missing(name))?.1)
    }

    /// An argument of the operation, whether the case gives it as input or as parameter.
    pub fn operand(&mut self, name: &str, arrangement: Arrangement) -> Result<TensorId> {
        let (case_name, tensor) = self.find(name).ok_or_else(|| missing(name))?;
        let shape = arrangement.shape(&tensor.shape);
        let slot = self.graph.input(&case_name, TensorType::f32(shape))?;
        let place = (Region::State, case_name.clone());
        self.operands.push(Operand {
            case_name,
            slot: place,
            arrangement,
            given: tensor,
            tensor: slot,
        });
        Ok(slot)
    }

    /// Takes the weights and buffers that a network has declared from the case's parameters, after the
    /// network was built.
    ///
    /// # Errors
    /// Parameters that are missing, surplus or of another shape.
    pub fn take_parameters(&mut self) -> Result<()> {
        let slots: Vec<_> = self
            .graph
            .slots
            .iter()
            .filter(|slot| matches!(slot.region, Region::Weights | Region::Buffers))
            .map(|slot| (slot.region, slot.name.clone(), slot.ty.shape.clone()))
            .collect();
        for (given_name, given) in &self.case.parameters {
            // Older files name attention's layers differently.
            let name = canonical_name(given_name);
            let Some((region, _, shape)) = slots.iter().find(|(_, known, _)| *known == name) else {
                return Err(Error::invalid(format!(
                    "`parameter.{given_name}` is not a parameter of the configured network"
                )));
            };
            if given.shape != *shape {
                return Err(Error::invalid(format!(
                    "`parameter.{given_name}` is {:?}; the configured network needs {shape:?}",
                    given.shape
                )));
            }
            let tensor = self.graph.find_slot(*region, &name).ok_or_else(|| missing(&name))?;
            self.operands.push(Operand {
                case_name: format!("parameter.{given_name}"),
                slot: (*region, name.into_owned()),
                arrangement: Arrangement::Same,
                given,
                tensor,
            });
        }
        let given = |name: &str| self.operands.iter().any(|operand| operand.slot.1 == name);
        if let Some((_, name, _)) = slots.iter().find(|(_, name, _)| !given(name)) {
            return Err(missing(name));
        }
        Ok(())
    }

    /// Whether the case gives only what the operation takes; to be asked once all is built.
    ///
    /// # Errors
    /// An input or a parameter that the operation does not have.
    pub fn refuse_unread(&self) -> Result<()> {
        self.case.refuse_unless(|name| self.operands.iter().any(|op| op.case_name == name))
    }

    /// Declares a result of the operation.
    pub fn output(&mut self, name: &str, arrangement: Arrangement, tensor: TensorId) {
        self.outputs.push((name.to_string(), arrangement, tensor));
    }

    /// Asks for the outputs of named modules, where the graph has them.
    pub fn intermediates(&mut self) {
        for (path, tensor) in self.graph.named.clone() {
            if self.case.intermediates.iter().any(|(wanted, _)| *wanted == path) {
                self.intermediates.push((path, tensor));
            }
        }
    }

    /// Differentiates as far as the case asks for, runs, and gives back what was produced.
    ///
    /// # Errors
    /// What the graph, the target or the device refuses.
    pub fn run(mut self, device: &dyn Device) -> Result<Produced> {
        let mut seeds = Vec::new();
        let mut seed_values = Vec::new();
        for (name, arrangement, tensor) in &self.outputs {
            if let Some(given) = self.case.grad_outputs.get(name) {
                let upstream = format!("grad_output.{name}");
                let ty = self.graph.ty(*tensor).clone();
                let slot = self.graph.input(&upstream, ty)?;
                seeds.push((*tensor, slot));
                seed_values.push((upstream, arrangement.forth(&f32s(given)?, &given.shape)));
            }
        }
        let wanted: Vec<usize> = (0..self.operands.len())
            .filter(|&i| {
                self.case.wanted.contains_key(&format!("grad_{}", self.operands[i].case_name))
            })
            .collect();
        let wrt: Vec<TensorId> = wanted.iter().map(|&i| self.operands[i].tensor).collect();
        let gradients = match seeds.is_empty() {
            true => vec![None; wrt.len()],
            false => autodiff::gradients(&mut self.graph, &seeds, &wrt)?,
        };

        // (name in the case, arrangement, PyTorch's shape) of everything to read back.
        let mut results = Vec::new();
        let mut constant = Vec::new();
        for (name, arrangement, tensor) in std::mem::take(&mut self.outputs) {
            let name = format!("output.{name}");
            if let Some(wanted) = self.case.wanted.get(&name) {
                results.push((name, arrangement, wanted.shape.clone(), tensor));
            }
        }
        for (&index, gradient) in wanted.iter().zip(gradients) {
            let Operand { case_name, arrangement, given, .. } = &self.operands[index];
            let name = format!("grad_{case_name}");
            match gradient {
                Some(gradient) => results.push((name, *arrangement, given.shape.clone(), gradient)),
                // No output depends on it, as on the weights of labels that a case leaves out.
                None => constant.push((name, vec![0.0; given.shape.iter().product()])),
            }
        }
        for (path, tensor) in std::mem::take(&mut self.intermediates) {
            let wanted = self.case.intermediates.iter().find(|(wanted, _)| *wanted == path);
            let shape = wanted.map(|(_, tensor)| tensor.shape.clone()).unwrap_or_default();
            let arrangement = match self.graph.ty(tensor).shape.len() {
                4 => Arrangement::ChannelsLast,
                _ => Arrangement::Same,
            };
            results.push((path, arrangement, shape, tensor));
        }
        for (name, _, _, tensor) in &results {
            let ty = self.graph.ty(*tensor).clone();
            let slot = self.graph.slot(Region::State, &format!("result.{name}"), ty, Rate::Step)?;
            self.graph.bind(*tensor, slot)?;
        }

        let mut engine = Engine::single(self.graph, device)?;
        for operand in &self.operands {
            let values = operand.arrangement.forth(&f32s(operand.given)?, &operand.given.shape);
            let (region, name) = &operand.slot;
            engine.write(*region, name, &values)?;
        }
        for (name, values) in seed_values {
            engine.write(Region::State, &name, &values)?;
        }
        engine.run("run")?;
        let mut tensors = BTreeMap::from_iter(constant);
        for (name, arrangement, shape, _) in results {
            let values: Vec<f32> = engine.read(Region::State, &format!("result.{name}"))?;
            if values.len() != shape.iter().product::<usize>() {
                return Err(Error::invalid(format!(
                    "`{name}` is {shape:?} in the case, but has {} elements here",
                    values.len()
                )));
            }
            tensors.insert(name, arrangement.back(&values, &shape));
        }
        Ok(Produced { tensors, kernels: engine.session().kernels() })
    }
}

/// A tensor's elements as float32; integers (timesteps) are converted.
pub fn f32s(tensor: &Tensor) -> Result<Vec<f32>> {
    match tensor.to_i64() {
        Some(values) => Ok(values.into_iter().map(|v| v as f32).collect()),
        None => tensor
            .to_f32()
            .ok_or_else(|| Error::invalid("a tensor of this element type can't be used")),
    }
}

/// The error for an argument that the case lacks.
pub fn missing(name: &str) -> Error {
    Error::invalid(format!("there is neither `input.{name}` nor `parameter.{name}`"))
}
