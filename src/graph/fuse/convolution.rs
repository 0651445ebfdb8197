//! What convolutions take in: a concatenation, an upsampling and a normalisation in front of them,
//! sums behind them.

use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, Node, Origin, TensorId};
use crate::ops::combine::Combine;
use crate::ops::concat::{Concat, SliceChannels};
use crate::ops::conv2d::{Conv2d, Conv2dWgrad, Operand, Operands};
use crate::ops::group_norm::{GroupNorm, GroupNormAffine, GroupNormGrad};
use crate::ops::resample::UpsampleNearest2d;
use crate::ops::{Build, Op};
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(sum(graph) || concatenation(graph) || upsampling(graph) || normalisation(graph)?)
}

/// `conv2d(…) + row` and `conv2d(…) + map` become epilogues of the convolution, which then runs
/// where the sum stood: all that it reads exists by then.
fn sum(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        if op(node) != Some(&Combine::ADD) {
            continue;
        }
        for (term, other) in [(node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])] {
            let (root, offset) = graph.root(term);
            let Some((conv_at, 0)) = maker(graph, root) else { continue };
            let Some(conv) = op::<Conv2d>(&graph.nodes[conv_at]) else { continue };
            let whole = offset == 0 && graph.ty(term).elements() == graph.ty(root).elements();
            if !whole || !uses.reads_alone(graph, root, index) || graph.root(other).0 == root {
                continue;
            }
            let (mut conv, shape) = (conv.clone(), graph.ty(root).shape.clone());
            let operand = match &graph.ty(other).shape[..] {
                _ if graph.ty(other).elements() == graph.ty(root).elements()
                    && graph.ty(other).shape == graph.ty(term).shape =>
                {
                    Operand::Residual
                }
                [rows, channels] if (*rows == 1 || *rows == shape[0]) && *channels == shape[3] => {
                    Operand::Shift
                }
                _ => continue,
            };
            let flag = match operand {
                Operand::Residual => &mut conv.operands.residual,
                _ => &mut conv.operands.shift,
            };
            if std::mem::replace(flag, true) {
                continue;
            }
            let added = match operand {
                Operand::Residual => graph.reshape(other, &shape).expect("the same elements"),
                _ => other,
            };
            let at = conv.index(operand).expect("just set");
            let mut inputs = graph.nodes[conv_at].inputs.clone();
            inputs.insert(at, added);
            run_at_sum(graph, conv_at, index, Arc::new(conv), inputs);
            return true;
        }
    }
    false
}

/// Lets the convolution at `conv_at`, which makes the sum of the node `at` too now, run there.
pub(super) fn run_at_sum(
    graph: &mut Graph,
    conv_at: usize,
    at: usize,
    op: Arc<dyn Op>,
    inputs: Vec<TensorId>,
) {
    let (made, result) = (graph.nodes[conv_at].outputs[0], graph.nodes[at].outputs[0]);
    let label = graph.nodes[conv_at].label.clone();
    graph.nodes[at] = Node { op, inputs, outputs: vec![made], label };
    // The sum may have had another shape than the convolution.
    graph.tensors[made.0].bound = graph.tensors[result.0].bound.take();
    graph.tensors[result.0].origin = Origin::Part { of: made, offset: 0 };
    graph.remove_node(conv_at);
}

/// A concatenation that only convolutions, normalisations and their gradients read is never written.
fn concatenation(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        if op(node) != Some(&Concat::PLAIN) {
            continue;
        }
        let (sources, joined) = ([node.inputs[0], node.inputs[1]], node.outputs[0]);
        let Some(readers) = uses.readers(graph, joined) else { continue };
        let takes = |&reader: &usize| {
            let node = &graph.nodes[reader];
            let once = node.inputs.iter().filter(|&&t| graph.root(t).0 == joined).count() == 1;
            let norm = op::<GroupNorm>(node).is_some() || op::<GroupNormAffine>(node).is_some();
            let first = node.inputs[0] == joined;
            once && match operands(node) {
                Some(operands) => first && !operands.second,
                None if norm => first && node.inputs.len() == 3,
                None => split_gradient(graph, &uses, reader, sources, joined).is_some(),
            }
        };
        if readers.is_empty() || !readers.iter().all(takes) {
            continue;
        }
        let mut removed = vec![index];
        for reader in readers {
            let halves = split_gradient(graph, &uses, reader, sources, joined);
            let node = &mut graph.nodes[reader];
            let at = usize::from(halves.is_some());
            node.inputs[at] = sources[0];
            node.inputs.insert(at + 1, sources[1]);
            set_operands(node, |operands| operands.second = true);
            if let Some(halves) = halves {
                let parts = halves.map(|half| graph.nodes[half].outputs[0]);
                graph.nodes[reader].outputs.splice(..1, parts);
                removed.extend(halves);
            }
        }
        let nodes = std::mem::take(&mut graph.nodes).into_iter().enumerate();
        graph.set_nodes(nodes.filter(|(at, _)| !removed.contains(at)).map(|(_, n)| n).collect());
        return true;
    }
    false
}

