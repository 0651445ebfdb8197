//! What convolutions take in: a concatenation, an upsampling and a normalisation in front of them,
//! sums behind them.

use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, Node, Origin, TensorId};
use crate::ops::Build;
use crate::ops::combine::Combine;
use crate::ops::concat::Concat;
use crate::ops::conv2d::{Conv2d, Operand};
use crate::ops::group_norm::{GroupNorm, GroupNormAffine};
use crate::ops::resample::UpsampleNearest2d;
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
            let alone = graph.tensors[root.0].bound.is_none()
                && uses.consumers.get(&root).is_some_and(|readers| readers[..] == [index]);
            if !whole || !alone || graph.root(other).0 == root {
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
            let result = graph.nodes[index].outputs[0];
            let label = graph.nodes[conv_at].label.clone();
            graph.nodes[index] = Node { op: Arc::new(conv), inputs, outputs: vec![root], label };
            // The sum may have had another shape than the convolution.
            graph.tensors[root.0].bound = graph.tensors[result.0].bound.take();
            graph.tensors[result.0].origin = Origin::Part { of: root, offset: 0 };
            graph.remove_node(conv_at);
            return true;
        }
    }
    false
}

/// A concatenation that only convolutions and normalisations read is never written.
fn concatenation(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        if op(node) != Some(&Concat::PLAIN) {
            continue;
        }
        let ([first, second], joined) = ([node.inputs[0], node.inputs[1]], node.outputs[0]);
        let Some(readers) = uses.readers(graph, joined) else { continue };
        let takes = |&reader: &usize| {
            let node = &graph.nodes[reader];
            let once = node.inputs.iter().filter(|&&t| graph.root(t).0 == joined).count() == 1;
            let norm = op::<GroupNorm>(node).is_some() || op::<GroupNormAffine>(node).is_some();
            let conv = op::<Conv2d>(node).is_some_and(|conv| !conv.operands.second);
            once && node.inputs[0] == joined && (conv || (norm && node.inputs.len() == 3))
        };
        if readers.is_empty() || !readers.iter().all(takes) {
            continue;
        }
        for reader in readers {
            let node = &mut graph.nodes[reader];
            node.inputs[0] = first;
            node.inputs.insert(1, second);
            if let Some(conv) = op::<Conv2d>(node) {
                let mut conv = conv.clone();
                conv.operands.second = true;
                node.op = Arc::new(conv);
            }
        }
        graph.remove_node(index);
        return true;
    }
    false
}

/// Nearest upsampling by two that only convolutions read becomes an index rule.
fn upsampling(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for index in 0..graph.nodes.len() {
        let node = &graph.nodes[index];
        let Some(UpsampleNearest2d { factor: 2, scale: 1.0 }) = op(node) else { continue };
        let (source, enlarged) = (node.inputs[0], node.outputs[0]);
        let Some(readers) = uses.readers(graph, enlarged) else { continue };
        let plain = |&reader: &usize| plain_reader(graph, reader, enlarged);
        if readers.is_empty() || !readers.iter().all(plain) {
            continue;
        }
        for reader in readers {
            let node = &mut graph.nodes[reader];
            node.inputs[0] = source;
            if let Some(conv) = op::<Conv2d>(node) {
                let mut conv = conv.clone();
                conv.operands.upsample = true;
                node.op = Arc::new(conv);
            }
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
    let node = &graph.nodes[node];
    let once = node.inputs.iter().filter(|&&t| graph.root(t).0 == tensor).count() == 1;
    op::<Conv2d>(node).is_some_and(|conv| {
        let operands = conv.operands;
        once && node.inputs[0] == tensor
            && !(operands.second || operands.affine || operands.silu || operands.upsample)
    })
}
