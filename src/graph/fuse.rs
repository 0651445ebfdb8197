//! Rewrites a node to the same operation with a richer operand or epilogue, and drops what that
//! makes superfluous. Runs after differentiation; every rule is tested against the unfused graph.
//!
//! A tensor that is bound to a slot is read from outside, so no rule makes it disappear: asking
//! for an intermediate result turns off the fusions that would hide it.

mod attention;
mod convolution;
mod gradient;
mod magnitude;
mod normalisation;
mod patches;
mod preconditioned;
mod row_linear;
mod scales;
mod tiles;
mod tiles_norm;

use super::{Graph, Node, Origin, TensorId};
use crate::error::Result;
use crate::ops::Op;
use std::any::Any;
use std::collections::HashMap;

/// Applies every rule until none applies.
///
/// # Errors
/// When a shape rule refuses a rewritten node; that would be a mistake in a rule.
pub fn fuse(graph: &mut Graph) -> Result<()> {
    // Normalisation first: a convolution takes in what is left of it. Each rule looks at one
    // pattern and says whether it changed the graph.
    let rules: [fn(&mut Graph) -> Result<bool>; 10] = [
        attention::rules,
        normalisation::rules,
        gradient::rules,
        row_linear::rules,
        |graph| Ok(scales::sums(graph)),
        convolution::rules,
        row_linear::single,
        magnitude::rules,
        scales::columns,
        preconditioned::rules,
    ];
    for rule in rules {
        while rule(graph)? {}
    }
    Ok(())
}

/// Makes operations of their own of the linear layers of rows, which tensor cores then multiply in float16 although
/// rows stay float32. [`fuse`] does so, too.
///
/// # Errors
/// As [`fuse`].
pub(super) fn fuse_rows(graph: &mut Graph) -> Result<()> {
    while row_linear::rules(graph)? || row_linear::single(graph)? {}
    Ok(())
}

/// Applies the rules of a target with kernels to a lowered graph, until none applies.
///
/// # Errors
/// As [`fuse`].
pub(super) fn fuse_lowered(graph: &mut Graph) -> Result<()> {
    while tiles::rules(graph)? {}
    Ok(())
}

/// The node's operation, if it is of this type.
fn op<T: Op>(node: &Node) -> Option<&T> {
    (node.op.as_ref() as &dyn Any).downcast_ref()
}

/// Who reads what, at the moment it was made.
struct Uses {
    consumers: HashMap<TensorId, Vec<usize>>,
}

impl Uses {
    fn of(graph: &Graph) -> Uses {
        Uses { consumers: graph.consumers() }
    }

    /// Nodes that read the tensor, once each; `None` if something outside the graph reads it too.
    fn readers(&self, graph: &Graph, tensor: TensorId) -> Option<Vec<usize>> {
        if graph.tensors[tensor.0].bound.is_some() {
            return None;
        }
        let mut readers = self.consumers.get(&tensor).cloned().unwrap_or_default();
        readers.dedup();
        Some(readers)
    }

    /// Whether this node alone reads the tensor, and only in one place.
    fn reads_alone(&self, graph: &Graph, tensor: TensorId, node: usize) -> bool {
        graph.tensors[tensor.0].bound.is_none()
            && self.consumers.get(&tensor).is_some_and(|readers| readers[..] == [node])
    }

    /// As [`Uses::reads_alone`], and unreshaped.
    fn only_reader(&self, graph: &Graph, tensor: TensorId, node: usize) -> bool {
        self.reads_alone(graph, tensor, node) && graph.nodes[node].inputs.contains(&tensor)
    }
}

/// The node and output number that make a tensor; `None` for slots and parts of other tensors.
fn maker(graph: &Graph, tensor: TensorId) -> Option<(usize, usize)> {
    match graph.tensors[tensor.0].origin {
        Origin::Node { node, output } => Some((node, output)),
        _ => None,
    }
}

impl Graph {
    /// Lets every reader of `old` read `new` instead, which must have the same elements.
    pub(crate) fn replace_uses(&mut self, old: TensorId, new: TensorId) {
        for node in &mut self.nodes {
            for input in &mut node.inputs {
                if *input == old {
                    *input = new;
                }
            }
        }
        for tensor in &mut self.tensors {
            if let Origin::Part { of, .. } = &mut tensor.origin
                && *of == old
            {
                *of = new;
            }
        }
        for (_, tensor) in &mut self.named {
            if *tensor == old {
                *tensor = new;
            }
        }
        if let Some(slot) = self.tensors[old.0].bound.take() {
            self.tensors[new.0].bound = Some(slot);
        }
    }

    /// Takes a node out; nothing may read its outputs any more.
    pub(crate) fn remove_node(&mut self, index: usize) {
        let mut nodes = std::mem::take(&mut self.nodes);
        nodes.remove(index);
        self.set_nodes(nodes);
    }
}
