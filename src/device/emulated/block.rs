//! Runs one block: its lanes as coroutines, barriers and warp collectives by the last to arrive.
//!
//! A coroutine runs lane after lane until one of them has to wait; another coroutine then goes on
//! with the lanes that have not started. Nothing here holds a reference across a switch between
//! coroutines: the state is reached through raw pointers.

// References to what a raw pointer leads to are written out, so that their ends can be seen.
#![allow(clippy::needless_borrow)]

use super::lanes::{BlockHeader, Collective, Lane, Shuffle, Site, cyanea_lane_slot};
#[cfg(feature = "checked")]
use super::{
    barriers,
    checked::{Checks, Region},
};
use crate::device::kernels::HostEntry;
use corosensei::stack::DefaultStack;
use corosensei::{Coroutine, Yielder};
use std::ffi::{c_char, c_int, c_void};

#[cfg(feature = "checked")]
mod hooks;

/// Stack of a lane in bytes; only what is touched is ever given memory.
const STACK_BYTES: usize = if cfg!(feature = "checked") { 512 << 10 } else { 128 << 10 };
/// Bytes behind each shared array that belong to none, and room for those of 64 arrays.
const GAP: usize = if cfg!(feature = "checked") { 256 } else { 0 };
const GAPS: usize = 64;

/// What a launch gives all of its blocks.
pub(super) struct Grid<'a> {
    pub entry: HostEntry,
    /// Parameters with the pointers filled in, aligned to 16 bytes.
    pub params: &'a [u128],
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: usize,
    /// Shared memory that a block may use in all.
    pub shared_limit: usize,
    /// The memory that the launch may touch.
    #[cfg(feature = "checked")]
    pub regions: Vec<Region>,
}

/// Lanes of a warp that wait for each other.
struct Pending {
    warp: u32,
    mask: u32,
    arrived: u32,
    execute: Collective,
    operands: [*mut c_void; 32],
    /// Coroutines of the lanes that wait.
    fibers: Vec<usize>,
    site: Site,
}

/// State of a block that is running. Lanes find it behind the header that they point to.
#[repr(C)]
struct State {
    header: BlockHeader,
    lanes: Vec<Lane>,
    /// Lanes in the order in which they start, and how many have.
    order: Vec<u32>,
    started: usize,
    finished: usize,
    entry: Option<HostEntry>,
    params: *const c_void,
    slot: *mut *mut Lane,
    /// The coroutine that runs now, and its handle for handing control back.
    fiber: usize,
    yielder: *const Yielder<(), ()>,
    /// Whether the coroutine that just handed control back has no lane.
    idle: bool,
    ready: Vec<usize>,
    /// Coroutines that wait at the barrier, and where it stands.
    barrier: Vec<usize>,
    barrier_site: Option<Site>,
    pending: Vec<Pending>,
    shared: Vec<u128>,
    shared_used: usize,
    shared_limit: usize,
    statics: Vec<(*const c_void, usize)>,
    fault: Option<String>,
    #[cfg(feature = "checked")]
    checks: Checks,
}

struct Fiber(Coroutine<(), (), ()>);

impl Drop for Fiber {
    fn drop(&mut self) {
        // SAFETY: what can be on this stack are frames of kernels (C++ without exceptions and
        // destructors) and of the functions below, which own nothing that needs dropping.
        unsafe { self.0.force_reset() }
    }
}

/// A thread's coroutines and block state, kept from block to block.
pub(super) struct Worker {
    /// Owned; a raw pointer because coroutines and kernels reach it too.
    state: *mut State,
    fibers: Vec<Fiber>,
    idle: Vec<usize>,
}

impl Worker {
    pub(super) fn new() -> Worker {
        let header = BlockHeader {
            index: [0; 3],
            size: [0; 3],
            grid: [0; 3],
            dynamic_shared: std::ptr::null_mut(),
            barrier,
            collective,
            static_shared,
            #[cfg(feature = "checked")]
            hooks: hooks::HOOKS,
        };
        let state = State {
            header,
            lanes: Vec::new(),
            order: Vec::new(),
            started: 0,
            finished: 0,
            entry: None,
            params: std::ptr::null(),
            // SAFETY: returns the address of a variable of this thread; a worker never leaves it.
            slot: unsafe { cyanea_lane_slot() },
            fiber: 0,
            yielder: std::ptr::null(),
            idle: true,
            ready: Vec::new(),
            barrier: Vec::new(),
            barrier_site: None,
            pending: Vec::new(),
            shared: Vec::new(),
            shared_used: 0,
            shared_limit: 0,
            statics: Vec::new(),
            fault: None,
            #[cfg(feature = "checked")]
            checks: Checks::new(),
        };
        Worker { state: Box::into_raw(Box::new(state)), fibers: Vec::new(), idle: Vec::new() }
    }

