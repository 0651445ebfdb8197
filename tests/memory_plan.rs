//! Properties of the memory plan, on random sets of lifetimes and on random graphs.

use cyanea::device::{Space, Target, TensorType, Work};
use cyanea::graph::memory_plan::{Lifetime, lower_bound, plan};
use cyanea::graph::{Build, Graph, Layout, Origin, TensorId, compile};
use cyanea::ops::activation::Activation;
use cyanea::ops::combine::Combine;
use cyanea::ops::concat::{Concat, SliceChannels};
use proptest::prelude::*;

fn lifetimes() -> impl Strategy<Value = Vec<Lifetime>> {
    let one = (1usize..5000, 0usize..40, 0usize..12).prop_map(|(bytes, first, length)| Lifetime {
        bytes,
        first,
        last: first + length,
    });
    prop::collection::vec(one, 0..60)
}

proptest! {
    #[test]
    fn nothing_alive_at_once_overlaps(lifetimes in lifetimes()) {
        let (offsets, size) = plan(&lifetimes);
        for (i, a) in lifetimes.iter().enumerate() {
            prop_assert_eq!(offsets[i] % 256, 0);
            prop_assert!(offsets[i] + a.bytes <= size);
            for (j, b) in lifetimes.iter().enumerate().skip(i + 1) {
                let alive = a.first <= b.last && b.first <= a.last;
                let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                prop_assert!(!alive || apart, "{:?} at {} and {:?} at {}", a, offsets[i], b, offsets[j]);
            }
        }
    }

    #[test]
    fn the_arena_is_no_smaller_than_what_is_alive(lifetimes in lifetimes()) {
        let (_, size) = plan(&lifetimes);
        prop_assert!(size >= lower_bound(&lifetimes));
        let all: usize = lifetimes.iter().map(|l| l.bytes.next_multiple_of(256)).sum();
        prop_assert!(size <= all);
    }
}

#[test]
fn a_chain_of_activations_needs_room_for_two() {
    let chain: Vec<Lifetime> =
        (0..20).map(|i| Lifetime { bytes: 1024, first: i, last: i + 1 }).collect();
    assert_eq!(plan(&chain).1, 2048);
}

/// A random graph of sums, products and SiLUs: for each node the operands, chosen among what is
/// there before it.
fn graphs() -> impl Strategy<Value = Vec<(u8, usize, usize, usize)>> {
    prop::collection::vec((0u8..3, any::<usize>(), any::<usize>(), 1usize..4), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Follows the launches of a compiled graph with a map from each byte of the arena to the
    /// launch that wrote it last: whatever a launch reads was written by the node that it reads
    /// from, so nothing that is still needed was overwritten.
    #[test]
    fn launches_read_what_their_nodes_made(description in graphs()) {
        let mut g = Graph::new();
        let slots: Vec<TensorId> = (0..4)
            .map(|i| g.input(&format!("in {i}"), TensorType::f32([1 + i % 2, 7 * (i + 1)])).unwrap())
            .collect();
        let mut all = slots;
        for (kind, a, b, size) in description {
            let a = all[a % all.len()];
            let same: Vec<TensorId> =
                all.iter().copied().filter(|&t| g.ty(t) == g.ty(a)).collect();
            let b = same[b % same.len()];
            let made = match kind {
                0 => g.one(Activation::SILU, &[a]),
                1 => g.one(Combine::ADD, &[a, b]),
                _ => g.one(Concat::PLAIN, &[a, a]).and_then(|wide| {
                    let channels = g.ty(wide).shape[1];
                    let start = size.min(channels - 1);
                    g.one(SliceChannels::plain(start, channels - start), &[wide])
                }),
            };
            all.push(made.unwrap());
        }
        let last = *all.last().unwrap();
        let ty = g.ty(last).clone();
        let out = g.input("out", ty).unwrap();
        g.bind(last, out).unwrap();
        g.prune(&[]);

        let layout = Layout::new(&[&g]).unwrap();
        let program = compile(&g, &layout, &Target::CPU, "random").unwrap();
        prop_assert_eq!(program.launches.len(), g.nodes.len());
        let mut writer = vec![usize::MAX; program.arena_bytes];
        for (index, (launch, node)) in program.launches.iter().zip(&g.nodes).enumerate() {
            let Work::Cpu(work) = &launch.work else { unreachable!("compiled for the CPU") };
            for (view, &input) in work.inputs.iter().zip(&node.inputs) {
                if let (Space::Arena, Origin::Node { node, .. }) =
                    (view.space, g.tensors[g.root(input).0.0].origin)
                {
                    prop_assert!(writer[view.range()].iter().all(|&w| w == node));
                }
            }
            for view in work.outputs.iter().chain(&work.scratch) {
                if view.space == Space::Arena {
                    writer[view.range()].fill(index);
                }
            }
        }
    }
}
