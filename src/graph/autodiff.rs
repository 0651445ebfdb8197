//! Reverse-mode differentiation: gradient nodes are appended to the graph, before any fusion.

use super::{Graph, Origin, TensorId};
use crate::error::{Error, Result};
use crate::ops::combine::Combine;
use crate::ops::{Build, GradArgs};
use std::collections::HashMap;

/// Appends the gradients of a scalar or of an output with a given upstream gradient.
///
/// `seeds` are (output, its upstream gradient); `wrt` the tensors whose gradients are wanted, in
/// the same order as the result. `None` where no seed depends on the tensor. Contributions to one
/// tensor are added in reverse order of execution, always the same.
///
/// # Errors
/// When a node on the way has no gradient rule.
pub fn gradients(
    graph: &mut Graph,
    seeds: &[(TensorId, TensorId)],
    wrt: &[TensorId],
) -> Result<Vec<Option<TensorId>>> {
    let count = graph.nodes.len();
    let mut needs = vec![false; graph.tensors.len()];
    for &tensor in wrt {
        needs[graph.root(tensor).0.0] = true;
    }
    for node in &graph.nodes {
        if node.inputs.iter().any(|&input| needs[graph.root(input).0.0]) {
            for output in &node.outputs {
                needs[output.0] = true;
            }
        }
    }

    // Gradients by root tensor, in the root's own shape.
    let mut sums: HashMap<TensorId, TensorId> = HashMap::new();
    for &(output, upstream) in seeds {
        contribute(graph, &mut sums, output, upstream)?;
    }
    for index in (0..count).rev() {
        let node = graph.nodes[index].clone();
        let output_grads: Vec<Option<TensorId>> =
            node.outputs.iter().map(|output| sums.get(output).copied()).collect();
        let wanted: Vec<bool> =
            node.inputs.iter().map(|&input| needs[graph.root(input).0.0]).collect();
        if output_grads.iter().all(Option::is_none) || !wanted.contains(&true) {
            continue;
        }
        let args = GradArgs {
            inputs: &node.inputs,
            outputs: &node.outputs,
            output_grads: &output_grads,
            needs: &wanted,
        };
        let scope = std::mem::replace(&mut graph.scope, vec![node.label.clone()]);
        let gradients = node.op.grad(graph, &args);
        graph.scope = scope;
        for ((&input, gradient), wanted) in node.inputs.iter().zip(gradients?).zip(&wanted) {
            if let (Some(gradient), true) = (gradient, wanted) {
                contribute(graph, &mut sums, input, gradient)?;
            }
        }
    }
    wrt.iter()
        .map(|&tensor| {
            let (root, offset) = graph.root(tensor);
            let Some(&sum) = sums.get(&root) else { return Ok(None) };
            let ty = graph.ty(tensor).clone();
            if offset == 0 && ty.elements() == graph.ty(root).elements() {
                graph.reshape(sum, &ty.shape).map(Some)
            } else {
                graph.part(sum, offset / ty.dtype.size(), &ty.shape).map(Some)
            }
        })
        .collect()
}

fn contribute(
    graph: &mut Graph,
    sums: &mut HashMap<TensorId, TensorId>,
    tensor: TensorId,
    gradient: TensorId,
) -> Result<()> {
    let (root, offset) = graph.root(tensor);
    let shape = graph.ty(root).shape.clone();
    if graph.ty(gradient).elements() != graph.ty(root).elements() {
        let is_part = matches!(graph.tensors[tensor.0].origin, Origin::Part { .. });
        return Err(Error::operation(
            "gradient",
            format!(
                "{:?} does not fit {:?}{}",
                graph.ty(gradient),
                graph.ty(root),
                if is_part && offset > 0 { "; a part of a tensor has no gradient" } else { "" }
            ),
        ));
    }
    let gradient = graph.reshape(gradient, &shape)?;
    let sum = match sums.get(&root) {
        None => gradient,
        Some(&earlier) => graph.one(Combine::ADD, &[earlier, gradient])?,
    };
    sums.insert(root, sum);
    Ok(())
}
