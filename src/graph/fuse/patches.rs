//! Convolutions of few channels, and gradients of their weights, read patches: the first and the last convolution of a
//! network.

use super::tiles::rewrite;
use super::{maker, op};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::Build;
use crate::ops::cast::Cast;
use crate::ops::conv2d::{Conv2dWgrad, TilePack, TiledConv2d};
use crate::ops::patches::Patches;
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(convolution(graph)? || gradient(graph)?)
}

fn convolution(graph: &mut Graph) -> Result<bool> {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(conv) = op::<TiledConv2d>(node) else { continue };
        let types: Vec<_> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        let Some((patches, pointwise)) = conv.of_patches(&types) else { continue };
        // In front of the weight are its sources.
        let weight = conv.operands().weight_index();
        let Some((pack, 0)) = maker(graph, node.inputs[weight]) else { continue };
        let Some(_) = op::<TilePack>(&graph.nodes[pack]) else { continue };
        let (from, label) = (graph.nodes[pack].inputs.clone(), node.label.clone());
        let packed = graph.push_labelled(Arc::new(pointwise.pack()), &from, &label)?[0];
        let at = stand_before(graph, at);
        let (at, read) = read_patches(graph, at, 0..weight, patches)?;
        let rest = &graph.nodes[at].inputs[weight + 1..];
        let inputs = [&[read, packed], rest].concat();
        rewrite(graph, at, pointwise, inputs)?;
        drop_unread(graph);
        return Ok(true);
    }
    Ok(false)
}

fn gradient(graph: &mut Graph) -> Result<bool> {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(wgrad) = op::<Conv2dWgrad>(node) else { continue };
        let types: Vec<_> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        let Some((input, patches, pointwise)) = wgrad.of_patches(&types) else { continue };
        let (at, read) = read_patches(graph, at, input..input + 1, patches)?;
        graph.nodes[at].op = Arc::new(pointwise);
        graph.nodes[at].inputs[input] = read;
        drop_unread(graph);
        return Ok(true);
    }
    Ok(false)
}

/// Moves the last node in front of the one at `at`, whose new place is returned.
fn stand_before(graph: &mut Graph, at: usize) -> usize {
    let mut nodes = std::mem::take(&mut graph.nodes);
    let last = nodes.pop().expect("it was pushed");
    nodes.insert(at, last);
    graph.set_nodes(nodes);
    at + 1
}

/// The patches of some inputs of the node at `at`, and the node's place then: those that are there already, or new ones,
/// which read float32 without the casts between.
fn read_patches(
    graph: &mut Graph,
    at: usize,
    inputs: std::ops::Range<usize>,
    patches: Patches,
) -> Result<(usize, TensorId)> {
    let mut sources = graph.nodes[at].inputs[inputs].to_vec();
    let before_cast = |&source: &TensorId| {
        let (cast, _) = maker(graph, source)?;
        op::<Cast>(&graph.nodes[cast])?;
        Some((graph.nodes[cast].inputs[0], graph.ty(source).shape.clone()))
    };
    let casts: Option<Vec<_>> = sources.iter().map(before_cast).collect();
    if let Some(casts) = casts {
        let each = casts.into_iter().map(|(source, shape)| graph.reshape(source, &shape));
        sources = each.collect::<Result<_>>()?;
    }
    let alike = |first: &TensorId, second: &TensorId| {
        graph.root(*first) == graph.root(*second) && graph.ty(*first) == graph.ty(*second)
    };
    let known = graph.nodes[..at].iter().find(|node| {
        let same = || node.inputs.iter().zip(&sources).all(|(one, other)| alike(one, other));
        op(node) == Some(&patches) && node.inputs.len() == sources.len() && same()
    });
    if let Some(node) = known {
        return Ok((at, node.outputs[0]));
    }
    let label = graph.nodes[at].label.clone();
    let made = graph.push_labelled(Arc::new(patches), &sources, &label)?[0];
    Ok((stand_before(graph, at), made))
}

/// Takes out casts and packed weights that nothing reads any more.
fn drop_unread(graph: &mut Graph) {
    for at in (0..graph.nodes.len()).rev() {
        let node = &graph.nodes[at];
        let is_read = |&made: &TensorId| {
            let read = |&input: &TensorId| graph.root(input).0 == made;
            graph.tensors[made.0].bound.is_some()
                || graph.nodes.iter().any(|node| node.inputs.iter().any(read))
        };
        let ours = op::<Cast>(node).is_some() || op::<TilePack>(node).is_some();
        if ours && !node.outputs.iter().any(is_read) {
            graph.remove_node(at);
        }
    }
}
