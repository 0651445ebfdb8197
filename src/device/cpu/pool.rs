//! The CPU's worker threads.
//!
//! A network step is 70 launches of 20 µs to 2 ms each, so a hand-over must cost about a
//! microsecond. Workers therefore spin while a program runs ([`Cpu::awake`]) and sleep otherwise.
//! The calling thread takes part in the work, and never waits for a worker that has not yet
//! woken: who is late finds the job closed.

use super::simd::Simd;
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::JoinHandle;

/// Checks for the last worker before the caller starts to yield between checks: it gives way to
/// that worker where more threads run than the machine has processors.
const CALLER_SPINS: u32 = 2_000;

/// Checks for a job before a worker starts to yield between checks. A worker that yields on a busy
/// machine is away for milliseconds, so this is longer than the serial parts of a step.
const WORKER_SPINS: u32 = 20_000;

/// Checks before a worker goes to sleep while nobody keeps it awake.
const SPINS_BEFORE_SLEEP: u32 = 40_000;

thread_local! {
    /// Whether this thread is inside a task: a nested call then runs on this thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

/// The processor as kernels see it: worker threads and a SIMD level.
///
/// Tasks are handed out in contiguous ranges, one a thread, and who finishes first takes from the
/// others. Which thread runs a task is therefore open; results must not depend on it.
pub struct Cpu {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    simd: Simd,
}

/// A task with its lifetime erased.
type Task = *const (dyn Fn(usize) + Sync);

#[repr(align(128))]
struct Padded<T>(T);

/// The job word: `OPEN` while tasks may be taken, `STOP` when the pool is dropped, the number of
/// workers inside the job in the low bits, and above a counter of jobs.
const INSIDE: usize = 0xffff;
const OPEN: usize = 1 << 16;
const STOP: usize = 1 << 17;
const JOB: usize = 1 << 18;

struct Shared {
    word: Padded<AtomicUsize>,
    /// Written by the caller while the job is closed and nobody is inside, read by workers inside.
    task: UnsafeCell<Option<(Task, usize)>>,
    /// Next task of each thread's range.
    next: Box<[Padded<AtomicUsize>]>,
    /// Guards held by [`Cpu::awake`].
    awake: Padded<AtomicUsize>,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Held by the thread whose job runs; another caller meanwhile works alone.
    owner: Mutex<()>,
}

// SAFETY: `task` is the only field that isn't `Sync`. It is written by the owner of the job while
// the job word says closed and nobody inside, and read only by workers counted inside; the word's
// acquire and release operations order the two.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `task` is used by a worker only while the call that set it is waiting.
unsafe impl Send for Shared {}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Works until no task is left. `me` is the thread's number, 0 for the caller.
    fn work(&self, me: usize, task: &(dyn Fn(usize) + Sync), tasks: usize) {
        let threads = self.next.len();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            for turn in 0..threads {
                let range = (me + turn) % threads;
                let end = (range + 1) * tasks / threads;
                while self.next[range].0.load(Ordering::Relaxed) < end {
                    let index = self.next[range].0.fetch_add(1, Ordering::Relaxed);
                    if index >= end {
                        break;
                    }
                    task(index);
                }
            }
        }));
        if let Err(payload) = outcome {
            for next in &self.next {
                next.0.store(tasks, Ordering::Relaxed);
            }
            lock(&self.panic).get_or_insert(payload);
        }
    }

    fn worker(&self, me: usize) {
        IN_TASK.set(true);
        let mut done = 0;
        let mut spins = 0;
        loop {
            let word = self.word.0.load(Ordering::Acquire);
            if word & STOP != 0 {
                return;
            }
            if word & OPEN != 0 && word / JOB != done {
                let entered = self.word.0.compare_exchange_weak(
                    word,
                    word + 1,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if entered.is_err() {
                    continue;
                }
                done = word / JOB;
                // SAFETY: this thread is counted inside an open job, so the caller has written
                // `task` before and waits for this thread before it returns.
                if let Some((task, tasks)) = unsafe { *self.task.get() } {
                    // SAFETY: as above; the closure lives until the caller returns.
                    self.work(me, unsafe { &*task }, tasks);
                }
                self.word.0.fetch_sub(1, Ordering::Release);
                spins = 0;
                continue;
            }
            spins += 1;
            std::hint::spin_loop();
            if spins < WORKER_SPINS {
                continue;
            }
            if spins % 64 == 0 {
                std::thread::yield_now();
            }
            if spins > SPINS_BEFORE_SLEEP {
                if self.awake.0.load(Ordering::Relaxed) == 0 {
                    self.doze(done);
                }
                spins = 0;
            }
        }
    }

    /// Sleeps until there is a job that this worker has not seen, or a reason to stay awake.
    fn doze(&self, done: usize) {
        let mut guard = lock(&self.sleep);
        // Sequentially consistent against `rouse`: either it sees this sleeper, or this thread
        // sees what `rouse` announces.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let word = self.word.0.load(Ordering::SeqCst);
            let job = word & OPEN != 0 && word / JOB != done;
            if job || word & STOP != 0 || self.awake.0.load(Ordering::SeqCst) > 0 {
                break;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn rouse(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.sleep));
            self.wake.notify_all();
        }
    }
}

