//! What convolutions take in of the magnitude-preserving network: SiLU with a scale, a row that
//! multiplies each pixel in front of it, and concatenations with scales. Factors of what a convolution
//! reads become those of its normalised weight, which is made when weights change.

use super::convolution::plain_reader;
use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::Build;
use crate::ops::activation::Activation;
use crate::ops::combine::Combine;
use crate::ops::concat::{Concat, PadChannels};
use crate::ops::conv2d::Conv2d;
use crate::ops::fill::Fill;
use crate::ops::pixel_norm::{PixelNorm, PooledPixelNorm};
use crate::ops::weight_norm::WeightNorm;
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(concatenation(graph)? || constant(graph)? || activation(graph)? || pooling(graph))
}

/// A convolution that reads a tensor, straight or through a SiLU that nothing else reads.
struct Reader {
    conv: usize,
    silu: Option<usize>,
    /// The normalisation of its weight, and what its gain is to be multiplied by.
    norm: Option<(usize, f32)>,
}

impl Reader {
    /// `node` as a reader of `tensor` that can take in what stands between.
    fn of(graph: &Graph, uses: &Uses, tensor: TensorId, node: usize) -> Option<Reader> {
        if plain_reader(graph, node, tensor) {
            return Some(Reader { conv: node, silu: None, norm: None });
        }
        let &Activation::Silu { scale } = op(&graph.nodes[node])? else { return None };
        let activated = graph.nodes[node].outputs[0];
        let readers = uses.readers(graph, activated)?;
        let [conv] = readers[..] else { return None };
        if !plain_reader(graph, conv, activated) {
            return None;
        }
        let norm = match scale == 1.0 {
            true => None,
            false => {
                let weight = graph.nodes[conv].inputs[1];
                let (norm, _) = maker(graph, weight)?;
                op::<WeightNorm>(&graph.nodes[norm])?;
                if !uses.only_reader(graph, weight, conv) {
                    return None;
                }
                Some((norm, scale))
            }
        };
        Some(Reader { conv, silu: Some(node), norm })
    }

    /// Lets the convolution read the sources themselves.
    fn take_in(&self, graph: &mut Graph, sources: &[TensorId], affine: Option<TensorId>) {
        if let Some((norm, scale)) = self.norm {
            let node = &mut graph.nodes[norm];
            let whole = *op::<WeightNorm>(node).expect("it was one");
            node.op = Arc::new(WeightNorm { gain: whole.gain * scale, ..whole });
        }
        let node = &mut graph.nodes[self.conv];
        let mut conv = op::<Conv2d>(node).expect("it was one").clone();
        conv.operands.second = sources.len() == 2;
        conv.operands.affine = affine.is_some();
        conv.operands.silu = self.silu.is_some();
        let rest = node.inputs.split_off(1);
        node.inputs = sources.iter().copied().chain(affine).chain(rest).collect();
        node.op = Arc::new(conv);
    }
}

/// A concatenation with scales that only convolutions read, straight or through SiLU, is never
/// written: the scales become an affine that the convolutions apply while they load.
fn concatenation(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(&Concat { scales }) = op(node) else { continue };
        let ([first, second], joined) = ([node.inputs[0], node.inputs[1]], node.outputs[0]);
        if graph.ty(joined).shape.len() != 4 {
            continue;
        }
        let Some(nodes) = uses.readers(graph, joined) else { continue };
        let readers = nodes.iter().map(|&node| Reader::of(graph, &uses, joined, node));
        let Some(readers) = readers.collect::<Option<Vec<_>>>() else { continue };
        if readers.is_empty() {
            continue;
        }
        let (label, end) = (node.label.clone(), graph.nodes.len());
        let mut affine = None;
        // Of sources of equally many channels the scales are 1.
        if scales != [1.0, 1.0] {
            let mut rows = Vec::new();
            for (source, value) in [first, second].into_iter().zip(scales) {
                let shape = vec![1, graph.ty(source).shape[3]];
                rows.push(graph.push_labelled(Arc::new(Fill { value, shape }), &[], &label)?[0]);
            }
            let row = graph.push_labelled(Arc::new(Concat::PLAIN), &rows, &label)?[0];
            affine = Some(without_shift(graph, row, &label)?);
        }
        let mut removed = vec![index];
        for reader in &readers {
            reader.take_in(graph, &[first, second], affine);
            removed.extend(reader.silu);
        }
        splice(graph, index, end, &removed);
        return Ok(true);
    }
    Ok(false)
}