/// The nodes that cut the gradient of a concatenation into those of its sources, where `reader` is the
/// gradient of a normalisation of it and nothing else reads what it makes.
fn split_gradient(
    graph: &Graph,
    uses: &Uses,
    reader: usize,
    sources: [TensorId; 2],
    joined: TensorId,
) -> Option<[usize; 2]> {
    let node = &graph.nodes[reader];
    let grad = op::<GroupNormGrad>(node)?;
    let plain = !grad.rows && node.inputs.len() == 5 + grad.residuals && node.inputs[1] == joined;
    let halves = uses.readers(graph, node.outputs[0])?;
    let [one, other] = halves[..] else { return None };
    let [first, second] = sources.map(|t| *graph.ty(t).shape.last().expect("channels"));
    let cuts = [SliceChannels::plain(0, first), SliceChannels::plain(first, second)];
    let are = |halves: [usize; 2]| {
        plain && halves.iter().zip(&cuts).all(|(&half, cut)| op(&graph.nodes[half]) == Some(cut))
    };
    [[one, other], [other, one]].into_iter().find(|&halves| are(halves))
}

/// How a convolution, or the gradient of its weight, reads its sources.
fn operands(node: &Node) -> Option<Operands> {
    let wgrad = || op::<Conv2dWgrad>(node).map(|wgrad| wgrad.operands);
    op::<Conv2d>(node).map(|conv| conv.operands).or_else(wgrad)
}

/// Changes what [`operands`] says.
fn set_operands(node: &mut Node, change: impl Fn(&mut Operands)) {
    if let Some(conv) = op::<Conv2d>(node) {
        let mut conv = conv.clone();
        change(&mut conv.operands);
        node.op = Arc::new(conv);
    } else if let Some(wgrad) = op::<Conv2dWgrad>(node) {
        let mut wgrad = wgrad.clone();
        change(&mut wgrad.operands);
        node.op = Arc::new(wgrad);
    }
}

/// Nearest upsampling by two that only convolutions and their gradients read becomes an index rule.
fn upsampling(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(UpsampleNearest2d { factor: 2, scale: 1.0 }) = op(node) else { continue };
        let (source, enlarged) = (node.inputs[0], node.outputs[0]);
        let Some(readers) = uses.readers(graph, enlarged) else { continue };
        let plain = |&reader: &usize| reads_plainly(graph, reader, enlarged);
        if readers.is_empty() || !readers.iter().all(plain) {
            continue;
        }
        for reader in readers {
            let node = &mut graph.nodes[reader];
            node.inputs[0] = source;
            set_operands(node, |operands| operands.upsample = true);
        }
        graph.remove_node(index);
        return true;
    }
    false
}

/// A normalisation that one convolution reads is applied while that convolution loads. Where
/// several read it, or a gradient does, writing it once is cheaper.
fn normalisation(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(&GroupNorm { groups, eps, silu }) = op(node) else { continue };
        let (normed, statistics) = (node.outputs[0], node.outputs[1]);
        let (Some(readers), Some(gradients)) =
            (uses.readers(graph, normed), uses.readers(graph, statistics))
        else {
            continue;
        };
        let [reader] = readers[..] else { continue };
        if !gradients.is_empty() || !plain_reader(graph, reader, normed) {
            continue;
        }
        let (inputs, label) = (node.inputs.clone(), node.label.clone());
        let sources = &inputs[..inputs.len() - 2];
        let op_affine = Arc::new(GroupNormAffine { groups, eps });
        let end = graph.nodes.len();
        let affine = graph.push_labelled(op_affine, &inputs, &label)?[0];
        let mut nodes = std::mem::take(&mut graph.nodes);
        let made = nodes.remove(end);
        nodes[index] = made;
        let node = &mut nodes[reader];
        if let Some(conv) = op::<Conv2d>(node) {
            let mut conv = conv.clone();
            conv.operands.affine = true;
            conv.operands.silu = silu;
            conv.operands.second = sources.len() == 2;
            let rest: Vec<TensorId> = node.inputs[1..].to_vec();
            node.inputs = sources.to_vec();
            node.inputs.push(affine);
            node.inputs.extend(rest);
            node.op = Arc::new(conv);
        }
        graph.set_nodes(nodes);
        return Ok(true);
    }
    Ok(false)
}

/// Whether a node is a convolution that reads `tensor` as its one plain source.
pub(super) fn plain_reader(graph: &Graph, node: usize, tensor: TensorId) -> bool {
    op::<Conv2d>(&graph.nodes[node]).is_some() && reads_plainly(graph, node, tensor)
}

/// Whether a node is a convolution, or the gradient of its weight, and reads `tensor` as its one plain
/// source.
fn reads_plainly(graph: &Graph, node: usize, tensor: TensorId) -> bool {
    let node = &graph.nodes[node];
    let once = node.inputs.iter().filter(|&&t| graph.root(t).0 == tensor).count() == 1;
    operands(node).is_some_and(|operands| {
        once && node.inputs[0] == tensor
            && !(operands.second || operands.affine || operands.silu || operands.upsample)
    })
}