impl Cpu {
    /// A pool of `threads` threads (the caller counted; at least 1) with the best SIMD level that
    /// the machine has and `CYANEA_SIMD` allows.
    pub fn new(threads: usize) -> Cpu {
        Cpu::with_simd(threads, Simd::detect())
    }

    /// A pool with a given SIMD level, lowered to what the machine has.
    pub fn with_simd(threads: usize, simd: Simd) -> Cpu {
        let threads = threads.clamp(1, INSIDE);
        let shared = Arc::new(Shared {
            word: Padded(AtomicUsize::new(0)),
            task: UnsafeCell::new(None),
            next: (0..threads).map(|_| Padded(AtomicUsize::new(0))).collect(),
            awake: Padded(AtomicUsize::new(0)),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
            panic: Mutex::new(None),
            owner: Mutex::new(()),
        });
        // A worker that the system refuses is done without: ranges of absent threads are taken
        // by the others.
        let workers = (1..threads)
            .filter_map(|me| {
                let shared = shared.clone();
                std::thread::Builder::new()
                    .name(format!("cyanea-{me}"))
                    .spawn(move || shared.worker(me))
                    .ok()
            })
            .collect();
        Cpu { shared, workers, simd: simd.min(Simd::available()) }
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
        self.shared.next.len()
    }

    /// The SIMD level that kernels dispatch on.
    pub fn simd(&self) -> Simd {
        self.simd
    }

    /// Keeps the workers spinning between launches until the guard is dropped.
    pub fn awake(&self) -> Awake<'_> {
        self.shared.awake.0.fetch_add(1, Ordering::SeqCst);
        self.shared.rouse();
        Awake { cpu: self }
    }

    /// Calls `task(i)` once for each `i` in `0..tasks`, on any thread and in any order. A call
    /// from inside a task, or while another thread's job runs, works on the calling thread alone.
    ///
    /// # Panics
    /// With the first panic of a task, when all threads have left the job.
    pub fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let serial = || (0..tasks).for_each(task);
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            return serial();
        }
        let Ok(_owner) = self.shared.owner.try_lock() else {
            return serial();
        };
        let shared = &*self.shared;
        let threads = self.threads();
        for (index, next) in shared.next.iter().enumerate() {
            next.0.store(index * tasks / threads, Ordering::Relaxed);
        }
        // SAFETY: only the lifetime is erased. This call closes the job and waits for every
        // worker inside it before it returns, so nobody uses the closure afterwards.
        let erased: Task = unsafe {
            std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Task>(std::ptr::from_ref(
                task,
            ))
        };
        // SAFETY: the job is closed, nobody is inside, and this thread owns it.
        unsafe { *shared.task.get() = Some((erased, tasks)) };
        let word = shared.word.0.load(Ordering::Relaxed);
        shared.word.0.store((word & !(INSIDE | OPEN)).wrapping_add(JOB) | OPEN, Ordering::SeqCst);
        shared.rouse();

        IN_TASK.set(true);
        shared.work(0, task, tasks);
        IN_TASK.set(false);

        shared.word.0.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while shared.word.0.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            std::hint::spin_loop();
            if spins > CALLER_SPINS {
                std::thread::yield_now();
            }
        }
        let panicked = lock(&shared.panic).take();
        if let Some(payload) = panicked {
            drop(_owner);
            resume_unwind(payload);
        }
    }

    /// Cuts `data` into pieces of `chunk` elements (the last may be shorter) and calls
    /// `task(index, piece)` for each, on any thread and in any order.
    pub fn chunks_mut<T: Send>(
        &self,
        data: &mut [T],
        chunk: usize,
        task: &(dyn Fn(usize, &mut [T]) + Sync),
    ) {
        let pieces = Pieces::new(data, chunk);
        // SAFETY: each index comes once, so no piece is borrowed twice.
        self.run(pieces.count(), &|index| task(index, unsafe { pieces.get(index) }));
    }
}