    /// Runs block `index` of a grid to its end; `seed` gives the order of its lanes.
    ///
    /// # Safety
    /// The pointers among the parameters are valid for what the kernel does with them, and the
    /// parameters are of the kernel's type.
    pub(super) unsafe fn run(
        &mut self,
        grid: &Grid<'_>,
        index: [u32; 3],
        seed: u64,
    ) -> Result<(), String> {
        let mut shuffle = Shuffle(seed);
        // SAFETY: no coroutine runs, so nothing else uses the state during this call.
        unsafe { (*self.state).prepare(self.state.cast(), grid, index, &mut shuffle) };
        let lanes = grid.block.iter().product::<u32>() as usize;
        loop {
            // SAFETY: as above; the reference ends before a coroutine is resumed.
            let (unstarted, waiting) = {
                let state = unsafe { &mut *self.state };
                if state.fault.is_some() {
                    break;
                }
                (lanes - state.started, state.ready.len())
            };
            if unstarted == 0 && waiting == 0 {
                break;
            }
            // New lanes start and waiting ones go on in no particular order.
            let fiber = if waiting == 0 || (unstarted > 0 && shuffle.next() & 1 == 0) {
                self.idle_fiber()?
            } else {
                let pick = shuffle.below(waiting);
                // SAFETY: as above.
                unsafe { (&mut (*self.state).ready).swap_remove(pick) }
            };
            // SAFETY: as above; resuming happens after these assignments.
            unsafe {
                (*self.state).fiber = fiber;
                (*self.state).idle = false;
            }
            let _ = self.fibers[fiber].0.resume(());
            // SAFETY: the coroutine has handed control back.
            if unsafe { (*self.state).idle } {
                self.idle.push(fiber);
            }
        }
        // SAFETY: no coroutine runs any more.
        let state = unsafe { &mut *self.state };
        if state.fault.is_none() && state.finished < lanes {
            state.fault = Some(state.deadlock(lanes));
        }
        match state.fault.take() {
            None => Ok(()),
            Some(fault) => {
                // Some coroutines hang in the middle of a lane.
                self.fibers.clear();
                self.idle.clear();
                #[cfg(feature = "checked")]
                let fault = {
                    state.checks.stacks.clear();
                    state.checks.finding.take().map_or(fault, |finding| finding.to_string())
                };
                Err(fault)
            }
        }
    }

    fn idle_fiber(&mut self) -> Result<usize, String> {
        if let Some(fiber) = self.idle.pop() {
            return Ok(fiber);
        }
        let stack = DefaultStack::new(STACK_BYTES)
            .map_err(|e| format!("no memory for the stack of a lane: {e}"))?;
        // SAFETY: no coroutine runs.
        #[cfg(feature = "checked")]
        unsafe {
            (&mut (*self.state).checks.stacks).push(hooks::range(&stack));
        }
        let state = self.state;
        let fiber = Coroutine::with_stack(stack, move |yielder: &Yielder<(), ()>, ()| {
            loop {
                // SAFETY: the worker owns the state longer than its coroutines; while one runs,
                // the worker and the other coroutines don't touch it.
                unsafe {
                    (*state).yielder = yielder;
                    run_lanes(state, yielder);
                    (*state).idle = true;
                }
                yielder.suspend(());
            }
        });
        self.fibers.push(Fiber(fiber));
        Ok(self.fibers.len() - 1)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.fibers.clear();
        // SAFETY: the pointer comes from `Box::into_raw` in `new`; all coroutines are gone.
        drop(unsafe { Box::from_raw(self.state) });
    }
}

