//! Checked mode: what the compiled kernels announce before each access to memory is held against the
//! block's shared memory, the launch's views and what the lanes have synchronised.
//!
//! Two accesses to one place in shared memory, at least one of them a write, are a race unless one
//! *happens before* the other (Lamport, "Time, clocks, and the ordering of events in a distributed
//! system", CACM 1978): a block barrier lies between them, or a chain of warp barriers. The first is
//! a count of barriers, the second a vector clock for the 32 lanes of a warp. Shuffles and votes order
//! no memory. Reports hold return addresses, which are looked up in the debug information when the
//! lane has been left, because its stack is small.

use super::barriers::wait_left_out;
use super::lanes::Site;
use std::fmt::Write;
use std::ops::Range;

/// Shared memory is watched in units of this many bytes, the smallest type that kernels use.
const UNIT: usize = 2;

/// A view of a launch.
pub(super) struct Region {
    pub bytes: Range<usize>,
    pub written: bool,
    /// E.g. `view 2, f32[4, 8]`.
    pub name: String,
}

#[cfg(test)]
impl Region {
    /// What a kernel of the tests may write.
    pub(super) fn output(out: &[f32]) -> Region {
        let start = out.as_ptr().addr();
        let bytes = start..start + size_of_val(out);
        Region { bytes, written: true, name: "the output".into() }
    }
}

/// `Kind` in kernels/host/checked.cpp.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Read,
    Write,
    Atomic,
    /// What an asynchronous copy writes, and what it reads.
    Copy,
    CopySource,
}

impl Kind {
    pub(super) fn new(kind: i32) -> Kind {
        match kind {
            0 => Kind::Read,
            1 => Kind::Write,
            2 => Kind::Atomic,
            3 => Kind::Copy,
            _ => Kind::CopySource,
        }
    }

    fn reads(self) -> bool {
        matches!(self, Kind::Read | Kind::CopySource)
    }

    fn verb(self) -> &'static str {
        match self {
            Kind::Read => "reads",
            Kind::Write => "writes",
            Kind::Atomic => "updates",
            Kind::Copy => "copies to",
            Kind::CopySource => "copies from",
        }
    }
}

/// What a lane is about to do.
#[derive(Clone, Copy)]
pub(super) struct Access {
    /// Number of the lane in its block.
    pub lane: u32,
    pub at: usize,
    pub bytes: usize,
    pub kind: Kind,
    /// The return address of the announcement.
    pub caller: usize,
}

/// The last access of a kind to a unit of shared memory.
#[derive(Clone, Copy)]
struct Past {
    /// Barriers of the block before it; 0: there was none.
    epoch: u32,
    /// Its lane's own clock.
    clock: u32,
    lane: u32,
    atomic: bool,
    caller: usize,
}

const NEVER: Past = Past { epoch: 0, clock: 0, lane: 0, atomic: false, caller: 0 };

#[derive(Clone)]
struct Unit {
    write: Past,
    /// The last reader, and the last of another warp or, where there is none, of another lane.
    reads: [Past; 2],
}

/// A shared array: its place and where it is declared (`None`: the dynamic one).
struct Array {
    bytes: Range<usize>,
    site: Option<Site>,
}

/// Asynchronous copies of a lane.
#[derive(Clone, Default)]
struct Copies {
    /// Groups that it has ended.
    groups: usize,
    /// Those under way: group and units.
    under_way: Vec<(usize, Range<usize>)>,
}

/// What `Checks::state` says of a unit besides its block.
const WRITTEN: u64 = 1;
const UNDER_WAY: u64 = 2;

/// What is wrong, with return addresses in place of lines.
pub(super) struct Finding {
    what: String,
    /// "at", "and at", …, and a return address.
    places: Vec<(&'static str, usize)>,
}

impl Finding {
    fn new(access: &Access, what: String) -> Finding {
        let Access { lane, bytes, kind, .. } = access;
        let what = format!("lane {lane} {} {bytes} bytes {what}", kind.verb());
        Finding { what, places: vec![("at", access.caller)] }
    }

