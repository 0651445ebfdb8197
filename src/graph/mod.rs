//! From a network to programs: a graph of operations and the passes over it.
//!
//! A network is described once with [`Graph`] (through [`Build`]); then, in this order,
//! [`autodiff`] appends gradient nodes, [`fuse`] rewrites nodes to richer operands, [`precision`]
//! chooses element types and [`lower`] a target's forms, [`hoist`] sorts nodes by how often they must run, [`Layout`] places
//! what outlives a run, and [`compile()`] plans the arena and emits a [`crate::device::Program`].
//!
//! Nodes stand in execution order and every pass keeps that order.

pub mod autodiff;
mod compile;
mod engine;
pub mod fuse;
pub mod hoist;
mod layout;
pub mod lower;
pub mod memory_plan;
pub mod precision;

pub use crate::ops::{Build, TensorId};
pub use compile::compile;
pub use engine::{Engine, Plan};
pub use layout::Layout;

use crate::device::TensorType;
use crate::error::{Error, Result};
use crate::ops::Op;
use std::collections::HashMap;
use std::sync::Arc;

/// How often a value changes; a node runs as often as the fastest of its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Rate {
    /// When the weights change: program `prepare`.
    Weights,
    /// Once per sampling run, for all its timesteps at once: program `table`.
    Schedule,
    /// At every evaluation: program `denoise` or `accumulate`.
    Step,
}

/// What a persistent slot is for. Regions are contiguous in memory, in this order; those that
/// mirror `Weights` share its order, so that one index addresses a weight, its gradient and its
/// moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    /// Trained parameters, canonical float32 in PyTorch's layout.
    Weights,
    /// Gradients being accumulated.
    Gradients,
    /// Gradients of one micro-batch, where several are accumulated.
    MicroGradients,
    /// First moments.
    Moment1,
    /// Second moments.
    Moment2,
    /// Moving averages of the weights, by their number.
    Ema(u8),
    /// Saved with a model but not trained.
    Buffers,
    /// What `prepare` computes.
    Prepared,
    /// What `table` computes.
    Table,
    /// Inputs, outputs, sampler state and step state.
    State,
}

impl Region {
    /// Whether the region has one slot for each trained parameter, in the order of `Weights`.
    pub fn mirrors_weights(self) -> bool {
        use Region::*;
        matches!(self, Weights | Gradients | MicroGradients | Moment1 | Moment2 | Ema(_))
    }
}

/// Index of a [`Slot`] in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotId(pub usize);

/// Something that outlives a run. Graphs that name the same region and name share it.
#[derive(Clone, Debug, PartialEq)]
pub struct Slot {
    pub region: Region,
    pub name: String,
    pub ty: TensorType,
    pub rate: Rate,
}

/// Name of the slot that stands for a whole region as one vector.
pub const WHOLE: &str = "*";

/// Where a tensor's bytes come from.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Origin {
    Slot(SlotId),
    Node {
        node: usize,
        output: usize,
    },
    /// A contiguous part, or all, of another tensor's bytes, from `offset` (in bytes).
    Part {
        of: TensorId,
        offset: usize,
    },
}

#[derive(Clone, Debug)]
pub struct Tensor {
    pub ty: TensorType,
    pub origin: Origin,
    /// A node's output that is written straight into a slot.
    pub bound: Option<SlotId>,
}

#[derive(Clone, Debug)]
pub struct Node {
    pub op: Arc<dyn Op>,
    pub inputs: Vec<TensorId>,
    pub outputs: Vec<TensorId>,
    /// Path in the network, e.g. `down_blocks.0.resnets.0.conv1`.
    pub label: String,
}

/// A network, or a part of it, as operations in execution order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub tensors: Vec<Tensor>,
    pub nodes: Vec<Node>,
    pub slots: Vec<Slot>,
    slot_index: HashMap<(Region, String), (SlotId, TensorId)>,
    scope: Vec<String>,
    /// Tensors worth keeping by name, as (module path, tensor), in order of execution.
    pub named: Vec<(String, TensorId)>,
}

