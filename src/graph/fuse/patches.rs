//! Convolutions of few channels, and gradients of their weights, read patches: the first and the last convolution of a
//! network.

use super::magnitude::splice;
use super::tiles::{remove_unread, rewrite};
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
        let (before, label) = (node.inputs[weight], node.label.clone());
        let (from, end) = (graph.nodes[pack].inputs.clone(), graph.nodes.len());
        let packed = graph.push_labelled(Arc::new(pointwise.pack()), &from, &label)?[0];
        splice(graph, at, end, &[]);
        let (at, read) = read_patches(graph, at + 1, 0..weight, patches)?;
        let rest = &graph.nodes[at].inputs[weight + 1..];
        let inputs = [&[read, packed], rest].concat();
        rewrite(graph, at, pointwise, inputs)?;
        // It has moved with what was put in front of it.
        let (pack, _) = maker(graph, before).expect("a node made it");
        remove_unread(graph, pack);
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
        return Ok(true);
    }
    Ok(false)
}

/// The patches of some inputs of the node at `at`, and the node's place then: those that are there already, or new
/// ones. Where all inputs are casts, these read float32 instead, where the casts stand, one behind the other, since
/// it may be overwritten later; `prune` takes out casts that nothing else reads.
fn read_patches(
    graph: &mut Graph,
    at: usize,
    inputs: std::ops::Range<usize>,
    patches: Patches,
) -> Result<(usize, TensorId)> {
    let mut sources = graph.nodes[at].inputs[inputs].to_vec();
    let mut place = at;
    let cast = |source: &TensorId| {
        let (cast, _) = maker(graph, *source)?;
        op::<Cast>(&graph.nodes[cast]).map(|_| cast)
    };
    let casts: Option<Vec<usize>> = sources.iter().map(cast).collect();
    let together = |casts: &Vec<usize>| casts.windows(2).all(|pair| pair[0].abs_diff(pair[1]) == 1);
    if let Some(casts) = casts.filter(together) {
        for (source, &cast) in sources.iter_mut().zip(&casts) {
            let shape = graph.ty(*source).shape.clone();
            *source = graph.reshape(graph.nodes[cast].inputs[0], &shape)?;
        }
        place = casts.into_iter().max().unwrap_or(at);
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
    let (label, end) = (graph.nodes[at].label.clone(), graph.nodes.len());
    let made = graph.push_labelled(Arc::new(patches), &sources, &label)?[0];
    splice(graph, place, end, &[]);
    Ok((at + 1, made))
}
