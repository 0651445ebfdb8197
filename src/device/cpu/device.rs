//! Sessions of the CPU device: two allocations, and slices into them.

use super::{Cpu, Io, Tensor, TensorMut};
use crate::device::{CpuWork, DType, Device, Loaded, Program, Session, Space, Target, View, Work};
use crate::error::{Error, Result};
use std::alloc::Layout;
use std::sync::Arc;

/// Most inputs or outputs that one launch may have.
const MAX_OPERANDS: usize = 65;

/// Alignment of both allocations, in bytes: one cache line, one AVX-512 register.
const ALIGNMENT: usize = 64;

/// Cache-line aligned memory, zeroed. It is touched only through the raw pointer kept here, so
/// that slices of different launches never invalidate each other.
struct Memory {
    pointer: *mut f32,
    bytes: usize,
    allocation: *mut u8,
    layout: Layout,
}

// SAFETY: the allocation is owned by this struct alone, and a session hands out slices of it only
// while it is borrowed mutably.
unsafe impl Send for Memory {}

impl Memory {
    /// Pages that come zeroed from the operating system are not touched here: the worker that
    /// writes one first pays for it.
    fn new(bytes: usize) -> Result<Memory> {
        let refuse = || {
            Error::device(format!(
                "the cpu device can't allocate {bytes} bytes; use a smaller batch"
            ))
        };
        // Asked for at a small alignment and aligned by hand: the allocator clears memory of a
        // larger alignment itself, page by page.
        let bytes = bytes.checked_next_multiple_of(ALIGNMENT).ok_or_else(refuse)?;
        let with_room = bytes.checked_add(ALIGNMENT).ok_or_else(refuse)?;
        let layout = Layout::from_size_align(with_room, align_of::<f32>()).map_err(|_| refuse())?;
        // SAFETY: the layout's size is not 0.
        let allocation = unsafe { std::alloc::alloc_zeroed(layout) };
        if allocation.is_null() {
            return Err(refuse());
        }
        advise_huge_pages(allocation, with_room);
        // SAFETY: there are `ALIGNMENT` bytes more than asked for, and this skips fewer.
        let pointer = unsafe { allocation.add(allocation.align_offset(ALIGNMENT)) }.cast();
        Ok(Memory { pointer, bytes, allocation, layout })
    }
}