/// Starts lanes until none is left, or until one that waited has come to its end and others are
/// ready to go on.
unsafe fn run_lanes(state: *mut State, yielder: *const Yielder<(), ()>) {
    // SAFETY: see the caller; references end before the kernel is entered.
    unsafe {
        while (*state).started < (&(*state).order).len() && (*state).fault.is_none() {
            let lane = (&(*state).order)[(*state).started] as usize;
            (*state).started += 1;
            *(*state).slot = (&mut (*state).lanes).as_mut_ptr().add(lane);
            let entry = (*state).entry.unwrap_unchecked();
            entry((*state).params);
            (*state).finished += 1;
            (*state).yielder = yielder;
        }
    }
}

impl State {
    /// `header` is where lanes find this state.
    fn prepare(
        &mut self,
        header: *const BlockHeader,
        grid: &Grid<'_>,
        index: [u32; 3],
        shuffle: &mut Shuffle,
    ) {
        let [x, y, z] = grid.block;
        let count = (x * y * z) as usize;
        if self.header.size != grid.block || self.lanes.len() != count {
            self.lanes.clear();
            for linear in 0..x * y * z {
                let thread = [linear % x, linear / x % y, linear / (x * y)];
                self.lanes.push(Lane { thread, linear, block: header });
            }
            self.order = (0..x * y * z).collect();
        }
        shuffle.permute(&mut self.order);
        self.header.index = index;
        self.header.size = grid.block;
        self.header.grid = grid.grid;
        self.started = 0;
        self.finished = 0;
        self.entry = Some(grid.entry);
        self.params = grid.params.as_ptr().cast();
        self.ready.clear();
        self.barrier.clear();
        self.barrier_site = None;
        self.pending.clear();
        self.statics.clear();
        self.fault = None;
        self.shared_limit = grid.shared_limit;
        self.shared_used = grid.dynamic_shared.next_multiple_of(16);
        let units = (grid.shared_limit + (GAPS + 1) * GAP).div_ceil(16);
        if self.shared.len() < units {
            self.shared = vec![u128::MAX; units];
        }
        // All bits set is a NaN in every floating type.
        self.shared[..self.shared_used / 16].fill(u128::MAX);
        self.header.dynamic_shared = self.shared.as_mut_ptr().cast();
        #[cfg(feature = "checked")]
        self.start_checks(header, grid);
    }

    /// Says who waits where.
    fn deadlock(&self, lanes: usize) -> String {
        let mut text = String::new();
        if let Some(site) = self.barrier_site {
            text +=
                &format!("{} of {lanes} lanes wait at the barrier at {site}", self.barrier.len());
        }
        for pending in &self.pending {
            let separator = if text.is_empty() { "" } else { "; " };
            text += &format!(
                "{separator}lanes {:#010x} of warp {} wait at {} for lanes {:#010x}",
                pending.arrived,
                pending.warp,
                pending.site,
                pending.mask & !pending.arrived
            );
        }
        format!("deadlock: {text}; {} lanes have returned", self.finished)
    }
}

/// Records a fault and leaves the lane for good.
unsafe fn stop(state: *mut State, fault: String) -> ! {
    // SAFETY: called from a lane, so its coroutine's yielder is the current one. A coroutine with
    // a fault is never resumed.
    unsafe {
        if (*state).fault.is_none() {
            (*state).fault = Some(fault);
        }
        loop {
            (*(*state).yielder).suspend(());
        }
    }
}

/// Hands control back until the lane's coroutine is resumed.
unsafe fn wait(state: *mut State, lane: *mut Lane) {
    // SAFETY: called from a lane; the yielder lives on this coroutine's stack.
    unsafe {
        let yielder = (*state).yielder;
        (*yielder).suspend(());
        (*state).yielder = yielder;
        *(*state).slot = lane;
    }
}

unsafe fn state_of(lane: *mut Lane) -> *mut State {
    // SAFETY: a lane points to the header of its block, which is the first field of the state.
    unsafe { (*lane).block.cast::<State>().cast_mut() }
}

unsafe extern "C" fn barrier(lane: *mut Lane, file: *const c_char, line: c_int) {
    // SAFETY: the kernels call this from a lane with a literal; no reference outlives a switch.
    unsafe {
        let state = state_of(lane);
        let site = Site::new(file, line);
        #[cfg(feature = "checked")]
        if barriers::left_out(site) {
            return;
        }
        let first = *(*state).barrier_site.get_or_insert(site);
        if first != site {
            stop(state, format!("divergent barrier: lanes wait at {first} and at {site}"));
        }
        (&mut (*state).barrier).push((*state).fiber);
        if (&(*state).barrier).len() < (&(*state).lanes).len() {
            return wait(state, lane);
        }
        let own = (*state).fiber;
        let State { barrier, ready, .. } = &mut *state;
        ready.extend(barrier.drain(..).filter(|&fiber| fiber != own));
        (*state).barrier_site = None;
        #[cfg(feature = "checked")]
        (&mut (*state).checks).barrier();
    }
}