impl Drop for Cpu {
    fn drop(&mut self) {
        self.shared.word.0.fetch_or(STOP, Ordering::SeqCst);
        self.shared.rouse();
        for worker in self.workers.drain(..) {
            // A worker catches every panic of a task, so joining can't fail.
            let _ = worker.join();
        }
    }
}

/// A mutable slice whose pieces different threads borrow.
struct Pieces<'a, T> {
    start: *mut T,
    length: usize,
    chunk: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: threads get disjoint pieces of a slice whose elements may be sent.
unsafe impl<T: Send> Sync for Pieces<'_, T> {}

impl<'a, T> Pieces<'a, T> {
    fn new(slice: &'a mut [T], chunk: usize) -> Self {
        assert!(chunk > 0, "pieces of zero elements");
        Pieces {
            start: slice.as_mut_ptr(),
            length: slice.len(),
            chunk,
            _slice: std::marker::PhantomData,
        }
    }

    fn count(&self) -> usize {
        self.length.div_ceil(self.chunk)
    }

    /// # Safety
    /// `index < count()`, and no piece is borrowed twice at the same time.
    unsafe fn get(&self, index: usize) -> &'a mut [T] {
        let from = index * self.chunk;
        let length = self.chunk.min(self.length - from);
        // SAFETY: inside the slice, and disjoint from all other pieces.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), length) }
    }
}

/// See [`Cpu::awake`].
pub struct Awake<'a> {
    cpu: &'a Cpu,
}

impl Drop for Awake<'_> {
    fn drop(&mut self) {
        self.cpu.shared.awake.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn every_task_runs_once() {
        for threads in [1, 2, 3, 7] {
            let cpu = Cpu::new(threads);
            let _awake = cpu.awake();
            for tasks in [0, 1, 2, 5, 64, 1000] {
                let counts: Vec<AtomicU32> = (0..tasks).map(|_| AtomicU32::new(0)).collect();
                for _ in 0..20 {
                    cpu.run(tasks, &|index| {
                        counts[index].fetch_add(1, Ordering::Relaxed);
                    });
                }
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 20));
            }
        }
    }

    #[test]
    fn works_from_sleep_and_nested() {
        let cpu = Cpu::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            let sum = AtomicU32::new(0);
            cpu.run(8, &|outer| {
                cpu.run(8, &|inner| {
                    sum.fetch_add((outer * 8 + inner) as u32, Ordering::Relaxed);
                });
            });
            assert_eq!(sum.into_inner(), 63 * 64 / 2);
        }
    }

    #[test]
    fn callers_on_many_threads_do_not_disturb_each_other() {
        let cpu = Cpu::new(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut data = vec![0usize; 100];
                        cpu.chunks_mut(&mut data, 7, &|index, piece| piece.fill(index));
                        assert!(data.iter().enumerate().all(|(at, &value)| value == at / 7));
                    }
                });
            }
        });
    }

    #[test]
    fn panics_reach_the_caller_and_the_pool_survives() {
        let cpu = Cpu::new(2);
        for _ in 0..3 {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                cpu.run(16, &|index| assert!(index != 11, "task eleven"));
            }));
            let payload = caught.expect_err("the panic must propagate");
            assert_eq!(payload.downcast_ref::<&str>(), Some(&"task eleven"));
            let count = AtomicU32::new(0);
            cpu.run(16, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 16);
        }
    }

    #[test]
    fn the_last_piece_may_be_shorter() {
        let mut a = vec![0.0f32; 10];
        Cpu::new(2).chunks_mut(&mut a, 3, &|index, a| a.fill((10 * index + a.len()) as f32));
        assert_eq!(a, [3.0, 3.0, 3.0, 13.0, 13.0, 13.0, 23.0, 23.0, 23.0, 31.0]);
    }
}
