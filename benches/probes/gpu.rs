//! The driver, as far as the probes need it. A probe's process is short: what it opens and allocates
//! lasts until it ends.

use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use cudarc::driver::{DriverError, result};
use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;

pub type Result<T> = std::result::Result<T, String>;

/// What the build made of `benches/probes/*.cu`: file, architecture, image.
const IMAGES: &[(&str, &str, &[u8])] = include!(concat!(env!("OUT_DIR"), "/probes.rs"));

/// Says what failed.
pub trait Told<T> {
    fn told(self, what: &str) -> Result<T>;
}

impl<T> Told<T> for std::result::Result<T, DriverError> {
    fn told(self, what: &str) -> Result<T> {
        self.map_err(|error| format!("the GPU driver could not {what}: {:?}", error.0))
    }
}

pub struct Gpu {
    pub name: String,
    /// 90 for compute capability 9.0.
    pub capability: u32,
    pub multiprocessors: u32,
    context: sys::CUcontext,
    pub stream: sys::CUstream,
}

/// A launch: grid and block are one-dimensional.
pub struct Launch {
    pub function: sys::CUfunction,
    pub grid: u32,
    pub block: u32,
    pub shared_bytes: u32,
    /// 8 bytes for each argument; smaller ones lie in the first of them.
    pub arguments: Vec<u64>,
    /// The kernel waits by itself for the one before it and may start early.
    pub early: bool,
    /// All blocks must be resident.
    pub cooperative: bool,
}

impl Gpu {
    /// The first GPU.
    pub fn open() -> Result<Gpu> {
        cyanea::device::cuda::devices().map_err(|error| error.to_string())?;
        let device = result::device::get(0).told("open the GPU")?;
        let attribute = |which| {
            // SAFETY: the device comes from the driver.
            unsafe { result::device::get_attribute(device, which) }.told("describe the GPU")
        };
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        let multiprocessors = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        // SAFETY: the device comes from the driver; the context lives as long as the process.
        let context = unsafe { result::primary_ctx::retain(device) }.told("open a context")?;
        // SAFETY: the context was opened above.
        unsafe { result::ctx::set_current(context) }.told("select the GPU")?;
        let stream = result::stream::create(result::stream::StreamKind::NonBlocking);
        Ok(Gpu {
            name: result::device::get_name(device).told("name the GPU")?,
            capability: (10 * major + minor) as u32,
            multiprocessors: multiprocessors as u32,
            context,
            stream: stream.told("open a stream")?,
        })
    }

    /// A kernel of a file, from machine code for this chip or, with `ptx`, through the driver's
    /// compiler.
    pub fn function(&self, file: &str, kernel: &str, ptx: bool) -> Result<sys::CUfunction> {
        let runs = |arch: &str| match arch.split_once('_') {
            Some(("compute", number)) => {
                ptx && number.parse().is_ok_and(|n: u32| n <= self.capability)
            }
            // An image of 9.0a runs on no other chip.
            Some(("sm", "90a")) => !ptx && self.capability == 90,
            Some(("sm", number)) => {
                let same = |n: u32| n / 10 == self.capability / 10 && n <= self.capability;
                !ptx && number.parse().is_ok_and(same)
            }
            _ => false,
        };
        let image = IMAGES.iter().find(|(name, arch, _)| *name == file && runs(arch));
        let image = image.ok_or_else(|| {
            if IMAGES.is_empty() {
                return "this build has no probes; run scripts/cuda-toolchain.sh and build again"
                    .into();
            }
            let archs = IMAGES.iter().filter(|(name, ..)| *name == file).map(|(_, arch, _)| *arch);
            let archs = archs.collect::<Vec<_>>().join(", ");
            format!("{file} is built for {archs}, not for sm_{}", self.capability)
        })?;
        // SAFETY: the image is an ELF file or a PTX text with a final zero, from the build.
        let module = unsafe { result::module::load_data(image.2.as_ptr().cast()) };
        let module = module.told(&format!("load {file} for {}", image.1))?;
        let name = CString::new(kernel).map_err(|e| e.to_string())?;
        // SAFETY: the module was loaded above and stays.
        unsafe { result::module::get_function(module, name) }.told(&format!("find {kernel}"))
    }

