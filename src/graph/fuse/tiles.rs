//! What convolutions as kernels run them take in beyond the plain operation: others of the same
//! sources, forward and for their weights' gradients, a 1×1 shortcut, and normalisations
//! ([`super::tiles_norm`]). Each saves a launch.

use super::convolution::run_at_sum;
use super::{Uses, maker, op, patches, tiles_norm};
use crate::error::{Error, Result};
use crate::graph::{Graph, Node, Origin, TensorId};
use crate::ops::activation::Activation;
use crate::ops::combine::Combine;
use crate::ops::conv2d::{Conv2dWgrad, ExtraOutput, Operand, TilePack, TilePacks, TiledConv2d};
use crate::ops::{Build, Op};
use std::sync::Arc;

pub(super) fn rules(graph: &mut Graph) -> Result<bool> {
    // Weights last, when it is known in which forms they are read.
    Ok(siblings(graph)
        || sum(graph)?
        || pair(graph)?
        || shortcut(graph)?
        || limit(graph)
        || tiles_norm::rules(graph)?
        || patches::rules(graph)?
        || packs(graph))
}

/// What is added to a convolution's result alone becomes its residual; it then runs where the sum
/// stood. Sums behind gradients are left to this rule.
fn sum(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(&Combine::Sum(scales)) = op(node) else { continue };
        for (of_term, of_other) in [(0, 1), (1, 0)] {
            if scales[of_term] != 1.0 {
                continue;
            }
            let (term, other) = (node.inputs[of_term], node.inputs[of_other]);
            let (root, offset) = graph.root(term);
            let Some((made_at, 0)) = maker(graph, root) else { continue };
            let whole = offset == 0 && graph.ty(term).elements() == graph.ty(root).elements();
            if !whole || !uses.reads_alone(graph, root, at) || graph.ty(term) != graph.ty(other) {
                continue;
            }
            let Some(conv) = op::<TiledConv2d>(&graph.nodes[made_at]) else { continue };
            let Some(conv) = conv.with_residual(scales[of_other]) else { continue };
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

/// Clipping of what a convolution alone makes is done where it stores.
fn limit(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let (Some(&Activation::Clip { limit }), [made]) = (op(node), &node.inputs[..]) else {
            continue;
        };
        // It may be seen under another shape.
        let (root, offset) = graph.root(*made);
        let whole = offset == 0 && graph.ty(root).elements() == graph.ty(*made).elements();
        let Some((made_at, 0)) = maker(graph, root) else { continue };
        if !whole || !uses.reads_alone(graph, root, at) {
            continue;
        }
        let Some(conv) = op::<TiledConv2d>(&graph.nodes[made_at]) else { continue };
        let Some(conv) = conv.with_limit(limit) else { continue };
        let inputs = graph.nodes[made_at].inputs.clone();
        run_at_sum(graph, made_at, at, Arc::new(conv), inputs);
        return true;
    }
    false
}

/// All weights that are there from the start are packed at once.
fn packs(graph: &mut Graph) -> bool {
    let ready = |node: &Node| {
        let pack = op::<TilePack>(node)?;
        let slot = |&weight: &TensorId| {
            matches!(graph.tensors[graph.root(weight).0.0].origin, Origin::Slot(_))
        };
        node.inputs.iter().all(slot).then_some(*pack)
    };
    let nodes = graph.nodes.iter().enumerate();
    let mut found: Vec<(usize, TilePack)> =
        nodes.filter_map(|(at, node)| Some((at, ready(node)?))).collect();
    if found.is_empty() {
        return false;
    }
    // A launch packs weights of one type.
    found.sort_by_key(|(_, pack)| pack.is_half());
    let together = |part: fn(&Node) -> &[TensorId]| -> Vec<TensorId> {
        found.iter().flat_map(|&(at, _)| part(&graph.nodes[at]).iter().copied()).collect()
    };
    let node = Node {
        inputs: together(|node| &node.inputs),
        outputs: together(|node| &node.outputs),
        label: "weights".into(),
        op: Arc::new(TilePacks(found.iter().map(|&(_, pack)| pack).collect())),
    };
    let rest = std::mem::take(&mut graph.nodes).into_iter().enumerate();
    let others = rest.filter(|(at, _)| !found.iter().any(|(pack, _)| pack == at));
    let nodes = std::iter::once(node).chain(others.map(|(_, node)| node)).collect();
    graph.set_nodes(nodes);
    true
}

/// Takes a weight's packing out unless someone still reads it.
pub(super) fn remove_unread(graph: &mut Graph, pack: usize) {
    let unread = |&t: &TensorId| !graph.nodes.iter().any(|node| node.inputs.contains(&t));
    if graph.nodes[pack].outputs.iter().all(unread) {
        graph.remove_node(pack);
    }
}

/// Replaces a convolution and its inputs, and adds the outputs that it has more than before.
pub(super) fn rewrite(
    graph: &mut Graph,
    at: usize,
    conv: TiledConv2d,
    inputs: Vec<TensorId>,
) -> Result<()> {
    let types: Vec<_> = inputs.iter().map(|&t| graph.ty(t)).collect();
    let mut types = Op::infer(&conv, &types)?.into_iter();
    let node = &graph.nodes[at];
    let before = op::<TiledConv2d>(node).map(TiledConv2d::extra_outputs).unwrap_or_default();
    let known: Vec<(ExtraOutput, TensorId)> =
        before.into_iter().zip(node.outputs[1..].iter().copied()).collect();
    if types.next().as_ref() != Some(graph.ty(node.outputs[0])) {
        return Err(Error::operation(&node.label, "changes its result"));
    }
    let mut outputs = vec![node.outputs[0]];
    for (extra, ty) in conv.extra_outputs().into_iter().zip(types) {
        let origin = Origin::Node { node: at, output: outputs.len() };
        outputs.push(match known.iter().find(|(other, _)| *other == extra) {
            None => graph.add_tensor(ty, origin),
            Some(&(_, tensor)) => {
                // Moments may be of narrower slices.
                graph.tensors[tensor.0].ty = ty;
                graph.tensors[tensor.0].origin = origin;
                tensor
            }
        });
    }
    let node = &mut graph.nodes[at];
    node.op = Arc::new(conv);
    node.inputs = inputs;
    node.outputs = outputs;
    Ok(())
}

/// Whether two tensors are the same bytes under the same shape.
fn same(graph: &Graph, first: TensorId, second: TensorId) -> bool {
    graph.root(first) == graph.root(second) && graph.ty(first) == graph.ty(second)
}

/// Two convolutions, or their weights' gradients, as one operation, and which inputs of the second follow
/// those of the first.
fn joined(one: &Node, other: &Node) -> Option<(Arc<dyn Op>, Vec<usize>)> {
    if let Some(conv) = op::<TiledConv2d>(one) {
        let operands = conv.operands();
        let own = [Operand::Weight, Operand::Bias].into_iter();
        let own = own.filter_map(|operand| operands.index(operand)).collect();
        return Some((Arc::new(conv.with_sibling(op(other)?)?), own));
    }
    let wgrad: &Conv2dWgrad = op(one)?;
    Some((Arc::new(wgrad.with_sibling(op(other)?)?), vec![wgrad.operands.weight_index()]))
}

/// Convolutions that differ in their weights alone become one launch, where the last of them stands, and
/// so do those weights' gradients.
fn siblings(graph: &mut Graph) -> bool {
    for first in 0..graph.nodes.len() {
        let one = &graph.nodes[first];
        if op::<TiledConv2d>(one).is_none() && op::<Conv2dWgrad>(one).is_none() {
            continue;
        }
        for second in first + 1..graph.nodes.len() {
            let other = &graph.nodes[second];
            // Whoever reads the first must stand behind the place of both.
            if other.inputs.iter().any(|&t| one.outputs.contains(&graph.root(t).0)) {
                break;
            }
            let Some((op, own)) = joined(one, other) else { continue };
            let alike = (0..other.inputs.len()).all(|index| {
                let (first, second) = (one.inputs[index], other.inputs[index]);
                let like = own.contains(&index) && graph.ty(first) == graph.ty(second);
                like || same(graph, first, second)
            });
            if !alike {
                continue;
            }
            let mut inputs = one.inputs.clone();
            inputs.extend(own.into_iter().map(|index| other.inputs[index]));
            let outputs = [&one.outputs[..], &other.outputs].concat();
            let label = one.label.clone();
            graph.nodes[second] = Node { op, inputs, outputs, label };
            graph.remove_node(first);
            return true;
        }
    }
    false
}

/// The convolution that made the residual of the one at `at`, if nothing else reads that.
fn residual(graph: &Graph, uses: &Uses, at: usize) -> Option<usize> {
    let conv = op::<TiledConv2d>(&graph.nodes[at])?;
    let added = graph.nodes[at].inputs[conv.operands().index(Operand::Residual)?];
    // It may be seen under another shape.
    let (root, offset) = graph.root(added);
    let whole = offset == 0 && graph.ty(root).elements() == graph.ty(added).elements();
    let (made_at, output) = maker(graph, root)?;
    (whole && output == 0 && uses.reads_alone(graph, root, at)).then_some(made_at)
}

/// The sum of two 1×1 convolutions without bias, as gradients of queries, keys and values are added, is one
/// of both sources, whose weights are packed together.
fn pair(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let Some(made_at) = residual(graph, &uses, at) else { continue };
        let both = [made_at, at].map(|node| &graph.nodes[node]);
        let [Some(made), Some(conv)] = both.map(op::<TiledConv2d>) else { continue };
        let Some(conv) = conv.with_pair(made) else { continue };
        let packed = [made, &conv].map(|_| made.operands().weight_index());
        let packs = [0, 1].map(|which| maker(graph, both[which].inputs[packed[which]]));
        let [Some((first, 0)), Some((second, 0))] = packs else { continue };
        let weights = [first, second].map(|pack| graph.nodes[pack].inputs[0]);
        let sources = both.map(|node| node.inputs[0]);
        let label = both[0].label.clone();
        let end = graph.nodes.len();
        let packed = graph.push_labelled(Arc::new(conv.pack()), &weights, &label)?[0];
        let mut nodes = std::mem::take(&mut graph.nodes);
        nodes[made_at] = nodes.remove(end);
        nodes[at].op = Arc::new(conv);
        nodes[at].inputs = vec![sources[0], sources[1], packed];
        graph.set_nodes(nodes);
        for pack in [first.max(second), first.min(second)] {
            remove_unread(graph, pack);
        }
        return Ok(true);
    }
    Ok(false)
}

/// `conv2d(…) + conv2d1x1(x)` sums over both at once.
fn shortcut(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let Some(made_at) = residual(graph, &uses, at) else { continue };
        let both = [at, made_at].map(|node| op::<TiledConv2d>(&graph.nodes[node]));
        let [Some(conv), Some(made)] = both else { continue };
        let Some(joined) = conv.with_shortcut(made) else { continue };
        let residual = conv.operands().index(Operand::Residual).expect("asked above");
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
