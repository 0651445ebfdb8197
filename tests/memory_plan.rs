//! Properties of the memory plan on random sets of lifetimes.

use cyanea::graph::memory_plan::{Lifetime, lower_bound, plan};
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
