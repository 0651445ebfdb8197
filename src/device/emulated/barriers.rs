//! Which barriers and waits for copies kernels come by, and which one is left out to see whether checked mode
//! misses it: what scripts/mutate-barriers.py asks for.

use super::lanes::Site;
use std::collections::BTreeMap;
use std::io::Write;
use std::sync::{Mutex, OnceLock};

/// What the variable `CYANEA_WITHOUT_BARRIER` names, as `kernels/silu.cu:12`. The empty name is that of no barrier,
/// so it leaves none out.
fn without() -> Option<&'static str> {
    static WITHOUT: OnceLock<Option<String>> = OnceLock::new();
    WITHOUT.get_or_init(|| std::env::var("CYANEA_WITHOUT_BARRIER").ok()).as_deref()
}

/// Whether the barrier of this key and name is left out. Where one may be, each that is reached is said once.
fn is_named(key: (usize, i32), name: impl FnOnce() -> String) -> bool {
    static REACHED: Mutex<BTreeMap<(usize, i32), bool>> = Mutex::new(BTreeMap::new());
    let Some(without) = without() else { return false };
    let mut reached = REACHED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    *reached.entry(key).or_insert_with(|| {
        let name = name();
        // In one piece, whatever else writes there.
        let _ = std::io::stderr().write_all(format!("barrier reached: {name}\n").as_bytes());
        name == without
    })
}

/// Whether the barrier at `site` is left out.
pub(super) fn left_out(site: Site) -> bool {
    is_named(site.key(), || site.to_string())
}

/// Whether the wait for copies is left out whose call returns to `caller`, which stands at the first of `lines`.
pub(super) fn wait_left_out(caller: usize, lines: impl FnOnce(usize) -> String) -> bool {
    let name = || lines(caller).split(", called at ").next().unwrap_or_default().to_string();
    is_named((caller, 0), name)
}