impl Graph {
    pub fn new() -> Graph {
        Graph::default()
    }

    /// The tensor of a persistent slot; declares it on first use.
    ///
    /// # Errors
    /// When the slot exists with another type, or has more elements than kernels can count.
    pub fn slot(
        &mut self,
        region: Region,
        name: &str,
        ty: TensorType,
        rate: Rate,
    ) -> Result<TensorId> {
        if let Some(&(slot, tensor)) = self.slot_index.get(&(region, name.to_string())) {
            let known = &self.slots[slot.0].ty;
            if *known != ty {
                return Err(Error::operation(
                    name,
                    format!("is declared as {known:?} and used as {ty:?}"),
                ));
            }
            return Ok(tensor);
        }
        let known_as = if name == WHOLE { format!("all {region:?}") } else { name.to_string() };
        countable(&known_as, &ty)?;
        let slot = SlotId(self.slots.len());
        self.slots.push(Slot { region, name: name.to_string(), ty: ty.clone(), rate });
        let tensor = self.add_tensor(ty, Origin::Slot(slot));
        self.slot_index.insert((region, name.to_string()), (slot, tensor));
        Ok(tensor)
    }

    /// A trained parameter under the current scope, in PyTorch's name and layout.
    pub fn parameter(&mut self, name: &str, shape: &[usize]) -> Result<TensorId> {
        let path = self.path(name);
        self.slot(Region::Weights, &path, TensorType::f32(shape), Rate::Weights)
    }

    /// An input, output or state slot that may change at every step.
    pub fn input(&mut self, name: &str, ty: TensorType) -> Result<TensorId> {
        self.slot(Region::State, name, ty, Rate::Step)
    }

    /// The slot's tensor, if the graph has declared it.
    pub fn find_slot(&self, region: Region, name: &str) -> Option<TensorId> {
        self.slot_index.get(&(region, name.to_string())).map(|&(_, tensor)| tensor)
    }

    /// Runs `build` with `name` appended to the scope and records its result as the output of the
    /// module of that path.
    pub fn scoped<T>(
        &mut self,
        name: &str,
        build: impl FnOnce(&mut Graph) -> Result<T>,
    ) -> Result<T> {
        self.scope.push(name.to_string());
        let result = build(self);
        self.scope.pop();
        result
    }

    /// Like [`Graph::scoped`], and remembers the tensor as the output of that module.
    pub fn module(
        &mut self,
        name: &str,
        build: impl FnOnce(&mut Graph) -> Result<TensorId>,
    ) -> Result<TensorId> {
        let path = self.path(name);
        let tensor = self.scoped(name, build)?;
        self.named.push((path, tensor));
        Ok(tensor)
    }

    /// `name` under the current scope.
    pub fn path(&self, name: &str) -> String {
        let mut path = self.scope.join(".");
        if !path.is_empty() && !name.is_empty() {
            path.push('.');
        }
        path + name
    }

    /// Appends a node with one output.
    pub fn one(&mut self, op: impl Op, inputs: &[TensorId]) -> Result<TensorId> {
        Ok(self.push(Arc::new(op), inputs)?[0])
    }

    /// Appends a node under a given label; outputs are typed by the shape rule.
    pub fn push_labelled(
        &mut self,
        op: Arc<dyn Op>,
        inputs: &[TensorId],
        label: &str,
    ) -> Result<Vec<TensorId>> {
        let types: Vec<&TensorType> = inputs.iter().map(|&t| self.ty(t)).collect();
        let outputs = op.infer(&types).map_err(|error| error.at(label))?;
        for ty in &outputs {
            countable(op.name(), ty).map_err(|error| error.at(label))?;
        }
        let node = self.nodes.len();
        let outputs = outputs
            .into_iter()
            .enumerate()
            .map(|(output, ty)| self.add_tensor(ty, Origin::Node { node, output }))
            .collect::<Vec<_>>();
        self.nodes.push(Node {
            op,
            inputs: inputs.to_vec(),
            outputs: outputs.clone(),
            label: label.to_string(),
        });
        Ok(outputs)
    }