unsafe extern "C" fn collective(
    lane: *mut Lane,
    mask: u32,
    execute: Collective,
    operand: *mut c_void,
    file: *const c_char,
    line: c_int,
) {
    // SAFETY: as in `barrier`; the operands lie on stacks of lanes that wait here, so they live
    // until their lane is resumed.
    unsafe {
        let state = state_of(lane);
        let site = Site::new(file, line);
        // A warp barrier has no operand.
        #[cfg(feature = "checked")]
        if operand.is_null() && barriers::left_out(site) {
            return;
        }
        let (warp, bit) = ((*lane).linear / 32, 1u32 << ((*lane).linear % 32));
        if mask & bit == 0 {
            stop(state, format!("{site}: a lane that its own mask {mask:#010x} lacks"));
        }
        let pending = &mut (*state).pending;
        let clash = pending.iter().find(|p| {
            let same = p.mask == mask && p.site == site && p.execute as usize == execute as usize;
            p.warp == warp && p.mask & mask != 0 && !same
        });
        if let Some(clash) = clash {
            let fault = format!(
                "divergent warp: lanes {:#010x} wait at {} and lanes {mask:#010x} come to {site}",
                clash.mask, clash.site
            );
            stop(state, fault);
        }
        let place = match pending.iter().position(|p| p.warp == warp && p.mask == mask) {
            Some(place) => place,
            None => {
                pending.push(Pending {
                    warp,
                    mask,
                    arrived: 0,
                    execute,
                    operands: [std::ptr::null_mut(); 32],
                    fibers: Vec::new(),
                    site,
                });
                pending.len() - 1
            }
        };
        let group = &mut pending[place];
        group.arrived |= bit;
        group.operands[bit.trailing_zeros() as usize] = operand;
        if group.arrived != mask {
            group.fibers.push((*state).fiber);
            return wait(state, lane);
        }
        let mut group = pending.swap_remove(place);
        (group.execute)(group.operands.as_mut_ptr(), mask);
        #[cfg(feature = "checked")]
        if operand.is_null() {
            (&mut (*state).checks).warp_barrier(warp, mask);
        }
        (&mut (*state).ready).append(&mut group.fibers);
    }
}

unsafe extern "C" fn static_shared(
    lane: *mut Lane,
    key: *const c_void,
    bytes: usize,
    file: *const c_char,
    line: c_int,
) -> *mut c_void {
    // SAFETY: as in `barrier`; the place handed out lies inside `shared`, which is as long as
    // `shared_limit` and not moved while a block runs.
    unsafe {
        let state = state_of(lane);
        let base = (&mut (*state).shared).as_mut_ptr().cast::<u8>();
        if let Some(&(_, offset)) = (&(*state).statics).iter().find(|(known, _)| *known == key) {
            return base.add(offset).cast();
        }
        let end = (*state).shared_used + bytes.next_multiple_of(16);
        let (site, limit) = (Site::new(file, line), (*state).shared_limit);
        let arrays = (&(*state).statics).len();
        if end > limit {
            stop(state, format!("{site}: {end} bytes of shared memory; a block has {limit}"));
        }
        if arrays == GAPS {
            stop(state, format!("{site}: more than {GAPS} shared arrays in a block"));
        }
        let offset = (*state).shared_used + (arrays + 1) * GAP;
        base.add(offset).write_bytes(0xff, bytes);
        (*state).shared_used = end;
        (&mut (*state).statics).push((key, offset));
        #[cfg(feature = "checked")]
        (&mut (*state).checks).allocate(offset..offset + bytes, Some(site));
        base.add(offset).cast()
    }
}

#[cfg(all(test, feature = "checked"))]
#[path = "checked_tests.rs"]
mod checked_tests;
#[cfg(test)]
#[path = "mma_tests.rs"]
mod mma_tests;
#[cfg(test)]
#[path = "block_tests.rs"]
mod tests;
