//! The CPU's worker threads.

use std::sync::{Arc, OnceLock};

/// The processor as kernels see it: worker threads and a SIMD level.
pub struct Cpu {
    threads: usize,
}

impl Cpu {
    pub fn new(threads: usize) -> Cpu {
        Cpu { threads: threads.max(1) }
    }

    /// The pool that everything shares unless told otherwise: `RAYON_NUM_THREADS` threads, or one
    /// for each processor.
    pub fn shared() -> Arc<Cpu> {
        static SHARED: OnceLock<Arc<Cpu>> = OnceLock::new();
        SHARED
            .get_or_init(|| {
                let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|v| v.parse().ok());
                let threads = asked
                    .filter(|&n| n > 0)
                    .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
                Arc::new(Cpu::new(threads))
            })
            .clone()
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Keeps the workers spinning between launches until the guard is dropped.
    pub fn awake(&self) -> Awake<'_> {
        Awake { _cpu: self }
    }

    /// Calls `task(i)` once for each `i` in `0..tasks`, on any thread and in any order.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        for index in 0..tasks {
            task(index);
        }
    }

    /// Cuts `data` into pieces of `chunk` elements (the last may be shorter) and calls
    /// `task(index, piece)` for each, on any thread and in any order.
    pub fn chunks_mut(
        &self,
        data: &mut [f32],
        chunk: usize,
        task: &(dyn Fn(usize, &mut [f32]) + Sync),
    ) {
        for (index, piece) in data.chunks_mut(chunk).enumerate() {
            task(index, piece);
        }
    }
}

/// See [`Cpu::awake`].
pub struct Awake<'a> {
    _cpu: &'a Cpu,
}
