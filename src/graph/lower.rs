//! Chooses the forms that a target wants: packed weights, transforms. What turns weights into
//! such a form becomes a node of its own, shared by all readers, and so falls into `prepare`.

use super::{Graph, Node, TensorId, fuse, precision};
use crate::device::{Target, TensorType};
use crate::error::{Error, Result};
use crate::ops::Build;
use std::collections::HashMap;

/// Rewrites every node that the target wants in another form, after [`precision`] has chosen element
/// types, and fuses what targets with kernels want together.
///
/// # Errors
/// When a shape rule refuses what an operation asked for, or the rewritten node would produce
/// something else than its readers expect.
pub fn lower(graph: &mut Graph, target: &Target) -> Result<()> {
    if target.is_cpu() {
        return lower_each(graph, target);
    }
    fuse::fuse_rows(graph)?;
    lower_each(graph, target)?;
    fuse::fuse_lowered(graph)
}

/// The same, each node alone.
pub(super) fn lower_each(graph: &mut Graph, target: &Target) -> Result<()> {
    precision::apply(graph, target)?;
    let mut nodes: Vec<Node> = Vec::with_capacity(graph.nodes.len());
    let mut shared: HashMap<(TensorId, String), TensorId> = HashMap::new();
    for mut node in std::mem::take(&mut graph.nodes) {
        let types: Vec<&TensorType> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        if let Some(lowered) = node.op.lower(target, &types) {
            for (input, op) in lowered.prepare {
                let from = node.inputs[input];
                let key = (from, format!("{op:?}"));
                node.inputs[input] = match shared.get(&key) {
                    Some(&prepared) => prepared,
                    None => {
                        let prepared = graph.push_labelled(op, &[from], &node.label)?[0];
                        nodes.append(&mut graph.nodes);
                        shared.insert(key, prepared);
                        prepared
                    }
                };
            }
            node.op = lowered.op;
            let types: Vec<&TensorType> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
            let outputs = node.op.infer(&types)?;
            let expected = node.outputs.iter().map(|&t| graph.ty(t));
            if !outputs.iter().eq(expected) {
                return Err(Error::operation(
                    node.op.name(),
                    format!("{} changes its outputs when it is lowered", node.label),
                ));
            }
        }
        nodes.push(node);
    }
    graph.set_nodes(nodes);
    Ok(())
}