/// Channels of one value, behind others, are a source of their own: it depends on nothing, and is there
/// before the first step.
fn constant(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(&PadChannels { before: 0, after, scale: 1.0, value }) = op(node) else { continue };
        let (source, padded) = (node.inputs[0], node.outputs[0]);
        let &[batch, height, width, _] = &graph.ty(padded).shape[..] else { continue };
        let Some(nodes) = uses.readers(graph, padded) else { continue };
        let readers = nodes.iter().map(|&node| Reader::of(graph, &uses, padded, node));
        // SiLU would change the value.
        let plain = readers.map(|reader| reader.filter(|reader| reader.silu.is_none()));
        let Some(readers) = plain.collect::<Option<Vec<_>>>() else { continue };
        if readers.is_empty() {
            continue;
        }
        let (label, end) = (node.label.clone(), graph.nodes.len());
        let fill = Fill { value, shape: vec![batch, height, width, after] };
        let filled = graph.push_labelled(Arc::new(fill), &[], &label)?[0];
        for reader in &readers {
            reader.take_in(graph, &[source, filled], None);
        }
        splice(graph, index, end, &[index]);
        return Ok(true);
    }
    Ok(false)
}

/// An average pool that only a normalisation of pixels reads is done while that reads.
fn pooling(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let (Some(&PixelNorm { groups }), &[pooled]) = (op(node), &node.inputs[..]) else {
            continue;
        };
        let Some((pool, _)) = maker(graph, pooled) else { continue };
        let taken = op(&graph.nodes[pool]) == Some(&PooledPixelNorm::POOL);
        if !taken || !uses.only_reader(graph, pooled, index) {
            continue;
        }
        let source = graph.nodes[pool].inputs[0];
        let node = &mut graph.nodes[index];
        node.op = Arc::new(PooledPixelNorm { groups });
        node.inputs = vec![source];
        graph.remove_node(pool);
        return true;
    }
    false
}

/// SiLU in front of one convolution is applied while that loads, and with it the row that multiplies
/// each pixel before.
fn activation(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let (Some(Activation::Silu { .. }), &[input]) = (op(node), &node.inputs[..]) else {
            continue;
        };
        let Some(reader) = Reader::of(graph, &uses, input, index) else { continue };
        if graph.ty(input).shape.len() != 4 {
            continue;
        }
        let (label, end) = (node.label.clone(), graph.nodes.len());
        let (mut source, mut affine, mut removed) = (input, None, vec![index]);
        if let Some((product, [map, row])) = row_product(graph, &uses, input, index) {
            source = map;
            affine = Some(without_shift(graph, row, &label)?);
            removed.push(product);
        }
        reader.take_in(graph, &[source], affine);
        splice(graph, index, end, &removed);
        return Ok(true);
    }
    Ok(false)
}

/// The node that made `tensor`, which only `reader` reads, as the product of a map and a row.
fn row_product(
    graph: &Graph,
    uses: &Uses,
    tensor: TensorId,
    reader: usize,
) -> Option<(usize, [TensorId; 2])> {
    let (at, _) = maker(graph, tensor)?;
    let node = &graph.nodes[at];
    let [map, row] = node.inputs[..] else { return None };
    let rows = graph.ty(row).shape.len() == 2;
    let alone = uses.only_reader(graph, tensor, reader);
    (op(node) == Some(&Combine::Product) && rows && alone).then_some((at, [map, row]))
}

/// A row of scales [R, C] as the affine [R, 2, C] of a convolution.
fn without_shift(graph: &mut Graph, row: TensorId, label: &str) -> Result<TensorId> {
    let [rows, channels] = graph.ty(row).shape[..] else { unreachable!("it is a row") };
    let pad = Arc::new(PadChannels::zeros(0, channels));
    let both = graph.push_labelled(pad, &[row], label)?[0];
    graph.reshape(both, &[rows, 2, channels])
}

/// Puts the nodes from `made` on to where node `at` stands, and takes others out.
pub(super) fn splice(graph: &mut Graph, at: usize, made: usize, removed: &[usize]) {
    let mut nodes = std::mem::take(&mut graph.nodes);
    let mut new = nodes.split_off(made);
    let mut kept = Vec::with_capacity(nodes.len() + new.len());
    for (index, node) in nodes.into_iter().enumerate() {
        if index == at {
            kept.append(&mut new);
        }
        if !removed.contains(&index) {
            kept.push(node);
        }
    }
    graph.set_nodes(kept);
}
