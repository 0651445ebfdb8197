//! Normalisations of what convolutions put out are no launch: the producers leave moments, and the
//! convolutions that read them do the rest while they load. Gradients of weights read the same sources, with
//! scales and shifts that the first of those convolutions leaves, and normalise them again; what is
//! normalised is never written.

use super::tiles::rewrite;
use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::Build;
use crate::ops::conv2d::{Conv2dWgrad, ExtraOutput, Norm, Operand, Operands, TiledConv2d};
use crate::ops::group_norm::{GroupNorm, GroupNormAffine, GroupNormOfMoments};
use std::sync::Arc;

/// A node that reads a normalisation, with that taken in.
enum Reader {
    Conv(TiledConv2d),
    /// The gradient of a weight.
    Weight(Conv2dWgrad),
}

/// Where only convolutions and gradients read a normalisation, they do the rest; else it is written without
/// asking for statistics first.
pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let (norm, after) = match (op(node), op(node)) {
            (Some(&GroupNorm { groups, eps, silu }), _) => (Norm { groups, eps }, Some(silu)),
            (_, Some(&GroupNormAffine { groups, eps })) => (Norm { groups, eps }, None),
            _ => continue,
        };
        let (sources, affine) = node.inputs.split_at(node.inputs.len() - 2);
        let producers: Option<Vec<usize>> =
            sources.iter().map(|&source| producer(graph, source)).collect();
        let (Some(producers), Some(readers)) = (producers, uses.readers(graph, node.outputs[0]))
        else {
            continue;
        };
        let readers = taken_in(graph, &uses, at, &readers, norm, after);
        if readers.is_none() && after.is_none() {
            continue;
        }
        let (sources, affine) = (sources.to_vec(), affine.to_vec());
        let moments = leave_moments(graph, &producers, &sources, norm.groups)?;
        let Some(readers) = readers else {
            let node = &mut graph.nodes[at];
            let norm = *op::<GroupNorm>(node).expect("asked above");
            node.op = Arc::new(GroupNormOfMoments(norm));
            node.inputs.extend(moments);
            return Ok(true);
        };
        let mut kept = None;
        for (reader, taken) in readers {
            let inputs = graph.nodes[reader].inputs.clone();
            // The reader may see the pixels under another shape.
            let shape = graph.ty(inputs[0]).shape[..3].to_vec();
            let mut seen = Vec::new();
            for &source in &sources {
                let channels = *graph.ty(source).shape.last().expect("channels");
                seen.push(graph.reshape(source, &[&shape[..], &[channels]].concat())?);
            }
            match taken {
                Reader::Conv(conv) => {
                    // Without the normalised source, or the affine behind the sources.
                    let rest = if after.is_some() { 1 } else { sources.len() + 1 };
                    let plain = conv.operands().count() - sources.len();
                    let (own, extras) = inputs[rest..].split_at(plain);
                    let inputs = [&seen[..], own, &moments, &affine, extras].concat();
                    let keeps = conv.extras.keeps;
                    rewrite(graph, reader, conv, inputs)?;
                    if keeps {
                        let outputs = [ExtraOutput::Affine, ExtraOutput::Statistics];
                        kept = Some(outputs.map(|extra| output(graph, reader, extra)));
                    }
                }
                Reader::Weight(wgrad) => {
                    let [scales, _] = kept.expect("a convolution keeps them for gradients");
                    let node = &mut graph.nodes[reader];
                    node.inputs = [&seen[..], &[scales], &inputs[1..]].concat();
                    node.op = Arc::new(wgrad);
                }
            }
        }
        if let Some([_, statistics]) = kept {
            let before = graph.nodes[at].outputs[1];
            graph.replace_uses(before, statistics);
        }
        graph.remove_node(at);
        return Ok(true);
    }
    Ok(false)
}

/// Lets the producers of a normalisation's sources leave moments.
fn leave_moments(
    graph: &mut Graph,
    producers: &[usize],
    sources: &[TensorId],
    groups: usize,
) -> Result<Vec<TensorId>> {
    let channels: Vec<usize> =
        sources.iter().map(|&t| *graph.ty(t).shape.last().expect("channels")).collect();
    let width = channels.iter().sum::<usize>() / groups;
    let mut moments = Vec::new();
    for (source, &producer) in producers.iter().enumerate() {
        let node = &graph.nodes[producer];
        let conv = op::<TiledConv2d>(node).expect("producers are convolutions");
        // A slice belongs to one group, for each of those that read it.
        let offset = if source == 0 { 0 } else { channels[0] };
        let parts = [width, offset, channels[source], conv.extras.moments];
        let slice = parts.into_iter().fold(SLICE_LIMIT, gcd);
        let (conv, inputs) = (conv.with_moments(slice), node.inputs.clone());
        rewrite(graph, producer, conv, inputs)?;
        moments.push(output(graph, producer, ExtraOutput::Moments));
    }
    Ok(moments)
}

