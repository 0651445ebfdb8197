//! The gradient of a normalisation takes in what else flows back to its source, and the sums of its
//! result over pixels.

use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Build, Graph, Node, TensorId};
use crate::ops::combine::Combine;
use crate::ops::group_norm::{GroupNormGrad, MOST_RESIDUALS};
use crate::ops::sum_pixels::{Rows, SumPixels};
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(residual(graph) || both_residuals(graph) || rows(graph))
}

/// The gradient of a normalisation of one source whose result is still nothing but dx.
fn plain(node: &Node) -> Option<GroupNormGrad> {
    let grad = op::<GroupNormGrad>(node)?;
    (!grad.rows && node.inputs.len() == 5 + grad.residuals).then_some(*grad)
}

/// The terms of a sum of two tensors of one type.
fn terms(graph: &Graph, node: &Node) -> Option<[TensorId; 2]> {
    let &[a, b] = &node.inputs[..] else { return None };
    (op(node) == Some(&Combine::ADD) && graph.ty(a) == graph.ty(b)).then_some([a, b])
}

/// `dx + other` becomes a residual of the gradient, which then runs where the sum stood.
fn residual(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let Some([a, b]) = terms(graph, &graph.nodes[at]) else { continue };
        for (dx, other) in [(a, b), (b, a)] {
            let Some((made_at, 0)) = maker(graph, dx) else { continue };
            let made = &graph.nodes[made_at];
            let Some(grad) = plain(made).filter(|grad| grad.residuals < MOST_RESIDUALS) else {
                continue;
            };
            // What else it makes must not be read before the sum.
            let early = graph.nodes[made_at + 1..at].iter().any(|node| {
                node.inputs.iter().any(|&input| made.outputs.contains(&graph.root(input).0))
            });
            if early || graph.root(other).0 == dx || !uses.only_reader(graph, dx, at) {
                continue;
            }
            let residuals = grad.residuals + 1;
            let mut node = made.clone();
            node.op = Arc::new(GroupNormGrad { residuals, ..grad });
            node.inputs.push(other);
            node.outputs[0] = graph.nodes[at].outputs[0];
            graph.nodes[at] = node;
            graph.remove_node(made_at);
            return true;
        }
    }
    false
}

/// A residual that is itself a sum becomes two.
fn both_residuals(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(grad) = plain(node).filter(|grad| grad.residuals == 1) else { continue };
        let sum = node.inputs[node.inputs.len() - 1];
        let Some((made_at, 0)) = maker(graph, sum) else { continue };
        let Some(terms) = terms(graph, &graph.nodes[made_at]) else { continue };
        if !uses.only_reader(graph, sum, at) {
            continue;
        }
        let node = &mut graph.nodes[at];
        node.op = Arc::new(GroupNormGrad { residuals: 2, ..grad });
        node.inputs.pop();
        node.inputs.extend(terms);
        graph.remove_node(made_at);
        return true;
    }
    false
}

/// Sums over the pixels of each sample, which the gradient of a time row is.
fn rows(graph: &mut Graph) -> bool {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        if op(node) != Some(&(SumPixels { rows: Rows::Samples })) {
            continue;
        }
        let Some((made_at, 0)) = maker(graph, node.inputs[0]) else { continue };
        let Some(grad) = plain(&graph.nodes[made_at]).filter(|grad| grad.residuals == 0) else {
            continue;
        };
        let sums = node.outputs[0];
        let node = &mut graph.nodes[made_at];
        node.op = Arc::new(GroupNormGrad { rows: true, ..grad });
        node.outputs.push(sums);
        graph.remove_node(at);
        return true;
    }
    false
}