/// Asks for large pages, which Linux gives to those who ask: a step reads hundreds of megabytes of
/// weights, and small pages cost it both at the first touch and in translations ever after.
#[cfg(target_os = "linux")]
fn advise_huge_pages(memory: *mut u8, bytes: usize) {
    const PAGE: usize = 4096;
    let start = memory.align_offset(PAGE);
    if bytes > start + (1 << 22) {
        // SAFETY: the range lies in one allocation of this process, and the advice doesn't change
        // what memory holds. It may be refused; nothing depends on it.
        unsafe { libc::madvise(memory.add(start).cast(), bytes - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn advise_huge_pages(_: *mut u8, _: usize) {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: both come from `Memory::new`.
        unsafe { std::alloc::dealloc(self.allocation, self.layout) };
    }
}

/// The embedded device: no GPU, no toolkit.
pub struct CpuDevice {
    cpu: Arc<Cpu>,
}

impl CpuDevice {
    /// With as many threads as `RAYON_NUM_THREADS` says, or as the machine has.
    pub fn new() -> CpuDevice {
        CpuDevice { cpu: Cpu::shared() }
    }

    /// With a given number of threads.
    pub fn with_threads(threads: usize) -> CpuDevice {
        CpuDevice { cpu: Arc::new(Cpu::new(threads)) }
    }
}

impl Default for CpuDevice {
    fn default() -> Self {
        CpuDevice::new()
    }
}

impl Device for CpuDevice {
    fn name(&self) -> String {
        "cpu".into()
    }

    fn target(&self) -> &Target {
        &Target::CPU
    }

    fn open(&self, persistent_bytes: usize, arena_bytes: usize) -> Result<Box<dyn Session>> {
        Ok(Box::new(CpuSession {
            cpu: self.cpu.clone(),
            persistent: Memory::new(persistent_bytes)?,
            arena: Memory::new(arena_bytes)?,
            programs: Vec::new(),
            launches: 0,
        }))
    }
}

struct CpuSession {
    cpu: Arc<Cpu>,
    persistent: Memory,
    arena: Memory,
    programs: Vec<Arc<Program>>,
    launches: u64,
}

impl CpuSession {
    fn check(&self, label: &str, work: &CpuWork) -> Result<()> {
        let refuse = |what: String| Err(Error::operation(label, what));
        if work.inputs.len() > MAX_OPERANDS || work.outputs.len() > MAX_OPERANDS {
            return refuse(format!("more than {MAX_OPERANDS} operands"));
        }
        let written: Vec<&View> = work.outputs.iter().chain(&work.scratch).collect();
        for view in work.inputs.iter().chain(written.iter().copied()) {
            let memory = match view.space {
                Space::Arena => &self.arena,
                Space::Persistent => &self.persistent,
            };
            if view.range().end > memory.bytes {
                return refuse(format!("{view:?} lies outside the session's memory"));
            }
            if view.offset % 4 != 0 || view.ty.dtype == DType::F16 {
                return refuse(format!("the cpu device computes in float32, not on {:?}", view.ty));
            }
        }
        for (index, view) in written.iter().enumerate() {
            let others = work.inputs.iter().chain(written[index + 1..].iter().copied());
            for other in others {
                if view.overlaps(other) {
                    return refuse(format!("{view:?} overlaps {other:?}"));
                }
            }
        }
        Ok(())
    }

    fn pointer(&self, view: &View) -> *mut f32 {
        let memory = match view.space {
            Space::Arena => &self.arena,
            Space::Persistent => &self.persistent,
        };
        memory.pointer.wrapping_byte_add(view.offset)
    }

    fn launch(&self, work: &CpuWork) {
        let mut inputs = [Tensor { shape: &[], data: &[] }; MAX_OPERANDS];
        for (slot, view) in inputs.iter_mut().zip(&work.inputs) {
            // SAFETY: `check` proved at load time that the view lies inside its allocation, is
            // aligned to 4 bytes and overlaps nothing that this launch writes.
            let data =
                unsafe { std::slice::from_raw_parts(self.pointer(view), view.ty.elements()) };
            *slot = Tensor { shape: &view.ty.shape, data };
        }
        let mut outputs: [TensorMut; MAX_OPERANDS] =
            std::array::from_fn(|_| TensorMut { shape: &[], data: &mut [] });
        for (slot, view) in outputs.iter_mut().zip(&work.outputs) {
            // SAFETY: as above; no other view of this launch overlaps it, and `run` holds the
            // session mutably, so no other launch is under way.
            let data =
                unsafe { std::slice::from_raw_parts_mut(self.pointer(view), view.ty.elements()) };
            *slot = TensorMut { shape: &view.ty.shape, data };
        }
        let mut empty: [f32; 0] = [];
        let scratch: &mut [f32] = match &work.scratch {
            // SAFETY: as above.
            Some(view) => unsafe {
                std::slice::from_raw_parts_mut(self.pointer(view), view.ty.elements())
            },
            None => &mut empty,
        };
        work.kernel.run(
            &self.cpu,
            Io {
                inputs: &inputs[..work.inputs.len()],
                outputs: &mut outputs[..work.outputs.len()],
                scratch,
            },
        );
    }
}

impl Session for CpuSession {
    fn load(&mut self, program: Arc<Program>) -> Result<Loaded> {
        for launch in &program.launches {
            match &launch.work {
                Work::Cpu(work) => self.check(&launch.label, work)?,
                Work::Kernel(work) => {
                    return Err(Error::device(format!(
                        "the cpu device can't run the kernel {}; compile for the cpu target",
                        work.kernel
                    )));
                }
            }
        }
        self.programs.push(program);
        Ok(Loaded(self.programs.len() - 1))
    }

    fn run(&mut self, program: Loaded) -> Result<()> {
        let program = self.programs[program.0].clone();
        let _awake = self.cpu.awake();
        for launch in &program.launches {
            if let Work::Cpu(work) = &launch.work {
                self.launch(work);
                self.launches += 1;
            }
        }
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.persistent.bytes, "write outside the memory");
        // SAFETY: the range lies inside the allocation, which this session holds mutably.
        unsafe {
            let to = (self.persistent.pointer as *mut u8).add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
        Ok(())
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        assert!(offset + bytes.len() <= self.persistent.bytes, "read outside the memory");
        // SAFETY: as in `write`.
        unsafe {
            let from = (self.persistent.pointer as *const u8).add(offset);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len());
        }
        Ok(())
    }

    fn launches(&self) -> u64 {
        self.launches
    }

    fn kernels(&self) -> Vec<String> {
        Vec::new()
    }
}
