//! A sampler's update takes in what preconditions the network's output: it reads the image anyway.

use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, Origin};
use crate::ops::preconditioned::Preconditioned;
use crate::ops::sampler_update::SamplerUpdate;
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(&update) = op::<SamplerUpdate>(node) else { continue };
        let Some((made_at, 0)) = maker(graph, node.inputs[0]) else { continue };
        let made = &graph.nodes[made_at];
        let [x, output, c_skip, c_out] = made.inputs[..] else { continue };
        let own = match graph.tensors[x.0].origin {
            Origin::Slot(slot) => graph.tensors[node.outputs[0].0].bound == Some(slot),
            _ => false,
        };
        let fits = op(made) == Some(&Preconditioned) && !update.preconditioned && own;
        if fits && uses.only_reader(graph, node.inputs[0], at) {
            let node = &mut graph.nodes[at];
            node.op = Arc::new(SamplerUpdate { preconditioned: true, ..update });
            node.inputs[0] = output;
            node.inputs.splice(2..2, [c_skip, c_out]);
            graph.remove_node(made_at);
            return Ok(true);
        }
    }
    Ok(false)
}
