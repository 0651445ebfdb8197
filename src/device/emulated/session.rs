//! The device and its sessions: two allocations, and launches one after another.

use super::block::{Grid, Worker};
#[cfg(feature = "checked")]
use super::checked::Region;
use super::lanes::Shuffle;
use super::memory::Memory;
use crate::device::kernels::{self, Sizes};
use crate::device::{Device, KernelWork, Loaded, Program, Session, Space, Target, View, Work};
use crate::error::{Error, Result};
use rayon::prelude::*;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

/// All bits set: a NaN in every floating type.
const POISON: u8 = 0xff;

/// The kernels, run by the CPU.
pub struct Emulated {
    target: Target,
    seed: u64,
}

impl Emulated {
    /// For a GPU target; the kernels take that target's code path.
    ///
    /// # Errors
    /// The target `cpu`, which has no kernels, or a processor that the kernels were not built for.
    pub fn new(target: Target) -> Result<Emulated> {
        Emulated::with_seed(target, 0)
    }

    /// With another order of blocks and lanes. Results must not depend on it.
    ///
    /// # Errors
    /// As [`Emulated::new`].
    pub fn with_seed(target: Target, seed: u64) -> Result<Emulated> {
        if target.is_cpu() {
            return Err(Error::device("the emulated device runs v100, a100 or h100, not cpu"));
        }
        #[cfg(target_arch = "x86_64")]
        if !(is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c"))
        {
            return Err(Error::device(
                "the emulated device needs a processor with AVX2, FMA and F16C; use --device cpu",
            ));
        }
        Ok(Emulated { target, seed })
    }
}

impl Device for Emulated {
    fn name(&self) -> String {
        format!("emulated:{}", self.target.name)
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn open(&self, persistent_bytes: usize, arena_bytes: usize) -> Result<Box<dyn Session>> {
        Ok(Box::new(EmulatedSession {
            target: self.target.clone(),
            order: Shuffle(self.seed),
            persistent: Memory::new(persistent_bytes, 0)?,
            arena: Memory::new(arena_bytes, POISON)?,
            programs: Vec::new(),
            launches: 0,
            kernels: BTreeSet::new(),
        }))
    }
}

struct EmulatedSession {
    target: Target,
    order: Shuffle,
    persistent: Memory,
    arena: Memory,
    programs: Vec<Arc<Program>>,
    launches: u64,
    kernels: BTreeSet<&'static str>,
}

thread_local! {
    /// Coroutines stay with the thread that made them.
    static WORKER: RefCell<Worker> = RefCell::new(Worker::new());
}

impl EmulatedSession {
    fn sizes(&self) -> Sizes {
        Sizes { persistent: self.persistent.bytes(), arena: self.arena.bytes() }
    }

    /// Where a view lies.
    fn address(&self, view: &View) -> u64 {
        let memory = match view.space {
            Space::Arena => &self.arena,
            Space::Persistent => &self.persistent,
        };
        memory.address().wrapping_add(view.offset).expose_provenance() as u64
    }

    #[cfg(feature = "checked")]
    fn regions(&self, work: &KernelWork) -> Vec<Region> {
        let read = work.pointers.len() - work.written;
        let views = work.pointers.iter().map(|(_, view)| view).enumerate();
        views
            .map(|(index, view)| {
                let start = self.address(view) as usize;
                Region {
                    bytes: start..start + view.ty.bytes(),
                    written: index >= read,
                    name: format!("view {index}, {:?}", view.ty),
                }
            })
            .collect()
    }

    fn launch(&mut self, label: &str, work: &KernelWork) -> Result<()> {
        let kernel = kernels::check(label, work, &self.target, self.sizes())?;
        let entry = kernel.host_entry(self.target.code_path);
        let entry = entry.ok_or_else(|| Error::device("the target cpu has no kernels"))?;
        let params = kernels::filled_params(work, |view| self.address(view));
        let grid = Grid {
            entry,
            params: &params,
            grid: work.grid,
            block: work.block,
            dynamic_shared: work.shared_bytes as usize,
            shared_limit: self.target.shared_bytes as usize,
            #[cfg(feature = "checked")]
            regions: self.regions(work),
        };
        let [x, y, z] = work.grid.map(u64::from);
        let blocks = Blocks::new(x * y * z, &mut self.order);
        let seed = self.order.next();
        let grid = Shared(&grid);
        (0..blocks.count)
            .into_par_iter()
            .try_for_each(|index| {
                let linear = blocks.at(index);
                let place = [linear % x, linear / x % y, linear / (x * y)].map(|n| n as u32);
                // SAFETY: `check` proved that the parameters have the kernel's size and that every
                // view lies inside this session's memory, which no one else touches while the
                // session is borrowed mutably; the kernel keeps to its views.
                WORKER.with_borrow_mut(|worker| unsafe {
                    worker.run(grid.get(), place, seed ^ linear.wrapping_mul(0x9E37_79B9))
                })
            })
            .map_err(|fault| Error::operation(label, format!("{}: {fault}", work.kernel)))?;
        self.launches += 1;
        self.kernels.insert(kernel.name);
        Ok(())
    }
}

/// A grid that several threads read.
#[derive(Clone, Copy)]
struct Shared<'a>(&'a Grid<'a>);

// SAFETY: a grid is read only; its parameters hold addresses as numbers.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    fn get(&self) -> &'a Grid<'a> {
        self.0
    }
}

/// A permutation of the blocks that needs no memory: i ↦ (factor · i + start) mod count.
struct Blocks {
    count: u64,
    factor: u64,
    start: u64,
}

impl Blocks {
    fn new(count: u64, order: &mut Shuffle) -> Blocks {
        let start = order.next() % count;
        let mut factor = order.next() % count;
        while gcd(factor, count) != 1 {
            factor += 1;
        }
        Blocks { count, factor, start }
    }

    fn at(&self, index: u64) -> u64 {
        let product = u128::from(self.factor) * u128::from(index) + u128::from(self.start);
        (product % u128::from(self.count)) as u64
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Session for EmulatedSession {
    fn load(&mut self, program: Arc<Program>) -> Result<Loaded> {
        kernels::check_program(&program, &self.target)?;
        for launch in &program.launches {
            if let Work::Kernel(work) = &launch.work {
                kernels::check(&launch.label, work, &self.target, self.sizes())?;
            }
        }
        self.programs.push(program);
        Ok(Loaded(self.programs.len() - 1))
    }

    /// The arena holds NaN at the start, so that what a program has not written itself shows.
    fn run(&mut self, program: Loaded) -> Result<()> {
        let program = self.programs[program.0].clone();
        self.arena.slice().fill(POISON);
        for launch in &program.launches {
            if let Work::Kernel(work) = &launch.work {
                self.launch(&launch.label, work)?;
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.persistent.slice()[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.copy_from_slice(&self.persistent.slice()[offset..offset + bytes.len()]);
        Ok(())
    }

    fn launches(&self) -> u64 {
        self.launches
    }

    fn kernels(&self) -> Vec<String> {
        self.kernels.iter().map(|name| name.to_string()).collect()
    }
}