    /// A contiguous part of a tensor's elements, from element `start`; never a copy.
    pub fn part(&mut self, tensor: TensorId, start: usize, shape: &[usize]) -> Result<TensorId> {
        let whole = self.ty(tensor);
        let ty = TensorType { shape: shape.to_vec(), dtype: whole.dtype };
        if start + ty.elements() > whole.elements() {
            return Err(Error::operation("part", format!("{ty:?} at {start} leaves {whole:?}")));
        }
        let offset = start * ty.dtype.size();
        Ok(self.add_tensor(ty, Origin::Part { of: tensor, offset }))
    }

    /// Appends a node whose outputs are written straight into the given slots (and, where the
    /// operation updates in place, read from them first).
    pub fn push_into(
        &mut self,
        op: impl Op,
        inputs: &[TensorId],
        slots: &[TensorId],
    ) -> Result<()> {
        let outputs = self.push(Arc::new(op), inputs)?;
        if outputs.len() != slots.len() {
            return Err(Error::operation("push_into", "outputs and slots differ in number"));
        }
        for (output, &slot) in outputs.into_iter().zip(slots) {
            self.bind(output, slot)?;
        }
        Ok(())
    }

    /// Lets the node that computes `tensor` write into the slot of `target`, or copies it there
    /// where that is not possible.
    ///
    /// # Errors
    /// When types differ or `target` is no slot.
    pub fn bind(&mut self, tensor: TensorId, target: TensorId) -> Result<()> {
        let Origin::Slot(slot) = self.tensors[target.0].origin else {
            return Err(Error::operation("bind", "the target is no slot"));
        };
        if self.ty(tensor).elements() != self.ty(target).elements()
            || self.ty(tensor).dtype != self.ty(target).dtype
        {
            return Err(Error::operation(
                &self.slots[slot.0].name,
                format!("can't hold {:?}: it is {:?}", self.ty(tensor), self.ty(target)),
            ));
        }
        let (root, offset) = self.root(tensor);
        let whole = offset == 0 && self.ty(root).bytes() == self.ty(tensor).bytes();
        let free = self.tensors[root.0].bound.is_none()
            && matches!(self.tensors[root.0].origin, Origin::Node { .. });
        if whole && free {
            self.tensors[root.0].bound = Some(slot);
        } else {
            let label = self.slots[slot.0].name.clone();
            let shaped = self.reshape(tensor, &self.ty(target).shape.clone())?;
            let copy = self.push_labelled(Arc::new(crate::ops::copy::Copy), &[shaped], &label)?[0];
            self.tensors[copy.0].bound = Some(slot);
        }
        Ok(())
    }

    /// The tensor whose bytes `tensor` is a part of, and where in it (in bytes) it starts.
    pub fn root(&self, tensor: TensorId) -> (TensorId, usize) {
        let (mut at, mut start) = (tensor, 0);
        while let Origin::Part { of, offset } = self.tensors[at.0].origin {
            at = of;
            start += offset;
        }
        (at, start)
    }

    /// The slot that holds a tensor's bytes, if one does.
    pub fn slot_of(&self, tensor: TensorId) -> Option<&Slot> {
        let root = &self.tensors[self.root(tensor).0.0];
        let slot = match root.origin {
            Origin::Slot(slot) => Some(slot),
            _ => root.bound,
        };
        slot.map(|slot| &self.slots[slot.0])
    }

