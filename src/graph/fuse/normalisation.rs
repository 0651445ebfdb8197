//! Group normalisation takes in the SiLU behind it, forward and backward.

use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::Graph;
use crate::ops::activation::{Activation, ActivationGrad};
use crate::ops::group_norm::{GroupNorm, GroupNormGrad};
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(backward(graph) || forward(graph))
}

/// `group_norm_grad(silu_grad(dy, z), …)` with z the norm's own output becomes
/// `group_norm_silu_grad(dy, …)`, which forms z again from x.
fn backward(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(&GroupNormGrad { silu: false, groups, .. }) = op(node) else { continue };
        let Some((silu_at, 0)) = maker(graph, node.inputs[0]) else { continue };
        let silu = &graph.nodes[silu_at];
        if op(silu) != Some(&ActivationGrad(Activation::SILU)) {
            continue;
        }
        let [dy, z] = silu.inputs[..] else { continue };
        let Some((norm_at, 0)) = maker(graph, z) else { continue };
        let norm = &graph.nodes[norm_at];
        let Some(GroupNorm { silu: false, .. }) = op(norm) else { continue };
        // The gradient reads dy, the norm's inputs and its statistics.
        let same = node.inputs[1..node.inputs.len() - 1] == norm.inputs[..]
            && node.inputs.last() == Some(&norm.outputs[1]);
        if same && uses.only_reader(graph, silu.outputs[0], index) {
            let node = &mut graph.nodes[index];
            node.inputs[0] = dy;
            node.op = Arc::new(GroupNormGrad::new(groups, true));
            graph.remove_node(silu_at);
            return true;
        }
    }
    false
}

/// `silu(group_norm(x))` becomes `group_norm_silu(x)`. Where a gradient still reads the value
/// between the two, both stay.
fn forward(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        if op(node) != Some(&Activation::SILU) {
            continue;
        }
        let (z, y) = (node.inputs[0], node.outputs[0]);
        let Some((norm_at, 0)) = maker(graph, z) else { continue };
        let Some(norm) = op::<GroupNorm>(&graph.nodes[norm_at]) else { continue };
        // The gradient of the fused form, made by `backward` above, reads x and the statistics.
        if !norm.silu && uses.only_reader(graph, z, index) {
            graph.nodes[norm_at].op = Arc::new(GroupNorm { silu: true, ..*norm });
            graph.replace_uses(y, z);
            graph.remove_node(index);
            return true;
        }
    }
    false
}