    fn race(access: &Access, offset: usize, past: &Past, verb: &str) -> Finding {
        let barrier =
            if past.lane / 32 == access.lane / 32 { "a warp barrier" } else { "a barrier" };
        let what = format!(
            "race: lane {} {} byte {offset} of shared memory, which lane {} {verb} without {barrier} \
             between",
            access.lane,
            access.kind.verb(),
            past.lane
        );
        Finding {
            what,
            places: vec![("at", access.caller), ("the other access is at", past.caller)],
        }
    }
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.what)?;
        for (index, (word, caller)) in self.places.iter().enumerate() {
            let separator = if index == 0 { "" } else { ";" };
            write!(f, "{separator} {word} {}", lines(*caller))?;
        }
        Ok(())
    }
}

/// Where the call before a return address stands, the innermost inlined function first.
fn lines(caller: usize) -> String {
    let mut text = String::new();
    let call = std::ptr::without_provenance_mut(caller - 1);
    backtrace::resolve(call, |symbol| {
        let Some(file) = symbol.filename().and_then(|name| name.to_str()) else { return };
        let name = file.rsplit_once("kernels/").map_or(file, |(_, name)| name);
        // Neither the emulator's own functions nor the unit that includes the kernel.
        if !name.ends_with(".cu") && !name.ends_with(".cuh") {
            return;
        }
        let separator = if text.is_empty() { "" } else { ", called at " };
        let _ = write!(text, "{separator}kernels/{name}:{}", symbol.lineno().unwrap_or(0));
    });
    if text.is_empty() { format!("unknown code {caller:#x}") } else { text }
}

/// Stacks of the lanes.
#[derive(Default)]
pub(super) struct Stacks {
    by_fiber: Vec<Range<usize>>,
    /// The same, by address: a collective reads from as many of them as it has lanes.
    sorted: Vec<Range<usize>>,
}

impl Stacks {
    /// The stack of the next coroutine.
    pub(super) fn push(&mut self, stack: Range<usize>) {
        self.by_fiber.push(stack.clone());
        let at = self.sorted.partition_point(|other| other.start < stack.start);
        self.sorted.insert(at, stack);
    }

    pub(super) fn clear(&mut self) {
        *self = Stacks::default();
    }

    /// Whether one of them holds all of these bytes.
    fn hold(&self, bytes: &Range<usize>) -> bool {
        let behind = self.sorted.partition_point(|stack| stack.start <= bytes.start);
        behind > 0 && bytes.end <= self.sorted[behind - 1].end
    }
}

/// What is known of the block that runs.
pub(super) struct Checks {
    pub finding: Option<Finding>,
    /// Memory that belongs to the scheduler and that lanes may read: parameters, their own state.
    pub readable: Vec<Range<usize>>,
    pub regions: *const [Region],
    pub stacks: Stacks,
    epoch: u32,
    /// Epoch in which the block started: whatever is older belongs to another block.
    first_epoch: u32,
    clocks: Vec<[u32; 32]>,
    shared: Range<usize>,
    units: Vec<Unit>,
    /// For each unit the block it was last allocated in: four times its first epoch, plus `WRITTEN`
    /// or `UNDER_WAY`.
    state: Vec<u64>,
    arrays: Vec<Array>,
    copies: Vec<Copies>,
}

impl Checks {
    pub(super) fn new() -> Checks {
        Checks {
            finding: None,
            readable: Vec::new(),
            regions: &[],
            stacks: Stacks::default(),
            epoch: 0,
            first_epoch: 0,
            clocks: Vec::new(),
            shared: 0..0,
            units: Vec::new(),
            state: Vec::new(),
            arrays: Vec::new(),
            copies: Vec::new(),
        }
    }

    /// Starts a block whose shared memory lies at `shared`.
    pub(super) fn start(&mut self, lanes: usize, shared: Range<usize>, dynamic: usize) {
        // Long before the count of barriers overflows, all that is remembered is forgotten.
        if self.epoch > u32::MAX / 2 {
            self.epoch = 0;
            self.units.clear();
            self.state.clear();
        }
        self.epoch += 1;
        self.first_epoch = self.epoch;
        let units = shared.len() / UNIT;
        if self.units.len() < units {
            self.units.resize(units, Unit { write: NEVER, reads: [NEVER; 2] });
            self.state.resize(units, 0);
        }
        self.shared = shared;
        self.clocks.clear();
        self.clocks.resize(lanes.next_multiple_of(32), [0; 32]);
        for (lane, clock) in self.clocks.iter_mut().enumerate() {
            clock[lane % 32] = 1;
        }
        self.copies.clear();
        self.copies.resize(lanes, Copies::default());
        self.arrays.clear();
        self.finding = None;
        self.allocate(0..dynamic, None);
    }

