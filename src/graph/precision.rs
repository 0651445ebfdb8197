//! Chooses the element type of every tensor for a target that computes in float16: each operation
//! says which of its operands are float16 ([`Op::half`](crate::ops::Op::half)), and a cast becomes a
//! node wherever a tensor has another type than its reader wants.
//!
//! Activations and their gradients are float16. Weights stay float32 where they outlive a run, and
//! until a convolution's are packed: that depends on weights only and so falls into `prepare`.
//! Whatever is bound to a slot has the slot's type, so network outputs, losses and weight gradients
//! leave as float32.

use super::{Graph, Node, Origin, TensorId};
use crate::device::{DType, Precision, Target, TensorType};
use crate::error::Result;
use crate::ops::Build;
use crate::ops::cast::Cast;
use std::collections::HashMap;
use std::sync::Arc;

/// Gives tensors the types that the target's precision asks for; nothing in float32.
///
/// # Errors
/// When a shape rule refuses the types that its operation asked for.
pub fn apply(graph: &mut Graph, target: &Target) -> Result<()> {
    if target.precision == Precision::Fp32 {
        return Ok(());
    }
    let mut pass = Pass { parts: parts(graph), casts: HashMap::new(), nodes: Vec::new() };
    for mut node in std::mem::take(&mut graph.nodes) {
        let types: Vec<&TensorType> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        let half = node.op.half(&types);
        for (index, input) in node.inputs.iter_mut().enumerate() {
            let wanted = match (graph.ty(*input).dtype, half.get(index) == Some(&true)) {
                (DType::F32, true) => DType::F16,
                (DType::F16, false) => DType::F32,
                _ => continue,
            };
            *input = pass.cast(graph, *input, wanted, &node.label)?;
        }
        let types: Vec<&TensorType> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        let outputs = node.op.infer(&types)?;
        let label = node.label.clone();
        let made = node.outputs.clone();
        pass.nodes.push(node);
        for (tensor, ty) in made.into_iter().zip(outputs) {
            pass.retype(graph, tensor, ty.dtype, &label)?;
        }
    }
    graph.set_nodes(pass.nodes);
    Ok(())
}

/// Views of each tensor made by a node.
fn parts(graph: &Graph) -> HashMap<TensorId, Vec<TensorId>> {
    let mut parts: HashMap<TensorId, Vec<TensorId>> = HashMap::new();
    for index in 0..graph.tensors.len() {
        let (root, _) = graph.root(TensorId(index));
        if root.0 != index {
            parts.entry(root).or_default().push(TensorId(index));
        }
    }
    parts
}

struct Pass {
    parts: HashMap<TensorId, Vec<TensorId>>,
    /// Casts so far, by root, offset, number of elements and wanted type.
    casts: HashMap<(TensorId, usize, usize, DType), TensorId>,
    nodes: Vec<Node>,
}

impl Pass {
    /// The tensor as `to`, by a node that all its readers share.
    fn cast(
        &mut self,
        graph: &mut Graph,
        tensor: TensorId,
        to: DType,
        label: &str,
    ) -> Result<TensorId> {
        let (root, offset) = graph.root(tensor);
        let TensorType { shape, .. } = graph.ty(tensor).clone();
        let key = (root, offset, shape.iter().product(), to);
        let cast = match self.casts.get(&key) {
            Some(&cast) => cast,
            None => {
                let cast = graph.push_labelled(Arc::new(Cast { to }), &[tensor], label)?[0];
                self.nodes.append(&mut graph.nodes);
                self.casts.insert(key, cast);
                cast
            }
        };
        graph.reshape(cast, &shape)
    }

    /// Gives a node's output, and the views of it, the type that the node makes. A slot keeps its own:
    /// where the two differ, a cast writes it.
    fn retype(
        &mut self,
        graph: &mut Graph,
        tensor: TensorId,
        dtype: DType,
        label: &str,
    ) -> Result<()> {
        let before = graph.ty(tensor).dtype;
        if before == dtype {
            return Ok(());
        }
        let views = self.parts.get(&tensor).into_iter().flatten();
        for &id in [tensor].iter().chain(views) {
            let view = &mut graph.tensors[id.0];
            view.ty.dtype = dtype;
            if let Origin::Part { offset, .. } = &mut view.origin {
                *offset = *offset / before.size() * dtype.size();
            }
        }
        if let Some(slot) = graph.tensors[tensor.0].bound.take() {
            let cast = self.cast(graph, tensor, before, label)?;
            graph.tensors[cast.0].bound = Some(slot);
        }
        Ok(())
    }
}
