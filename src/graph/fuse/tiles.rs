//! What convolutions as kernels run them take in beyond the plain operation: others of the same
//! sources, a 1×1 shortcut, and normalisations, for which the producers of their sources leave
//! moments. Each saves a launch, and a normalisation two and a pass over memory.

use super::convolution::run_at_sum;
use super::{Uses, maker, op};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Origin, TensorId};
use crate::ops::Build;
use crate::ops::combine::Combine;
use crate::ops::conv2d::{Norm, Operand, TilePack, TilePacks, TiledConv2d};
use crate::ops::group_norm::{GroupNorm, GroupNormAffine, GroupNormOfMoments};
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(packs(graph)?
        || siblings(graph)?
        || sum(graph)?
        || shortcut(graph)?
        || normalisation(graph)?)
}

/// What is added to a convolution's result alone becomes its residual; it then runs where the sum
/// stood. Sums behind gradients are left to this rule.
fn sum(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        if op(node) != Some(&Combine::ADD) {
            continue;
        }
        for (term, other) in [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])] {
            let (root, offset) = graph.root(term);
            let Some((made_at, 0)) = maker(graph, root) else { continue };
            let whole = offset == 0 && graph.ty(term).elements() == graph.ty(root).elements();
            if !whole || !uses.reads_alone(graph, root, at) || graph.ty(term) != graph.ty(other) {
                continue;
            }
            let Some(conv) = op::<TiledConv2d>(&graph.nodes[made_at]) else { continue };
            let Some(conv) = conv.with_residual() else { continue };
            let place = conv.operands().index(Operand::Residual).expect("just set");
            let mut inputs = graph.nodes[made_at].inputs.clone();
            let shape = graph.ty(root).shape.clone();
            inputs.insert(place, graph.reshape(other, &shape)?);
            run_at_sum(graph, made_at, at, Arc::new(conv), inputs);
            return Ok(true);
        }
    }
    Ok(false)
}

/// All weights that are there from the start are packed at once.
fn packs(graph: &mut Graph) -> Result<bool> {
    let ready = |node: &Node| {
        let pack = op::<TilePack>(node)?;
        let weight = graph.root(node.inputs[0]).0;
        matches!(graph.tensors[weight.0].origin, Origin::Slot(_)).then_some(*pack)
    };
    let found: Vec<(usize, TilePack)> =
        graph.nodes.iter().enumerate().filter_map(|(at, node)| Some((at, ready(node)?))).collect();
    if found.is_empty() {
        return Ok(false);
    }
    let together = |part: fn(&Node) -> TensorId| -> Vec<TensorId> {
        found.iter().map(|&(at, _)| part(&graph.nodes[at])).collect()
    };
    let node = Node {
        inputs: together(|node| node.inputs[0]),
        outputs: together(|node| node.outputs[0]),
        label: "weights".into(),
        op: Arc::new(TilePacks(found.iter().map(|&(_, pack)| pack).collect())),
    };
    let rest = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    let others = rest.filter(|(at, _)| !found.iter().any(|(pack, _)| pack == at));
    let nodes = std::iter::once(node).chain(others.map(|(_, node)| node)).collect();
    graph.set_nodes(nodes);
    Ok(true)
}

/// Replaces a node's operation and inputs, and adds the outputs that it has more than before.
fn rewrite(graph: &mut Graph, at: usize, op: TiledConv2d, inputs: Vec<TensorId>) -> Result<()> {
    let types: Vec<_> = inputs.iter().map(|&t| graph.ty(t)).collect();
    let outputs = crate::ops::Op::infer(&op, &types)?;
    for (output, ty) in outputs.into_iter().enumerate() {
        match graph.nodes[at].outputs.get(output) {
            None => {
                let tensor = graph.add_tensor(ty, Origin::Node { node: at, output });
                graph.nodes[at].outputs.push(tensor);
            }
            // Moments of narrower slices.
            Some(&moments) if output > op.extras.siblings => graph.tensors[moments.0].ty = ty,
            Some(&known) if *graph.ty(known) == ty => {}
            Some(_) => return Err(Error::operation(&graph.nodes[at].label, "changes its result")),
        }
    }
    let node = &mut graph.nodes[at];
    node.op = Arc::new(op);
    node.inputs = inputs;
    Ok(())
}