    /// Nodes that read each tensor's bytes, by root tensor.
    pub fn consumers(&self) -> HashMap<TensorId, Vec<usize>> {
        let mut consumers: HashMap<TensorId, Vec<usize>> = HashMap::new();
        for (index, node) in self.nodes.iter().enumerate() {
            for &input in &node.inputs {
                consumers.entry(self.root(input).0).or_default().push(index);
            }
        }
        consumers
    }

    /// Drops nodes whose results nothing reads and no slot keeps.
    pub fn prune(&mut self, roots: &[TensorId]) {
        let mut wanted = vec![false; self.tensors.len()];
        for &root in roots {
            wanted[self.root(root).0.0] = true;
        }
        let mut keep = vec![false; self.nodes.len()];
        for (index, node) in self.nodes.iter().enumerate().rev() {
            let lives = |t: &TensorId| wanted[t.0] || self.tensors[t.0].bound.is_some();
            if node.outputs.iter().any(lives) {
                keep[index] = true;
                for &input in &node.inputs {
                    wanted[self.root(input).0.0] = true;
                }
            }
        }
        let nodes = std::mem::take(&mut self.nodes);
        let kept = nodes.into_iter().zip(keep).filter(|(_, keep)| *keep).map(|(node, _)| node);
        self.set_nodes(kept.collect());
    }

    /// Replaces the node list, keeping each tensor's origin in step with it.
    pub(crate) fn set_nodes(&mut self, nodes: Vec<Node>) {
        for (index, node) in nodes.iter().enumerate() {
            for (output, tensor) in node.outputs.iter().enumerate() {
                self.tensors[tensor.0].origin = Origin::Node { node: index, output };
            }
        }
        self.nodes = nodes;
    }

    pub(crate) fn add_tensor(&mut self, ty: TensorType, origin: Origin) -> TensorId {
        self.tensors.push(Tensor { ty, origin, bound: None });
        TensorId(self.tensors.len() - 1)
    }

    /// How often each node must run.
    pub fn rates(&self) -> Vec<Rate> {
        let mut tensor_rates = vec![Rate::Weights; self.tensors.len()];
        for (index, tensor) in self.tensors.iter().enumerate() {
            if let Origin::Slot(slot) = tensor.origin {
                tensor_rates[index] = self.slots[slot.0].rate;
            }
        }
        let mut rates = Vec::with_capacity(self.nodes.len());
        for node in &self.nodes {
            let inputs = node.inputs.iter().map(|&t| tensor_rates[self.root(t).0.0]);
            let mut rate = inputs.max().unwrap_or(Rate::Weights);
            let effect = |t: &TensorId| self.tensors[t.0].bound.is_some();
            if node.op.in_place() || node.outputs.iter().any(effect) {
                rate = Rate::Step;
            }
            for output in &node.outputs {
                tensor_rates[output.0] = rate;
            }
            rates.push(rate);
        }
        rates
    }
}

/// Kernels count elements in 32 bits.
fn countable(name: &str, ty: &TensorType) -> Result<()> {
    if ty.elements() > i32::MAX as usize {
        return Err(Error::operation(name, format!("{ty:?} has more than 2^31 - 1 elements")));
    }
    Ok(())
}

impl Build for Graph {
    fn ty(&self, tensor: TensorId) -> &TensorType {
        &self.tensors[tensor.0].ty
    }

    fn push(&mut self, op: Arc<dyn Op>, inputs: &[TensorId]) -> Result<Vec<TensorId>> {
        let label = self.path("");
        self.push_labelled(op, inputs, &label)
    }

    fn reshape(&mut self, tensor: TensorId, shape: &[usize]) -> Result<TensorId> {
        let from = self.ty(tensor);
        if from.shape == shape {
            return Ok(tensor);
        }
        let ty = TensorType { shape: shape.to_vec(), dtype: from.dtype };
        if ty.elements() != from.elements() {
            return Err(Error::operation("reshape", format!("{from:?} can't become {ty:?}")));
        }
        Ok(self.add_tensor(ty, Origin::Part { of: tensor, offset: 0 }))
    }
}