/// An output of a convolution beside its result.
fn output(graph: &Graph, node: usize, extra: ExtraOutput) -> TensorId {
    let node = &graph.nodes[node];
    let extras = op::<TiledConv2d>(node).map(TiledConv2d::extra_outputs).unwrap_or_default();
    let place = extras.iter().position(|&other| other == extra).expect("the convolution has it");
    node.outputs[1 + place]
}

/// Moments are taken of slices that divide the tiles of channels.
const SLICE_LIMIT: usize = 64;

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The node that can leave moments of a tensor.
fn producer(graph: &Graph, tensor: TensorId) -> Option<usize> {
    let (root, offset) = graph.root(tensor);
    let whole = offset == 0 && graph.ty(root).elements() == graph.ty(tensor).elements();
    let same = graph.ty(root).shape.last() == graph.ty(tensor).shape.last();
    let (node, output) = maker(graph, root)?;
    let conv = op::<TiledConv2d>(&graph.nodes[node])?;
    let first = output == 0 && conv.extras.siblings == 0;
    (whole && same && first && conv.is_forward()).then_some(node)
}

/// All readers of the normalisation at `at`, with it taken in; `None` where one can't, or something outside
/// asks for the statistics. `after` is whether SiLU follows a normalisation that is written; one that is an
/// affine operand already is followed by what the reader says.
fn taken_in(
    graph: &Graph,
    uses: &Uses,
    at: usize,
    readers: &[usize],
    norm: Norm,
    after: Option<bool>,
) -> Option<Vec<(usize, Reader)>> {
    let statistics = match &graph.nodes[at].outputs[1..] {
        [] => vec![],
        [statistics, ..] => uses.readers(graph, *statistics)?,
    };
    let mut taken = Vec::new();
    let mut kept = !statistics.is_empty();
    for &reader in readers {
        let reads = match weight_gradient(graph, reader, at, after) {
            Some(wgrad) => Reader::Weight(wgrad),
            None => Reader::Conv(convolution(graph, reader, at, norm, after)?),
        };
        kept = kept || matches!(reads, Reader::Weight(_));
        taken.push((reader, reads));
    }
    // What gradients read is left by a convolution before them.
    let (first, reads) = taken.first_mut()?;
    let Reader::Conv(conv) = reads else { return None };
    if kept {
        *conv = conv.keeping();
    }
    statistics.iter().all(|reader| reader > first).then_some(taken)
}

/// Whether a node reads the result of the normalisation at `at` once, all of it, by samples.
fn reads_whole(graph: &Graph, reader: usize, at: usize) -> bool {
    let (inputs, result) = (&graph.nodes[reader].inputs, graph.nodes[at].outputs[0]);
    let once = inputs.iter().filter(|&&t| graph.root(t).0 == result).count() == 1;
    let [seen, whole] = [inputs[0], result].map(|t| graph.ty(t));
    let first = graph.root(inputs[0]).0 == result;
    once && first && seen.elements() == whole.elements() && seen.shape[0] == whole.shape[0]
}

fn reads_plainly(operands: &Operands) -> bool {
    !(operands.second || operands.affine || operands.silu || operands.upsample)
}

/// A gradient of a weight that reads the normalisation at `at`, with it taken in.
fn weight_gradient(
    graph: &Graph,
    reader: usize,
    at: usize,
    after: Option<bool>,
) -> Option<Conv2dWgrad> {
    let wgrad = op::<Conv2dWgrad>(&graph.nodes[reader])?;
    let (silu, second) = (after?, graph.nodes[at].inputs.len() == 4);
    let operands = Operands { affine: true, silu, second, ..wgrad.operands };
    let fits = reads_plainly(&wgrad.operands) && reads_whole(graph, reader, at);
    fits.then(|| Conv2dWgrad { operands, ..wgrad.clone() })
}

/// A convolution that reads the normalisation at `at`, with it taken in.
fn convolution(
    graph: &Graph,
    reader: usize,
    at: usize,
    norm: Norm,
    after: Option<bool>,
) -> Option<TiledConv2d> {
    let (node, normed) = (&graph.nodes[reader], &graph.nodes[at]);
    let conv = op::<TiledConv2d>(node)?;
    let (operands, result) = (conv.operands(), normed.outputs[0]);
    let second = normed.inputs.len() == 4;
    if !conv.is_forward() || conv.extras.norm.is_some() {
        return None;
    }
    let Some(silu) = after else {
        let once = node.inputs.iter().filter(|&&t| graph.root(t).0 == result).count() == 1;
        let reads = operands.index(Operand::Affine).map(|index| node.inputs[index]);
        let sources = &normed.inputs[..normed.inputs.len() - 2];
        let alike = sources.iter().zip(&node.inputs).all(|(&a, &b)| graph.root(a) == graph.root(b));
        let fits = once && reads == Some(result) && operands.second == second && alike;
        return fits.then(|| conv.normalised(norm, second, operands.silu));
    };
    let fits = reads_plainly(&operands) && reads_whole(graph, reader, at);
    fits.then(|| conv.normalised(norm, second, silu))
}
