//! From a graph to a program: the arena is planned and every node becomes its launches.

use super::memory_plan::{self, Lifetime};
use super::{Graph, Layout, Node, Origin, TensorId};
use crate::device::kernels::check_limits;
use crate::device::{CpuWork, Launch, Program, Space, Target, TensorType, View, Work};
use crate::error::Result;
use crate::ops::{Build, LaunchArgs};
use std::collections::HashMap;
use std::sync::Arc;

/// Compiles a graph for a target; `layout` says where its persistent slots lie.
///
/// # Errors
/// A slot that the layout lacks, or shapes that the target has no kernel for or that are beyond its
/// limits; names the node and the limit.
pub fn compile(graph: &Graph, layout: &Layout, target: &Target, name: &str) -> Result<Program> {
    let arena = plan_arena(graph, target);
    let view = |tensor: TensorId| -> Result<View> {
        let (root, start) = graph.root(tensor);
        let ty = graph.ty(tensor).clone();
        match graph.slot_of(root) {
            Some(slot) => {
                let base = layout.get(slot.region, &slot.name)?;
                Ok(View { space: Space::Persistent, offset: base.offset + start, ty })
            }
            None => Ok(View { space: Space::Arena, offset: arena.tensors[&root] + start, ty }),
        }
    };
    let mut launches = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        let inputs = node.inputs.iter().map(|&t| view(t)).collect::<Result<Vec<_>>>()?;
        let outputs = node.outputs.iter().map(|&t| view(t)).collect::<Result<Vec<_>>>()?;
        let scratch = arena.scratch.get(&index).map(|&(offset, elements)| View {
            space: Space::Arena,
            offset,
            ty: TensorType::f32([elements]),
        });
        let (input_types, output_types) = types(graph, node);
        let costs = |launches| node.op.costs(&input_types, &output_types, launches);
        let launch = |work, [flops, bytes]: [u64; 2]| Launch {
            operation: node.op.name(),
            label: node.label.clone(),
            flops,
            bytes,
            work,
        };
        if target.is_cpu() {
            let kernel: Arc<dyn crate::device::cpu::CpuKernel> = node.op.clone();
            let work = CpuWork { kernel, inputs, outputs, scratch };
            launches.push(launch(Work::Cpu(work), costs(1)[0]));
        } else {
            let tickets = node.op.tickets(target, &input_types, &output_types);
            let tickets = layout.tickets(tickets)?;
            let args = LaunchArgs {
                target,
                inputs: &inputs,
                outputs: &outputs,
                scratch: scratch.as_ref(),
                tickets: tickets.as_ref(),
            };
            let launched = node.op.launch(&args).map_err(|error| error.at(&node.label))?;
            let costs = costs(launched.len());
            for (part, work) in launched.into_iter().enumerate() {
                check_limits(node.op.name(), &work, target)
                    .map_err(|error| error.at(&node.label))?;
                launches.push(launch(Work::Kernel(work), costs[part]));
            }
        }
    }
    Ok(Program { name: name.into(), target: target.clone(), launches, arena_bytes: arena.bytes })
}

/// Most tickets that one node of the graph needs on a target.
pub(super) fn tickets(graph: &Graph, target: &Target) -> usize {
    let of_node = |node: &Node| {
        let (inputs, outputs) = types(graph, node);
        node.op.tickets(target, &inputs, &outputs)
    };
    graph.nodes.iter().map(of_node).max().unwrap_or(0)
}

fn types<'a>(graph: &'a Graph, node: &Node) -> (Vec<&'a TensorType>, Vec<&'a TensorType>) {
    let types = |ids: &[TensorId]| ids.iter().map(|&t| graph.ty(t)).collect();
    (types(&node.inputs), types(&node.outputs))
}

struct Arena {
    /// Offset of each root tensor that lives in the arena.
    tensors: HashMap<TensorId, usize>,
    /// Offset and elements of each node's working memory.
    scratch: HashMap<usize, (usize, usize)>,
    bytes: usize,
}

fn plan_arena(graph: &Graph, target: &Target) -> Arena {
    let mut lifetimes: Vec<Lifetime> = Vec::new();
    let mut index_of: HashMap<TensorId, usize> = HashMap::new();
    let mut scratch: Vec<(usize, usize, usize)> = Vec::new();
    for (step, node) in graph.nodes.iter().enumerate() {
        for &output in &node.outputs {
            if graph.slot_of(output).is_none() {
                index_of.insert(output, lifetimes.len());
                let bytes = graph.ty(output).bytes();
                lifetimes.push(Lifetime { bytes, first: step, last: step });
            }
        }
        for &input in &node.inputs {
            let (root, _) = graph.root(input);
            if let Some(&index) = index_of.get(&root) {
                lifetimes[index].last = step;
            } else {
                debug_assert!(!matches!(graph.tensors[root.0].origin, Origin::Part { .. }));
            }
        }
        let (inputs, outputs) = types(graph, node);
        let elements = node.op.scratch(target, &inputs, &outputs);
        if elements > 0 {
            scratch.push((step, lifetimes.len(), elements));
            lifetimes.push(Lifetime { bytes: elements * 4, first: step, last: step });
        }
    }
    let (offsets, bytes) = memory_plan::plan(&lifetimes);
    Arena {
        tensors: index_of.into_iter().map(|(tensor, index)| (tensor, offsets[index])).collect(),
        scratch: scratch
            .into_iter()
            .map(|(step, index, elements)| (step, (offsets[index], elements)))
            .collect(),
        bytes,
    }
}
