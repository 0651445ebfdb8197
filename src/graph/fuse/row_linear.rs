//! Linear layers of rows become operations of their own, one for all that read the same rows, and so do their
//! gradients: the layers of a time embedding, and its projections, one in each residual block.

use super::{maker, op};
use crate::error::Result;
use crate::graph::{Build, Graph, Node, Origin, TensorId};
use crate::ops::combine::Combine;
use crate::ops::conv2d::{Conv2d, Conv2dDgrad, Conv2dWgrad};
use crate::ops::row_linear::{MOST_LAYERS, RowLinear};
use std::sync::Arc;

/// Of more rows the gradients of weights are left to convolutions, which split such sums.
const MOST_ROWS: usize = 1024;

/// Of several layers.
pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    Ok(layers(graph, 2)? || gradient(graph)? || weights(graph, 2)?)
}

/// Of the layers that these rules, and those of convolutions, left alone.
pub(super) fn single(graph: &mut Graph) -> Result<bool> {
    Ok(layers(graph, 1)? || weights(graph, 1)? || alone(graph)?)
}

/// The rows [R, K] that a tensor [R, 1, 1, K] shows; an image of one pixel is none.
fn rows(graph: &Graph, tensor: TensorId) -> Option<TensorId> {
    let (root, offset) = graph.root(tensor);
    let &[count, 1, 1, width] = &graph.ty(tensor).shape[..] else { return None };
    (offset == 0 && graph.ty(root).shape == [count, width]).then_some(root)
}

/// Whether all who read a result of a layer do so by a view of it, so that its own shape does not matter.
fn only_viewed(graph: &Graph, result: TensorId) -> bool {
    graph.nodes.iter().all(|node| !node.inputs.contains(&result))
}

/// A tensor without its dimensions of one pixel.
fn flat(graph: &mut Graph, tensor: TensorId) -> Result<TensorId> {
    match graph.ty(tensor).shape[..] {
        [first, 1, 1, last] | [first, last, 1, 1] => graph.reshape(tensor, &[first, last]),
        _ => Ok(tensor),
    }
}

/// Nodes of one kind with the same rows, at least so many and as many as one operation takes; the first that `fit`.
fn alike(
    graph: &Graph,
    least: usize,
    rows_of: impl Fn(&Node) -> Option<TensorId>,
    fit: impl Fn(&[usize]) -> bool,
) -> Option<Vec<usize>> {
    let found: Vec<(usize, TensorId)> = graph
        .nodes
        .iter()
        .enumerate()
        .filter_map(|(at, node)| Some((at, rows_of(node)?)))
        .collect();
    found.iter().find_map(|&(_, rows)| {
        let same = found.iter().filter(|&&(_, other)| other == rows).map(|&(at, _)| at);
        let nodes: Vec<usize> = same.take(MOST_LAYERS).collect();
        (nodes.len() >= least && fit(&nodes)).then_some(nodes)
    })
}

/// Puts `node` at `at` and takes the others of `joined` out. Results lose their dimensions of one pixel.
fn replace(graph: &mut Graph, joined: &[usize], at: usize, node: Node) {
    for &output in &node.outputs {
        let shape = &mut graph.tensors[output.0].ty.shape;
        if let [first, 1, 1, last] | [first, last, 1, 1] = shape[..] {
            *shape = vec![first, last];
        }
    }
    let mut nodes = std::mem::take(&mut graph.nodes);
    nodes[at] = node;
    let rest = nodes.into_iter().enumerate();
    let kept = rest.filter(|(index, _)| *index == at || !joined.contains(index));
    graph.set_nodes(kept.map(|(_, node)| node).collect());
}

/// Layers with weights and biases that are there from the start run where the first of them stands.
fn layers(graph: &mut Graph, least: usize) -> Result<bool> {
    let slot = |t: TensorId| matches!(graph.tensors[graph.root(t).0.0].origin, Origin::Slot(_));
    let layer = |node: &Node| {
        let plain = op(node) == Some(&Conv2d::pointwise(true));
        let &[x, weight, bias] = &node.inputs[..] else { return None };
        let fits = |_: &TensorId| {
            plain && slot(weight) && slot(bias) && only_viewed(graph, node.outputs[0])
        };
        rows(graph, x).filter(fits)
    };
    let Some(nodes) = alike(graph, least, layer, |_| true) else { return Ok(false) };
    let x = rows(graph, graph.nodes[nodes[0]].inputs[0]).expect("asked above");
    let (mut weights, mut biases, mut outputs) = (Vec::new(), Vec::new(), Vec::new());
    for &at in &nodes {
        let (weight, bias) = (graph.nodes[at].inputs[1], graph.nodes[at].inputs[2]);
        weights.push(flat(graph, weight)?);
        biases.push(bias);
        outputs.push(graph.nodes[at].outputs[0]);
    }
    let inputs = [vec![x], weights, biases].concat();
    let label = graph.nodes[nodes[0]].label.clone();
    let node = Node { op: Arc::new(RowLinear::Forward), inputs, outputs, label };
    replace(graph, &nodes, nodes[0], node);
    Ok(true)
}