/// Whether two tensors are the same bytes under the same shape.
fn same(graph: &Graph, first: TensorId, second: TensorId) -> bool {
    graph.root(first) == graph.root(second) && graph.ty(first) == graph.ty(second)
}

/// Convolutions that differ in their weights alone become one launch, where the last of them stands.
fn siblings(graph: &mut Graph) -> Result<bool> {
    for first in 0..graph.nodes.len() {
        let Some(conv) = op::<TiledConv2d>(&graph.nodes[first]) else { continue };
        let operands = conv.operands();
        let own = [operands.index(Operand::Weight), operands.index(Operand::Bias)];
        for second in first + 1..graph.nodes.len() {
            let (one, other) = (&graph.nodes[first], &graph.nodes[second]);
            // Whoever reads the first must stand behind the place of both.
            if other.inputs.iter().any(|&t| one.outputs.contains(&graph.root(t).0)) {
                break;
            }
            let Some(joined) = op(other).and_then(|other| conv.with_sibling(other)) else {
                continue;
            };
            let alike = (0..operands.count()).all(|index| {
                own.contains(&Some(index)) || same(graph, one.inputs[index], other.inputs[index])
            });
            if !alike {
                continue;
            }
            let mut inputs = one.inputs.clone();
            inputs.extend(own.into_iter().flatten().map(|index| other.inputs[index]));
            let outputs = [&one.outputs[..], &other.outputs].concat();
            let label = one.label.clone();
            graph.nodes[second] = Node { op: Arc::new(joined), inputs, outputs, label };
            graph.remove_node(first);
            return Ok(true);
        }
    }
    Ok(false)
}

/// `conv2d(…) + conv2d1x1(x)` sums over both at once.
fn shortcut(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let Some(conv) = op::<TiledConv2d>(&graph.nodes[at]) else { continue };
        let Some(residual) = conv.operands().index(Operand::Residual) else { continue };
        let added = graph.nodes[at].inputs[residual];
        let Some((made_at, 0)) = maker(graph, added) else { continue };
        if !uses.only_reader(graph, added, at) {
            continue;
        }
        let Some(joined) = op(&graph.nodes[made_at]).and_then(|other| conv.with_shortcut(other))
        else {
            continue;
        };
        let mut inputs = graph.nodes[at].inputs.clone();
        inputs.remove(residual);
        // Its sources, weight and bias, in the order of a plain convolution.
        inputs.extend(&graph.nodes[made_at].inputs);
        rewrite(graph, at, joined, inputs)?;
        graph.remove_node(made_at);
        return Ok(true);
    }
    Ok(false)
}

