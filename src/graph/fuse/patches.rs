//! Convolutions of few channels, and gradients of their weights, read patches, and those to few channels have their
//! taps as columns: the first and the last convolution of a network.

use super::magnitude::splice;
use super::tiles::{self, rewrite};
use super::{maker, op};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::Build;
use crate::ops::cast::Cast;
use crate::ops::conv2d::{Conv2dWgrad, TilePack, TiledConv2d};
use crate::ops::patches::Patches;
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(convolution(graph)? || gradient(graph)? || narrow(graph)?)
}

fn convolution(graph: &mut Graph) -> Result<bool> {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(conv) = op::<TiledConv2d>(node) else { continue };
        let types: Vec<_> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        let Some((patches, pointwise)) = conv.of_patches(&types) else { continue };
        // In front of the weight are its sources.
        let weight = conv.operands().weight_index();
        let before = node.inputs[weight];
        let Some((at, packed)) = repacked(graph, at, weight, pointwise.pack())? else { continue };
        let (at, read) = read_patches(graph, at, 0..weight, patches)?;
        let rest = &graph.nodes[at].inputs[weight + 1..];
        let inputs = [&[read, packed], rest].concat();
        rewrite(graph, at, pointwise, inputs)?;
        remove_unread(graph, before);
        return Ok(true);
    }
    Ok(false)
}

/// Convolutions to few channels, whose taps are columns.
fn narrow(graph: &mut Graph) -> Result<bool> {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(conv) = op::<TiledConv2d>(node) else { continue };
        let types: Vec<_> = node.inputs.iter().map(|&t| graph.ty(t)).collect();
        let Some(narrow) = conv.narrow(&types) else { continue };
        let weight = conv.operands().weight_index();
        let (before, mut inputs) = (node.inputs[weight], node.inputs.clone());
        let Some((at, packed)) = repacked(graph, at, weight, narrow.pack())? else { continue };
        inputs[weight] = packed;
        rewrite(graph, at, narrow, inputs)?;
        remove_unread(graph, before);
        return Ok(true);
    }
    Ok(false)
}

/// The weight of the convolution at `at`, its input number `weight`, packed in another way in front of it, and where
/// the convolution stands then; `None` where it isn't packed for itself.
fn repacked(
    graph: &mut Graph,
    at: usize,
    weight: usize,
    pack: TilePack,
) -> Result<Option<(usize, TensorId)>> {
    let node = &graph.nodes[at];
    let Some((maker, 0)) = maker(graph, node.inputs[weight]) else { return Ok(None) };
    let Some(_) = op::<TilePack>(&graph.nodes[maker]) else { return Ok(None) };
    let (from, label) = (graph.nodes[maker].inputs.clone(), node.label.clone());
    let end = graph.nodes.len();
    let packed = graph.push_labelled(Arc::new(pack), &from, &label)?[0];
    splice(graph, at, end, &[]);
    Ok(Some((at + 1, packed)))
}

/// Removes what packed a weight as nothing reads it any more.
fn remove_unread(graph: &mut Graph, packed: TensorId) {
    let (pack, _) = maker(graph, packed).expect("a node made it");
    tiles::remove_unread(graph, pack);
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