    /// A shared array at these bytes of shared memory.
    pub(super) fn allocate(&mut self, bytes: Range<usize>, site: Option<Site>) {
        let allocated = 4 * u64::from(self.first_epoch);
        self.state[bytes.start / UNIT..bytes.end.div_ceil(UNIT)].fill(allocated);
        self.arrays.push(Array { bytes, site });
    }

    /// All lanes of the block have met.
    pub(super) fn barrier(&mut self) {
        self.epoch += 1;
    }

    /// The lanes of a warp that `mask` names have met.
    pub(super) fn warp_barrier(&mut self, warp: u32, mask: u32) {
        let first = 32 * warp as usize;
        let clocks = &mut self.clocks[first..first + 32];
        let mut joined = [0; 32];
        let lanes = || (0..32).filter(|lane| mask >> lane & 1 == 1);
        for lane in lanes() {
            for (top, &clock) in joined.iter_mut().zip(&clocks[lane]) {
                *top = clock.max(*top);
            }
        }
        for lane in lanes() {
            clocks[lane] = joined;
            clocks[lane][lane] += 1;
        }
    }

    /// Checks an access of a lane that runs on coroutine `fiber`, and remembers it.
    pub(super) fn access(&mut self, access: Access, fiber: usize) -> Result<(), Finding> {
        let bytes = access.at..access.at + access.bytes;
        if matches!(access.kind, Kind::Copy | Kind::CopySource)
            && !access.at.is_multiple_of(access.bytes)
        {
            return Err(Finding::new(&access, "at a misaligned address,".into()));
        }
        let inside = |range: &Range<usize>| range.start <= bytes.start && bytes.end <= range.end;
        if self.shared.contains(&access.at) {
            return self.shared_access(&access);
        }
        if inside(&self.stacks.by_fiber[fiber]) {
            return Ok(());
        }
        if access.kind.reads() && self.readable.iter().any(inside) {
            return Ok(());
        }
        // SAFETY: set when the block starts to what the launch keeps until all blocks have ended.
        let regions = unsafe { &*self.regions };
        let write = !access.kind.reads();
        if regions.iter().any(|region| inside(&region.bytes) && (region.written || !write)) {
            return Ok(());
        }
        // The last lane to arrive at a collective reaches the operands of the others.
        if self.stacks.hold(&bytes) {
            return Ok(());
        }
        if let Some(region) = regions.iter().find(|region| inside(&region.bytes)) {
            let what = format!("of {}, which the launch only reads,", region.name);
            return Err(Finding::new(&access, what));
        }
        // Described from the nearest view.
        let distance = |region: &Region| {
            let before = region.bytes.start.saturating_sub(access.at);
            before.max(bytes.end.saturating_sub(region.bytes.end))
        };
        let what = match regions.iter().min_by_key(|region| distance(region)) {
            None => "outside of memory that it was given".into(),
            Some(region) => format!(
                "at byte {} of {}, which has {}, outside of the launch's views,",
                access.at as i128 - region.bytes.start as i128,
                region.name,
                region.bytes.len()
            ),
        };
        Err(Finding::new(&access, what))
    }

    /// An address that is no multiple of what its type needs.
    pub(super) fn alignment(&self, at: usize, alignment: usize) -> String {
        let place = if self.shared.contains(&at) { "shared" } else { "global" };
        format!("misaligned: byte {at:#x} of {place} memory is no multiple of {alignment}")
    }