    /// Lets a kernel have so much dynamic shared memory.
    pub fn allow_shared(&self, function: sys::CUfunction, bytes: u32) -> Result<()> {
        let attribute =
            sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        // SAFETY: the function comes from a loaded module.
        unsafe { result::function::set_function_attribute(function, attribute, bytes as i32) }
            .told(&format!("give {bytes} bytes of shared memory"))
    }

    /// Zeroed memory; its address.
    pub fn zeros(&self, bytes: usize) -> Result<u64> {
        // SAFETY: a context is current; the range is the allocation itself.
        unsafe {
            let address = result::malloc_sync(bytes).told("allocate memory")?;
            result::memset_d8_sync(address, 0, bytes).told("clear memory")?;
            Ok(address)
        }
    }

    pub fn clear(&self, address: u64, bytes: usize) -> Result<()> {
        // SAFETY: the callers pass what `zeros` gave them.
        unsafe { result::memset_d8_sync(address, 0, bytes) }.told("clear memory")
    }

    pub fn upload<T: Copy>(&self, values: &[T]) -> Result<u64> {
        let address = self.zeros(size_of_val(values))?;
        // SAFETY: the allocation has just the size of the values.
        unsafe { result::memcpy_htod_sync(address, values) }.told("copy to the GPU")?;
        Ok(address)
    }

    /// Fills `values` from memory that is at least as large.
    pub fn download<T: Copy>(&self, address: u64, values: &mut [T]) -> Result<()> {
        // SAFETY: the callers pass what `zeros` or `upload` gave them for at least as many values.
        unsafe { result::memcpy_dtoh_sync(values, address) }.told("copy from the GPU")
    }

