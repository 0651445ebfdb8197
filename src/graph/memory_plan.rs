//! Places what lives inside one program: each tensor gets a stretch of the arena for as long as
//! something still reads it, and gives its place away afterwards.

/// Alignment of a tensor in the arena, in bytes.
const ALIGNMENT: usize = 256;

/// Something that needs `bytes` from step `first` to step `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetime {
    pub bytes: usize,
    pub first: usize,
    pub last: usize,
}

impl Lifetime {
    fn meets(&self, other: &Lifetime) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// Offsets for all lifetimes, and the size of the arena that holds them.
///
/// Largest first, each at the lowest offset where it meets nothing that is alive at the same
/// time. Greedy by size comes within a few per cent of the lower bound (the largest sum of what
/// is alive at once) on U-Nets, and is deterministic.
pub fn plan(lifetimes: &[Lifetime]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lifetimes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(lifetimes[i].bytes), i));
    let mut offsets = vec![0; lifetimes.len()];
    // Placed so far, sorted by offset.
    let mut placed: Vec<usize> = Vec::with_capacity(lifetimes.len());
    let mut size = 0;
    for index in order {
        let bytes = lifetimes[index].bytes.next_multiple_of(ALIGNMENT);
        let mut offset = 0;
        for &other in &placed {
            if !lifetimes[other].meets(&lifetimes[index]) {
                continue;
            }
            if offset + bytes <= offsets[other] {
                break;
            }
            let end = offsets[other] + lifetimes[other].bytes.next_multiple_of(ALIGNMENT);
            offset = offset.max(end);
        }
        offsets[index] = offset;
        size = size.max(offset + bytes);
        let at = placed.partition_point(|&other| offsets[other] <= offset);
        placed.insert(at, index);
    }
    (offsets, size)
}

/// Largest sum of what is alive at once: no arena can be smaller.
pub fn lower_bound(lifetimes: &[Lifetime]) -> usize {
    let steps = lifetimes.iter().map(|l| l.last + 1).max().unwrap_or(0);
    let mut change = vec![0isize; steps + 1];
    for lifetime in lifetimes {
        let bytes = lifetime.bytes.next_multiple_of(ALIGNMENT) as isize;
        change[lifetime.first] += bytes;
        change[lifetime.last + 1] -= bytes;
    }
    let mut alive = 0;
    change.iter().fold(0, |most, step| {
        alive += step;
        most.max(alive as usize)
    })
}
