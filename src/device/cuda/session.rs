//! One GPU: its context, two allocations, and programs recorded from their lists of launches.

use super::graph::{Graph, Stream};
use super::{image, probe, refused};
use crate::device::kernels::{self, Kernel, Sizes};
use crate::device::{
    CodePath, Device, KernelWork, Loaded, Numerics, Program, Session, Space, Target, Work,
};
use crate::error::{Error, Result};
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use cudarc::driver::{DriverError, result};
use std::collections::{BTreeSet, HashMap};
use std::ffi::{CString, c_void};
use std::sync::Arc;

/// One NVIDIA GPU.
pub struct Cuda {
    name: String,
    device: sys::CUdevice,
    capability: u32,
    target: Target,
}

impl Cuda {
    /// GPU `ordinal`, on the code path of its chip, or on `code_path` where that is given (a newer
    /// GPU can run the sm_70 path).
    ///
    /// # Errors
    /// No driver, no such GPU, a chip before Volta, or a code path that the chip can't run.
    pub fn new(ordinal: u32, code_path: Option<CodePath>, numerics: Numerics) -> Result<Cuda> {
        let count = probe::devices()?;
        if ordinal >= count {
            return Err(Error::device(format!(
                "there is no cuda:{ordinal}; this machine has cuda:0 to cuda:{}",
                count - 1
            )));
        }
        let device = result::device::get(ordinal as i32).map_err(|e| refused("open the GPU", e))?;
        let attribute = |which| {
            // SAFETY: the device comes from the driver.
            unsafe { result::device::get_attribute(device, which) }
                .map(|value| value as u32)
                .map_err(|e| refused("describe the GPU", e))
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let capability = 10 * major + minor;
        let mut target = match capability {
            ..70 => {
                return Err(Error::device(format!(
                    "cuda:{ordinal} has compute capability {major}.{minor}; at least 7.0 is needed"
                )));
            }
            70..80 => Target::V100,
            80..90 => Target::A100,
            _ => Target::H100,
        };
        match code_path {
            Some(CodePath::Sm70) => target = Target { code_path: CodePath::Sm70, ..target },
            Some(CodePath::Sm80) if capability < 80 => {
                return Err(Error::device(format!(
                    "cuda:{ordinal} is older than the sm_80 code path; use cuda:{ordinal}"
                )));
            }
            _ => {}
        }
        target.multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        target.shared_bytes =
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        target = target.with_numerics(numerics)?;
        // As the user named it: results of another path are to be told apart.
        let path = if code_path == Some(CodePath::Sm70) { ":v100" } else { "" };
        Ok(Cuda { name: format!("cuda:{ordinal}{path}"), device, capability, target })
    }
}

impl Device for Cuda {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn open(&self, persistent_bytes: usize, arena_bytes: usize) -> Result<Box<dyn Session>> {
        let context = Arc::new(Context::new(self.device)?);
        Ok(Box::new(CudaSession {
            persistent: Memory::new(&context, persistent_bytes, 0)?,
            arena: Memory::new(&context, arena_bytes, 0xff)?,
            stream: Stream::new(&context)?,
            context,
            capability: self.capability,
            target: self.target.clone(),
            modules: HashMap::new(),
            shared: HashMap::new(),
            programs: Vec::new(),
            launches: 0,
            kernels: BTreeSet::new(),
        }))
    }
}

/// The GPU's primary context.
pub(super) struct Context {
    device: sys::CUdevice,
    handle: sys::CUcontext,
}

// SAFETY: a context may be used from any thread that makes it current, which every use does.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    fn new(device: sys::CUdevice) -> Result<Context> {
        // SAFETY: the device comes from the driver; released in `drop`.
        let handle = unsafe { result::primary_ctx::retain(device) };
        Ok(Context { device, handle: handle.map_err(|e| refused("open a context", e))? })
    }

    /// Makes the context current on the calling thread.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive.
        unsafe { result::ctx::set_current(self.handle) }.map_err(|e| refused("select the GPU", e))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `new`.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// One allocation on the GPU.