    pub fn launch(&self, launch: &Launch) -> Result<()> {
        let mut arguments: Vec<*mut c_void> = launch
            .arguments
            .iter()
            .map(|argument| std::ptr::from_ref(argument).cast_mut().cast())
            .collect();
        let mut attributes = Vec::new();
        let mut attribute = |id, value| {
            let mut union = sys::CUlaunchAttributeValue { pad: [0; 64] };
            // Both values are ints at the start of the union.
            union.cooperative = value;
            attributes.push(sys::CUlaunchAttribute { id, pad: [0; 4], value: union });
        };
        use sys::CUlaunchAttributeID_enum as Id;
        if launch.early {
            attribute(Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, 1);
        }
        if launch.cooperative {
            attribute(Id::CU_LAUNCH_ATTRIBUTE_COOPERATIVE, 1);
        }
        let config = sys::CUlaunchConfig {
            gridDimX: launch.grid,
            gridDimY: 1,
            gridDimZ: 1,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: self.stream,
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        };
        // SAFETY: the probes pass arguments of the kernel's types that point to memory as large as it
        // touches; the driver copies arguments and attributes during the call.
        unsafe {
            sys::cuLaunchKernelEx(
                &config,
                launch.function,
                arguments.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        }
        .result()
        .told("launch a kernel")
    }

    pub fn wait(&self) -> Result<()> {
        // SAFETY: the stream was opened by `open`.
        unsafe { result::stream::synchronize(self.stream) }.told("finish")
    }

    /// Microseconds on the GPU of what `work` puts into the stream, `samples` times after one warm-up.
    pub fn time(&self, samples: usize, mut work: impl FnMut() -> Result<()>) -> Result<Vec<f64>> {
        let event = || result::event::create(sys::CUevent_flags::CU_EVENT_DEFAULT);
        let (start, end) = (event().told("make an event")?, event().told("make an event")?);
        let mut times = Vec::with_capacity(samples);
        for sample in 0..=samples {
            // SAFETY: events and stream were made by the driver and live on.
            unsafe {
                result::event::record(start, self.stream).told("record an event")?;
                work()?;
                result::event::record(end, self.stream).told("record an event")?;
                result::event::synchronize(end).told("finish")?;
                let milliseconds = result::event::elapsed(start, end).told("tell the time")?;
                if sample > 0 {
                    times.push(1e3 * f64::from(milliseconds));
                }
            }
        }
        Ok(times)
    }

    /// A graph of what `work` puts into the stream.
    pub fn graph(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph<'_>> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream was opened by `open` and captures nothing yet.
        unsafe { result::stream::begin_capture(self.stream, mode) }.told("begin a capture")?;
        let worked = work();
        // SAFETY: a capture was begun above.
        let graph = unsafe { result::stream::end_capture(self.stream) };
        worked?;
        self.instantiate(graph.told("end a capture")?)
    }

    /// A graph with one WHILE node, whose body is what `body` puts into the stream, given the handle of
    /// its condition; the condition is true at the start of each launch.
    pub fn while_graph(&self, body: impl FnOnce(u64) -> Result<()>) -> Result<Graph<'_>> {
        let mut graph = MaybeUninit::uninit();
        let mut handle = 0;
        let mut node = MaybeUninit::uninit();
        let mut inner: MaybeUninit<sys::CUgraph> = MaybeUninit::uninit();
        // SAFETY: zeros are a valid value of this struct of integers and pointers.
        let mut params: sys::CUgraphNodeParams = unsafe { std::mem::zeroed() };
        params.type_ = sys::CUgraphNodeType_enum::CU_GRAPH_NODE_TYPE_CONDITIONAL;
        // SAFETY: all pointers are valid for the calls; what a call writes is read only after it
        // succeeded; the body's graph belongs to the node.
        let graph = unsafe {
            sys::cuGraphCreate(graph.as_mut_ptr(), 0).result().told("make a graph")?;
            let graph = graph.assume_init();
            let assign = sys::CU_GRAPH_COND_ASSIGN_DEFAULT;
            sys::cuGraphConditionalHandleCreate(&mut handle, graph, self.context, 1, assign)
                .result()
                .told("make a condition")?;
            params.__bindgen_anon_1.conditional = sys::CUDA_CONDITIONAL_NODE_PARAMS {
                handle,
                type_: sys::CUgraphConditionalNodeType_enum::CU_GRAPH_COND_TYPE_WHILE,
                size: 1,
                phGraph_out: std::ptr::null_mut(),
                ctx: self.context,
            };
            let none = std::ptr::null();
            sys::cuGraphAddNode_v2(
                node.as_mut_ptr(),
                graph,
                none,
                std::ptr::null(),
                0,
                &mut params,
            )
            .result()
            .told("add a WHILE node")?;
            inner.write(*params.__bindgen_anon_1.conditional.phGraph_out);
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            let inner = inner.assume_init();
            sys::cuStreamBeginCaptureToGraph(self.stream, inner, none, std::ptr::null(), 0, mode)
                .result()
                .told("capture into a WHILE body")?;
            let worked = body(handle);
            result::stream::end_capture(self.stream).told("end a capture")?;
            worked?;
            graph
        };
        self.instantiate(graph)
    }

    fn instantiate(&self, graph: sys::CUgraph) -> Result<Graph<'_>> {
        // SAFETY: the graph was made by the driver.
        let exec = unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) };
        let exec = exec.told("instantiate a graph")?;
        // SAFETY: graph and stream are valid.
        unsafe { result::graph::upload(exec, self.stream) }.told("upload a graph")?;
        Ok(Graph { gpu: self, exec })
    }
}

pub struct Graph<'a> {
    gpu: &'a Gpu,
    exec: sys::CUgraphExec,
}

impl Graph<'_> {
    pub fn launch(&self) -> Result<()> {
        // SAFETY: graph and stream are valid.
        unsafe { result::graph::launch(self.exec, self.gpu.stream) }.told("launch a graph")
    }
}
