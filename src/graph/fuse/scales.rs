//! Factors of what convolutions with normalised weights make or read become factors of those weights,
//! which are made when weights change. Then the sum that is left is one that convolutions take in.

use super::magnitude::splice;
use super::{Uses, maker, op};
use crate::error::Result;
use crate::graph::{Graph, TensorId};
use crate::ops::Build;
use crate::ops::combine::Combine;
use crate::ops::concat::{Concat, PadChannels};
use crate::ops::conv2d::{Conv2d, Operand, Operands};
use crate::ops::fill::Fill;
use crate::ops::weight_norm::WeightNorm;
use std::sync::Arc;

/// s₀·a + s₁·conv2d(…), whose weight has a gain, becomes s₀·a + conv2d′(…).
pub(super) fn sums(graph: &mut Graph) -> bool {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(&Combine::Sum(mut scales)) = op(node) else { continue };
        for which in [0, 1] {
            if scales[which] == 1.0 {
                continue;
            }
            let made = maker_of_term(graph, &uses, at, which);
            let norm = made.and_then(|conv| own_norm(graph, &uses, conv));
            let Some((norm, whole)) = norm else { continue };
            let gain = whole.gain * scales[which];
            graph.nodes[norm].op = Arc::new(WeightNorm { gain, ..whole });
            scales[which] = 1.0;
            graph.nodes[at].op = Arc::new(Combine::Sum(scales));
            // The first of two convolutions takes in the other, and only a 1×1 can be taken in.
            if scales == [1.0, 1.0] && which == 1 && pointwise_term(graph, &uses, at) {
                graph.nodes[at].inputs.swap(0, 1);
            }
            return true;
        }
    }
    false
}

/// The plain convolution that makes input `which` of a sum alone, and for it alone.
fn maker_of_term(graph: &Graph, uses: &Uses, at: usize, which: usize) -> Option<usize> {
    let term = graph.nodes[at].inputs[which];
    let (made, 0) = maker(graph, term)? else { return None };
    let Operands { bias, shift, residual, .. } = op::<Conv2d>(&graph.nodes[made])?.operands;
    (uses.only_reader(graph, term, at) && !(bias || shift || residual)).then_some(made)
}

fn pointwise_term(graph: &Graph, uses: &Uses, at: usize) -> bool {
    maker_of_term(graph, uses, at, 0).is_some_and(|conv| {
        let node = &graph.nodes[conv];
        let weight = op::<Conv2d>(node).expect("it is one").operands.weight_index();
        graph.ty(node.inputs[weight]).shape[2..] == [1, 1]
    })
}

/// The normalisation that makes the weight of the convolution at `conv`, and of nothing else.
fn own_norm(graph: &Graph, uses: &Uses, conv: usize) -> Option<(usize, WeightNorm)> {
    let node = &graph.nodes[conv];
    let weight = node.inputs[op::<Conv2d>(node)?.operands.weight_index()];
    let (root, _) = graph.root(weight);
    let (norm, _) = maker(graph, root)?;
    let whole = *op::<WeightNorm>(&graph.nodes[norm])?;
    uses.reads_alone(graph, root, conv).then_some((norm, whole))
}

/// Constant factors of the channels that a 1×1 convolution reads, as those of a concatenation, become
/// factors of its weight's columns.
pub(super) fn columns(graph: &mut Graph) -> Result<bool> {
    let uses = Uses::of(graph);
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let Some(conv) = op::<Conv2d>(node) else { continue };
        let scaled = Operands { second: conv.operands.second, affine: true, ..Operands::default() };
        let (Some(affine), true) = (conv.index(Operand::Affine), conv.operands == scaled) else {
            continue;
        };
        let (place, label) = (conv.operands.weight_index(), node.label.clone());
        let weight = node.inputs[place];
        let &[outputs, inputs, 1, 1] = &graph.ty(weight).shape[..] else { continue };
        let Some(row) = constant_scales(graph, node.inputs[affine]) else { continue };
        if own_norm(graph, &uses, at).is_none() {
            continue;
        }
        let (mut conv, end) = (conv.clone(), graph.nodes.len());
        let flat = graph.reshape(weight, &[outputs, inputs])?;
        let product = graph.push_labelled(Arc::new(Combine::Product), &[flat, row], &label)?[0];
        let product = graph.reshape(product, &[outputs, inputs, 1, 1])?;
        conv.operands.affine = false;
        let node = &mut graph.nodes[at];
        node.op = Arc::new(conv);
        node.inputs[place] = product;
        node.inputs.remove(affine);
        splice(graph, at, end, &[]);
        return Ok(true);
    }
    Ok(false)
}

/// The row [1, C] that an affine of scales without shifts was made of, if it is known beforehand.
fn constant_scales(graph: &Graph, affine: TensorId) -> Option<TensorId> {
    let (pad, _) = maker(graph, graph.root(affine).0)?;
    let row = *graph.nodes[pad].inputs.first()?;
    let &[1, channels] = &graph.ty(row).shape[..] else { return None };
    let (made, _) = maker(graph, row)?;
    let filled = |&part: &TensorId| {
        maker(graph, part).is_some_and(|(part, _)| op::<Fill>(&graph.nodes[part]).is_some())
    };
    let constant =
        op::<Concat>(&graph.nodes[made]).is_some() && graph.nodes[made].inputs.iter().all(filled);
    let scales = op(&graph.nodes[pad]) == Some(&PadChannels::zeros(0, channels));
    (constant && scales).then_some(row)
}