struct Memory {
    context: Arc<Context>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl Memory {
    fn new(context: &Arc<Context>, bytes: usize, fill: u8) -> Result<Memory> {
        context.bind()?;
        // The driver refuses to allocate nothing.
        let bytes = bytes.max(256);
        // SAFETY: a context is current.
        let address = unsafe { result::malloc_sync(bytes) }
            .map_err(|e| refused(&format!("allocate {bytes} bytes"), e))?;
        let memory = Memory { context: context.clone(), address, bytes };
        // SAFETY: the range is the allocation just made.
        unsafe { result::memset_d8_sync(address, fill, bytes) }
            .map_err(|e| refused("fill memory", e))?;
        Ok(memory)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: allocated in `new`; the session synchronises after each run.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A loaded image.
struct Module {
    context: Arc<Context>,
    handle: sys::CUmodule,
}

impl Drop for Module {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: loaded once; its functions are not used after the session.
            let _ = unsafe { result::module::unload(self.handle) };
        }
    }
}

/// A program, and what a run of it launches.
struct LoadedProgram {
    graph: Graph,
    kernels: Vec<&'static str>,
}

// Fields are dropped in this order: what runs before what it runs in.
struct CudaSession {
    programs: Vec<LoadedProgram>,
    stream: Stream,
    context: Arc<Context>,
    capability: u32,
    target: Target,
    persistent: Memory,
    arena: Memory,
    /// By source file.
    modules: HashMap<&'static str, Module>,
    /// By kernel: the most dynamic shared memory that a launch asks for.
    shared: HashMap<&'static str, u32>,
    launches: u64,
    kernels: BTreeSet<&'static str>,
}

// SAFETY: handles of the driver may be used from any thread that makes their context current,
// which every method does first.
unsafe impl Send for CudaSession {}

impl CudaSession {
    fn function(&mut self, kernel: &'static Kernel, shared_bytes: u32) -> Result<sys::CUfunction> {
        let image = image::choose(kernel.source, self.capability, self.target.code_path)?;
        if !self.modules.contains_key(kernel.source) {
            // SAFETY: the image is an ELF file or a PTX text with a final zero, from the build.
            let handle = unsafe { result::module::load_data(image.bytes.as_ptr().cast()) };
            let handle = handle
                .map_err(|e| refused(&format!("load {} for {}", image.source, image.arch), e))?;
            self.modules.insert(kernel.source, Module { context: self.context.clone(), handle });
        }
        let symbol = image.functions.iter().find(|f| f.kernel.name == kernel.name);
        let symbol = symbol.and_then(|f| CString::new(f.symbol).ok());
        let symbol = symbol.ok_or_else(|| {
            Error::device(format!("the image of {} lacks {}", kernel.source, kernel.name))
        })?;
        let module = self.modules[kernel.source].handle;
        // SAFETY: the module is loaded and stays so as long as the session.
        let function = unsafe { result::module::get_function(module, symbol) }
            .map_err(|e| refused(&format!("find {}", kernel.name), e))?;
        // One limit for all launches of a kernel, in whatever order they come. Setting it is needed
        // beyond 48 KiB with the static part, and harmless below.
        let most = self.shared.entry(kernel.name).or_default();
        if shared_bytes > *most {
            *most = shared_bytes;
            let attribute =
                sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function was found above.
            unsafe {
                result::function::set_function_attribute(function, attribute, shared_bytes as i32)
            }
            .map_err(|e| refused(&format!("give {shared_bytes} bytes of shared memory"), e))?;
        }
        Ok(function)
    }

    fn memory(&self, space: Space) -> &Memory {
        match space {
            Space::Arena => &self.arena,
            Space::Persistent => &self.persistent,
        }
    }

    /// Puts one launch into the stream.
    fn launch(
        &self,
        work: &KernelWork,
        function: sys::CUfunction,
    ) -> std::result::Result<(), DriverError> {
        let [x, y, z] = work.grid;
        let [bx, by, bz] = work.block;
        // With the addresses filled in.
        let mut params = kernels::filled_params(work, |view| {
            self.memory(view.space).address + view.offset as u64
        });
        let mut arguments = [params.as_mut_ptr().cast::<c_void>()];
        // SAFETY: `check` proved that the parameters have the kernel's size and that all views lie
        // inside the two allocations; the driver copies the parameters during the call; launches
        // run in the order of the stream.
        unsafe {
            result::launch_kernel(
                function,
                (x, y, z),
                (bx, by, bz),
                work.shared_bytes,
                self.stream.handle(),
                &mut arguments,
            )
        }
    }

    fn range(&self, offset: usize, bytes: usize) -> Result<sys::CUdeviceptr> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.persistent.bytes => {
                Ok(self.persistent.address + offset as sys::CUdeviceptr)
            }
            _ => Err(Error::device(format!(
                "bytes {offset} to {} lie outside the GPU session's {} bytes",
                offset.saturating_add(bytes),
                self.persistent.bytes
            ))),
        }
    }
}

impl Session for CudaSession {
    fn load(&mut self, program: Arc<Program>) -> Result<Loaded> {
        kernels::check_program(&program, &self.target)?;
        self.context.bind()?;
        let sizes = Sizes { persistent: self.persistent.bytes, arena: self.arena.bytes };
        let mut launches = Vec::with_capacity(program.launches.len());
        for launch in &program.launches {
            let Work::Kernel(work) = &launch.work else { continue };
            let kernel = kernels::check(&launch.label, work, &self.target, sizes)?;
            // Modules are loaded and limits set before the recording, which forbids both.
            launches.push((launch, work, kernel, self.function(kernel, work.shared_bytes)?));
        }
        let graph = self.stream.record(|| {
            for (launch, work, kernel, function) in &launches {
                self.launch(work, *function).map_err(|e| {
                    refused(&format!("launch {} ({})", kernel.name, launch.label), e)
                })?;
            }
            Ok(())
        })?;
        let kernels = launches.iter().map(|(_, _, kernel, _)| kernel.name).collect();
        self.programs.push(LoadedProgram { graph, kernels });
        Ok(Loaded(self.programs.len() - 1))
    }

    fn run(&mut self, program: Loaded) -> Result<()> {
        let program = &self.programs[program.0];
        self.stream.run(&program.graph)?;
        self.launches += program.kernels.len() as u64;
        self.kernels.extend(&program.kernels);
        Ok(())
    }

    fn write(&mut self, offset: usize, bytes: &[u8]) -> Result<()> {
        self.context.bind()?;
        let to = self.range(offset, bytes.len())?;
        // SAFETY: the range lies inside the allocation.
        unsafe { result::memcpy_htod_sync(to, bytes) }.map_err(|e| refused("copy to the GPU", e))
    }

    fn read(&mut self, offset: usize, bytes: &mut [u8]) -> Result<()> {
        self.context.bind()?;
        let from = self.range(offset, bytes.len())?;
        // SAFETY: the range lies inside the allocation.
        unsafe { result::memcpy_dtoh_sync(bytes, from) }
            .map_err(|e| refused("copy from the GPU", e))
    }

    fn launches(&self) -> u64 {
        self.launches
    }

    fn kernels(&self) -> Vec<String> {
        self.kernels.iter().map(|name| name.to_string()).collect()
    }
}
