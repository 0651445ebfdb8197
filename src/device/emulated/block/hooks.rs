//! What kernels built for checked mode call; see kernels/host/checked.cpp.

use super::super::checked::{Access, Finding, Kind};
use super::super::lanes::Hooks;
use super::{BlockHeader, Grid, Lane, Site, State, state_of, stop};
use corosensei::stack::Stack;
use std::ffi::{c_char, c_int, c_void};

pub(super) const HOOKS: Hooks = Hooks { access, out_of_bounds, misaligned, copies };

/// Addresses of a stack.
pub(super) fn range(stack: &impl Stack) -> std::ops::Range<usize> {
    stack.limit().get()..stack.base().get()
}

impl State {
    /// Tells the checks of the block that is about to start.
    pub(super) fn start_checks(&mut self, header: *const BlockHeader, grid: &Grid<'_>) {
        let range = |start: usize, bytes: usize| start..start + bytes;
        let shared = range(self.shared.as_ptr().addr(), size_of_val(&self.shared[..]));
        self.checks.start(self.lanes.len(), shared, grid.dynamic_shared);
        self.checks.regions = &raw const *grid.regions;
        self.checks.readable = vec![
            range(self.slot.addr(), size_of::<*mut Lane>()),
            range(self.lanes.as_ptr().addr(), size_of_val(&self.lanes[..])),
            range(header.addr(), size_of::<BlockHeader>()),
            range(self.params.addr(), size_of_val(grid.params)),
        ];
    }
}

unsafe fn report(state: *mut State, finding: Finding) -> ! {
    // SAFETY: called from a lane, and no reference to the state is held.
    unsafe {
        (*state).checks.finding = Some(finding);
        // The finding's lines are looked up, and take this text's place, on a larger stack.
        stop(state, String::new())
    }
}

unsafe extern "C" fn access(
    lane: *mut Lane,
    at: *const c_void,
    bytes: usize,
    kind: c_int,
    caller: *const c_void,
) {
    // SAFETY: the kernels call this from a lane; the reference to the checks ends before the lane
    // is left.
    unsafe {
        let state = state_of(lane);
        let access = Access {
            lane: (*lane).linear,
            at: at.addr(),
            bytes,
            kind: Kind::new(kind),
            caller: caller.addr(),
        };
        let fiber = (*state).fiber;
        if let Err(finding) = (&mut (*state).checks).access(access, fiber) {
            report(state, finding);
        }
    }
}

unsafe extern "C" fn out_of_bounds(
    lane: *mut Lane,
    index: usize,
    file: *const c_char,
    line: c_int,
) {
    // SAFETY: as in `access`; the file is a string literal.
    unsafe {
        let (lane_number, site) = ((*lane).linear, Site::new(file, line));
        // An index of 32 bits comes without its sign.
        let index = match u32::try_from(index) {
            Ok(index) => i64::from(index.cast_signed()),
            Err(_) => index.cast_signed() as i64,
        };
        let what = format!("{site}: lane {lane_number} uses index {index} of a shorter array");
        stop(state_of(lane), what);
    }
}

unsafe extern "C" fn misaligned(
    lane: *mut Lane,
    at: *const c_void,
    alignment: usize,
    file: *const c_char,
    line: c_int,
) {
    // SAFETY: as in `out_of_bounds`.
    unsafe {
        let state = state_of(lane);
        let site = Site::new(file, line);
        let what = (&(*state).checks).alignment(at.addr(), alignment);
        stop(state, format!("{site}: lane {}: {what}", (*lane).linear));
    }
}

unsafe extern "C" fn copies(lane: *mut Lane, pending: c_int, caller: *const c_void) {
    // SAFETY: as in `access`.
    unsafe {
        let state = state_of(lane);
        (&mut (*state).checks).copies((*lane).linear, pending, caller.addr());
    }
}
