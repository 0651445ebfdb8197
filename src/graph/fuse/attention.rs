//! What attention takes in: the normalisation of queries, keys and values, and their tensor as a whole
//! instead of its three parts.

use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::Build;
use crate::ops::attention::{Attention, PackedAttention};
use crate::ops::concat::SliceChannels;
use crate::ops::pixel_norm::PixelNorm;
use std::sync::Arc;

/// Attention of the three thirds of a tensor whose rows are normalised head by head reads what the
/// normalisation reads. In training the gradients read the parts, which then stay.
pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let (Some(&attention), &[q, k, v]) = (op::<Attention>(node), &node.inputs[..]) else {
            continue;
        };
        let parts = [(0, q), (1, k), (2, v)].map(|(at, part)| slice(graph, &uses, index, at, part));
        let [Some(first), Some(second), Some(third)] = parts else { continue };
        let slices = [first, second, third];
        let [normed, ..] = slices.map(|slice| graph.root(graph.nodes[slice].inputs[0]));
        let alike = slices.iter().all(|&slice| {
            let read = graph.nodes[slice].inputs[0];
            graph.root(read) == normed && graph.ty(read).elements() == graph.ty(normed.0).elements()
        });
        let Some((norm, 0)) = maker(graph, normed.0) else { continue };
        let heads = op(&graph.nodes[norm]) == Some(&PixelNorm { groups: 3 * attention.heads });
        let readers = uses.readers(graph, normed.0);
        let alone = readers.is_some_and(|readers| readers.iter().all(|at| slices.contains(at)));
        if !(alike && heads && alone) {
            continue;
        }
        let tokens = graph.ty(graph.nodes[first].inputs[0]).shape.clone();
        let packed = graph.reshape(graph.nodes[norm].inputs[0], &tokens)?;
        let node = &mut graph.nodes[index];
        node.inputs = vec![packed];
        node.op = Arc::new(PackedAttention::from(attention));
        let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
        let kept = nodes.filter(|(at, _)| *at != norm && !slices.contains(at));
        let kept = kept.map(|(_, node)| node).collect();
        graph.set_nodes(kept);
        return Ok(true);
    }
    Ok(false)
}

/// The node that cuts `part`, which only `reader` reads, out of a tensor as the third `at` of its
/// channels.
fn slice(graph: &Graph, uses: &Uses, reader: usize, at: usize, part: TensorId) -> Option<usize> {
    let channels = *graph.ty(part).shape.last()?;
    let (node, _) = maker(graph, part)?;
    let source = graph.nodes[node].inputs.first()?;
    let third = graph.ty(*source).shape.last() == Some(&(3 * channels))
        && op(&graph.nodes[node]) == Some(&SliceChannels::plain(at * channels, channels));
    (third && uses.only_reader(graph, part, reader)).then_some(node)
}