/// The gradients of one or several layers' rows, if only the node `at` reads them: who makes them,
/// gradients of results, weights.
fn parts(graph: &Graph, tensor: TensorId, at: usize) -> Option<(usize, [Vec<TensorId>; 2])> {
    let (root, offset) = graph.root(tensor);
    let (made_at, _) = maker(graph, root)?;
    let reads = |node: &Node| node.inputs.iter().filter(|&&t| graph.root(t).0 == root).count();
    let readers: usize = graph.nodes.iter().map(reads).sum();
    let alone =
        readers == 1 && reads(&graph.nodes[at]) == 1 && graph.tensors[root.0].bound.is_none();
    let node = &graph.nodes[made_at];
    if offset > 0 || !alone || graph.ty(tensor).shape.len() != 2 {
        return None;
    }
    if op(node) == Some(&RowLinear::Dgrad) {
        let (gradients, weights) = node.inputs.split_at(node.inputs.len() / 2);
        return Some((made_at, [gradients.to_vec(), weights.to_vec()]));
    }
    let (dy, weight) = of_layer(graph, node)?;
    Some((made_at, [vec![dy], vec![weight]]))
}

/// Gradient of the result and weight, if a node makes the gradient of one layer's rows.
fn of_layer(graph: &Graph, node: &Node) -> Option<(TensorId, TensorId)> {
    let plain = Conv2dDgrad { stride: [1, 1], padding: [0; 4], input: [1, 1] };
    let &[dy, weight] = &node.inputs[..] else { return None };
    let pointwise = graph.ty(weight).shape.get(2..) == Some(&[1, 1]);
    (op(node) == Some(&plain) && pointwise).then_some((dy, weight))
}

/// The sum of two layers' gradients is one operation, which takes in the next.
fn gradient(graph: &mut Graph) -> Result<bool> {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        if op(node) != Some(&Combine::ADD) {
            continue;
        }
        let each = [node.inputs[0], node.inputs[1]].map(|term| parts(graph, term, at));
        let [Some((one, first)), Some((other, second))] = each else { continue };
        let [gradients, weights] = [0, 1].map(|which| [&first[which][..], &second[which]].concat());
        if weights.len() > MOST_LAYERS {
            continue;
        }
        let mut inputs = gradients;
        inputs.extend(weights);
        for input in &mut inputs {
            *input = flat(graph, *input)?;
        }
        let (outputs, label) = (graph.nodes[at].outputs.clone(), graph.nodes[one].label.clone());
        let node = Node { op: Arc::new(RowLinear::Dgrad), inputs, outputs, label };
        replace(graph, &[one, other, at], at, node);
        return Ok(true);
    }
    Ok(false)
}

/// The gradient of a layer's rows that was joined with no other.
fn alone(graph: &mut Graph) -> Result<bool> {
    let found = graph.nodes.iter().enumerate().find_map(|(at, node)| {
        let (dy, weight) = of_layer(graph, node)?;
        let fits = rows(graph, dy).is_some() && only_viewed(graph, node.outputs[0]);
        fits.then_some((at, dy, weight))
    });
    let Some((at, dy, weight)) = found else { return Ok(false) };
    let inputs = vec![flat(graph, dy)?, flat(graph, weight)?];
    let node = Node { op: Arc::new(RowLinear::Dgrad), inputs, ..graph.nodes[at].clone() };
    replace(graph, &[at], at, node);
    Ok(true)
}

/// Gradients of weights are made where the last of them stands, unless one is read before.
fn weights(graph: &mut Graph, least: usize) -> Result<bool> {
    let plain = Conv2dWgrad::new([1, 1], [0; 4], [1, 1], true);
    let layer = |node: &Node| {
        let &[x, _] = &node.inputs[..] else { return None };
        let few = |rows: &TensorId| graph.ty(*rows).shape[0] <= MOST_ROWS;
        rows(graph, x).filter(|rows| op(node) == Some(&plain) && few(rows))
    };
    let in_time = |nodes: &[usize]| {
        let made = |t: &TensorId| nodes.iter().any(|&at| graph.nodes[at].outputs.contains(t));
        let between = &graph.nodes[nodes[0]..nodes[nodes.len() - 1]];
        let mut read = between.iter().flat_map(|node| &node.inputs);
        !read.any(|&input| made(&graph.root(input).0))
    };
    let Some(nodes) = alike(graph, least, layer, in_time) else { return Ok(false) };
    let (first, last) = (nodes[0], nodes[nodes.len() - 1]);
    let mut inputs = vec![rows(graph, graph.nodes[first].inputs[0]).expect("asked above")];
    let (mut weights, mut biases) = (Vec::new(), Vec::new());
    for &at in &nodes {
        let gradient = graph.nodes[at].inputs[1];
        inputs.push(flat(graph, gradient)?);
        weights.push(graph.nodes[at].outputs[0]);
        biases.push(graph.nodes[at].outputs[1]);
    }
    let (outputs, label) = ([weights, biases].concat(), graph.nodes[last].label.clone());
    let node = Node { op: Arc::new(RowLinear::Wgrad), inputs, outputs, label };
    replace(graph, &nodes, last, node);
    Ok(true)
}