    fn shared_access(&mut self, access: &Access) -> Result<(), Finding> {
        let offset = access.at - self.shared.start;
        let allocated = 4 * u64::from(self.first_epoch);
        let now = self.now(access.lane, access.kind == Kind::Atomic, access.caller);
        for index in offset / UNIT..(offset + access.bytes).div_ceil(UNIT) {
            let byte = index * UNIT;
            if self.state.get(index).is_none_or(|&state| state < allocated) {
                return Err(Finding::new(access, self.stray(byte)));
            }
            if self.state[index] == allocated + UNDER_WAY {
                let what = format!(
                    "at byte {byte} of shared memory, to which a copy is under way that its lane \
                     has not waited for,"
                );
                return Err(Finding::new(access, what));
            }
            let blind = matches!(access.kind, Kind::Write | Kind::Copy);
            if !blind && self.state[index] == allocated {
                let what = format!("at byte {byte} of shared memory that no lane has written,");
                return Err(Finding::new(access, what));
            }
            let unit = &self.units[index];
            if self.races(&unit.write, access) && !(unit.write.atomic && now.atomic) {
                return Err(Finding::race(access, byte, &unit.write, "wrote"));
            }
            if access.kind.reads() {
                self.units[index].remember_reader(now);
                continue;
            }
            if let Some(past) = unit.reads.iter().find(|past| self.races(past, access)) {
                return Err(Finding::race(access, byte, past, "read"));
            }
            self.units[index].write = now;
            self.state[index] = allocated + WRITTEN;
        }
        if access.kind == Kind::Copy {
            let units = offset / UNIT..(offset + access.bytes).div_ceil(UNIT);
            self.state[units.clone()].fill(allocated + UNDER_WAY);
            let copies = &mut self.copies[access.lane as usize];
            copies.under_way.push((copies.groups, units));
        }
        Ok(())
    }

    /// An access of a lane at this moment.
    fn now(&self, lane: u32, atomic: bool, caller: usize) -> Past {
        let clock = self.clocks[lane as usize][lane as usize % 32];
        Past { epoch: self.epoch, clock, lane, atomic, caller }
    }

    /// Ends a group of a lane's copies (`pending` below 0), or waits until at most `pending` groups
    /// are under way: the lane wrote the others now.
    pub(super) fn copies(&mut self, lane: u32, pending: i32, caller: usize) {
        let Ok(pending) = usize::try_from(pending) else {
            self.copies[lane as usize].groups += 1;
            return;
        };
        if wait_left_out(caller, lines) {
            return;
        }
        let now = self.now(lane, false, caller);
        let written = 4 * u64::from(self.first_epoch) + WRITTEN;
        let Copies { groups, under_way } = &mut self.copies[lane as usize];
        let done = groups.saturating_sub(pending);
        under_way.retain(|(group, units)| {
            if *group < done {
                self.state[units.clone()].fill(written);
                self.units[units.clone()].iter_mut().for_each(|unit| unit.write = now);
            }
            *group >= done
        });
    }

    /// Whether nothing orders a past access before this one.
    fn races(&self, past: &Past, access: &Access) -> bool {
        let ordered = past.epoch != self.epoch
            || past.lane == access.lane
            || (past.lane / 32 == access.lane / 32
                && self.clocks[access.lane as usize][past.lane as usize % 32] >= past.clock);
        !ordered
    }

    /// Says where a byte lies that belongs to no shared array.
    fn stray(&self, byte: usize) -> String {
        let before = self.arrays.iter().filter(|array| array.bytes.end <= byte);
        match before.max_by_key(|array| array.bytes.end) {
            Some(Array { bytes, site: Some(site) }) => {
                format!("{} bytes behind the end of the shared array of {site}", byte - bytes.end)
            }
            Some(Array { bytes, site: None }) => format!(
                "{} bytes behind the end of the {} bytes of dynamic shared memory",
                byte - bytes.end,
                bytes.len()
            ),
            None => format!("at byte {byte} of shared memory, which no array covers,"),
        }
    }
}

impl Unit {
    /// Keeps a reader of another warp if there has been one since the last barrier.
    fn remember_reader(&mut self, now: Past) {
        let [last, other] = self.reads;
        let warp = |past: &Past| past.lane / 32;
        if last.epoch != now.epoch {
            self.reads = [now, NEVER];
        } else if last.lane != now.lane
            && (warp(&last) != warp(&now) || other.epoch != now.epoch || warp(&other) == warp(&now))
        {
            self.reads = [now, last];
        } else {
            self.reads[0] = now;
        }
    }
}