/// A normalisation of what convolutions put out: the producers leave moments. Where only convolutions read
/// it, they do the rest while they load; else it is written without asking for statistics first.
fn normalisation(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let (norm, after) = match (op(node), op(node)) {
            (Some(&GroupNorm { groups, eps, silu }), _) => (Norm { groups, eps }, Some(silu)),
            (_, Some(&GroupNormAffine { groups, eps })) => (Norm { groups, eps }, None),
            _ => continue,
        };
        let Some(readers) = uses.readers(graph, node.outputs[0]) else { continue };
        let unread = node.outputs[1..]
            .iter()
            .all(|&t| uses.readers(graph, t).is_some_and(|readers| readers.is_empty()));
        let (sources, affine) = node.inputs.split_at(node.inputs.len() - 2);
        let producers: Option<Vec<usize>> =
            sources.iter().map(|&source| producer(graph, source)).collect();
        let Some(producers) = producers else { continue };
        let rewritten: Option<Vec<_>> =
            readers.iter().map(|&reader| taken_in(graph, reader, at, norm, after)).collect();
        let rewritten = rewritten.filter(|all| unread && !all.is_empty());
        if rewritten.is_none() && after.is_none() {
            continue;
        }
        let (sources, affine) = (sources.to_vec(), affine.to_vec());
        let channels: Vec<usize> =
            sources.iter().map(|&t| *graph.ty(t).shape.last().expect("channels")).collect();
        let width = channels.iter().sum::<usize>() / norm.groups;
        let mut moments = Vec::new();
        for (source, &producer) in producers.iter().enumerate() {
            let conv = op::<TiledConv2d>(&graph.nodes[producer]).expect("asked above");
            // A slice belongs to one group, for each of those that read it.
            let offset = if source == 0 { 0 } else { channels[0] };
            let parts = [width, offset, channels[source], conv.extras.moments];
            let slice = parts.into_iter().fold(SLICE_LIMIT, gcd);
            let (conv, inputs) = (conv.with_moments(slice), graph.nodes[producer].inputs.clone());
            let last = 1 + conv.extras.siblings;
            rewrite(graph, producer, conv, inputs)?;
            moments.push(graph.nodes[producer].outputs[last]);
        }
        let Some(rewritten) = rewritten else {
            let node = &mut graph.nodes[at];
            let norm = *op::<GroupNorm>(node).expect("asked above");
            node.op = Arc::new(GroupNormOfMoments(norm));
            node.inputs.extend(moments);
            return Ok(true);
        };
        for (reader, conv) in readers.into_iter().zip(rewritten) {
            let inputs = &graph.nodes[reader].inputs;
            // Without the normalised source, or the affine behind the sources.
            let rest = if after.is_some() { 1 } else { sources.len() + 1 };
            let plain = conv.operands().count() - sources.len();
            let (own, extras) = inputs[rest..].split_at(plain);
            // The reader may see the pixels under another shape.
            let shape = &graph.ty(inputs[0]).shape[..3].to_vec();
            let (own, extras) = (own.to_vec(), extras.to_vec());
            let mut inputs = Vec::new();
            for (&source, &channels) in sources.iter().zip(&channels) {
                let seen = [&shape[..], &[channels]].concat();
                inputs.push(graph.reshape(source, &seen)?);
            }
            inputs.extend(own);
            inputs.extend(moments.iter().chain(&affine));
            inputs.extend(extras);
            rewrite(graph, reader, conv, inputs)?;
        }
        graph.remove_node(at);
        return Ok(true);
    }
    Ok(false)
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

/// A reader of the normalisation at `norm_at`, with the normalisation taken in; `None` where it can't.
/// `after` is whether SiLU follows a normalisation that is written; one that is an affine operand
/// already is followed by what the reader says.
fn taken_in(
    graph: &Graph,
    reader: usize,
    norm_at: usize,
    norm: Norm,
    after: Option<bool>,
) -> Option<TiledConv2d> {
    let (node, normed) = (&graph.nodes[reader], &graph.nodes[norm_at]);
    let conv = op::<TiledConv2d>(node)?;
    let (operands, result) = (conv.operands(), normed.outputs[0]);
    let second = normed.inputs.len() == 4;
    let once = node.inputs.iter().filter(|&&t| graph.root(t).0 == result).count() == 1;
    if !once || !conv.is_forward() || conv.extras.norm.is_some() {
        return None;
    }
    let Some(silu) = after else {
        let reads = operands.index(Operand::Affine).map(|index| node.inputs[index]);
        let sources = &normed.inputs[..normed.inputs.len() - 2];
        let alike = sources.iter().zip(&node.inputs).all(|(&a, &b)| graph.root(a) == graph.root(b));
        let fits = reads == Some(result) && operands.second == second && alike;
        return fits.then(|| conv.normalised(norm, second, operands.silu));
    };
    let whole = graph.ty(node.inputs[0]).elements() == graph.ty(result).elements();
    let plain = !(operands.second || operands.affine || operands.silu || operands.upsample);
    let fits = graph.root(node.inputs[0]).0 == result && whole && plain;
    fits.then(|| conv.normalised(norm, second, silu))
}
