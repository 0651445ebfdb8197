//! The kernels of `kernels/manifest.toml` as the Rust side sees them: names, sizes, host entries
//! and the images that the build made for GPUs.

use super::{CodePath, DType, KernelWork, Program, Space, Target, TensorType, View, Work};
use crate::error::{Error, Result};
use std::ffi::c_void;

/// A kernel of the manifest. It takes one parameter struct by value, whose first fields are its
/// 8-byte pointers.
pub struct Kernel {
    /// `<op>_<fwd|dgrad|wgrad>_<layout>_<dtype>[_smXX]`.
    pub name: &'static str,
    /// The file below `kernels/` that it stands in.
    pub source: &'static str,
    /// Size of its parameter struct.
    pub params_bytes: usize,
    /// Most threads of a block, but for `loaders`.
    pub threads: u32,
    /// Threads beside those that load for them, on the sm_80 path alone.
    loaders: u32,
    /// Bytes of static shared memory, the most on any architecture, so that limits do not depend on which were built.
    pub shared: u32,
    /// Compiled for the host: the sm_70 and the sm_80 path.
    host: [HostEntry; 2],
}

impl Kernel {
    /// Whether it multiplies matrices, but not on tensor cores: a convolution, a linear layer, attention, or a gradient
    /// of one, in float32. All of those in float16 have matrix instructions.
    pub fn without_tensor_cores(&self) -> bool {
        self.is_product() && !self.in_half()
    }

    /// Whether it is for float16; a product is on tensor cores then.
    pub fn in_half(&self) -> bool {
        self.name.ends_with("_f16")
    }

    /// A convolution, a linear layer, attention, or a gradient of one.
    pub fn is_product(&self) -> bool {
        let families = ["conv2d_", "attention_", "row_linear_"];
        families.iter().any(|family| self.name.starts_with(family)) && !self.name.contains("_pack_")
    }
}

/// Runs one lane of a kernel on the calling thread; takes the address of the parameters.
pub(super) type HostEntry = unsafe extern "C" fn(*const c_void);

/// A GPU architecture that the build compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arch {
    /// 70 for compute capability 7.0.
    pub number: u32,
    /// PTX, which the driver translates for chips newer than the compiler.
    pub ptx: bool,
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}", if self.ptx { "compute" } else { "sm" }, self.number)
    }
}

/// What one thread or block of a kernel needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resources {
    /// Of a thread.
    pub registers: u32,
    /// Static shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Stack of a thread (arrays indexed at run time, spilled registers), in bytes.
    pub local_bytes: u32,
}

/// A kernel in an image.
pub struct Function {
    pub kernel: &'static Kernel,
    pub symbol: &'static str,
    /// `None` in PTX.
    pub resources: Option<Resources>,
    /// Instructions of tensor cores in its PTX.
    pub mma_instructions: u32,
}

/// One file of kernels, compiled for one architecture.
pub struct Image {
    pub source: &'static str,
    pub arch: Arch,
    pub code_path: CodePath,
    /// A cubin (ELF), or PTX text with a final zero.
    pub bytes: &'static [u8],
    pub functions: &'static [Function],
}

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

impl Kernel {
    /// Looks a kernel up by name.
    pub fn named(name: &str) -> Option<&'static Kernel> {
        KERNELS.iter().copied().find(|kernel| kernel.name == name)
    }

    /// Most threads of a block.
    pub fn block_threads(&self, code_path: CodePath) -> u32 {
        self.threads + if code_path == CodePath::Sm80 { self.loaders } else { 0 }
    }

    /// The host's code for a code path; `None` on the CPU path, which launches no kernels.
    pub(super) fn host_entry(&self, code_path: CodePath) -> Option<HostEntry> {
        match code_path {
            CodePath::Cpu => None,
            CodePath::Sm70 => Some(self.host[0]),
            CodePath::Sm80 => Some(self.host[1]),
        }
    }

    /// A launch. The pointer fields at the start of `params` stand for `read`, then `written`, in
    /// that order; an absent operand stays a null pointer. What a kernel updates in place belongs
    /// to `written` alone.
    ///
    /// # Panics
    /// When the sizes of the parameter struct and of the manifest differ.
    pub fn launch<P: bytemuck::NoUninit>(
        &self,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        params: &P,
        read: &[Option<&View>],
        written: &[Option<&View>],
    ) -> KernelWork {
        let params = bytemuck::bytes_of(params).to_vec();
        assert_eq!(params.len(), self.params_bytes, "size of the parameters of {}", self.name);
        let fields = read.iter().chain(written).enumerate();
        KernelWork {
            kernel: self.name,
            grid,
            block,
            shared_bytes,
            params,
            pointers: fields
                .filter_map(|(field, view)| Some((8 * field, (*view)?.clone())))
                .collect(),
            written: written.iter().flatten().count(),
            general: false,
        }
    }
}

impl Kernel {
    /// A launch of one thread for each of `elements`, in one dimension.
    pub fn over<P: bytemuck::NoUninit>(
        &self,
        elements: usize,
        params: &P,
        read: &[Option<&View>],
        written: &[Option<&View>],
    ) -> KernelWork {
        // A grid that is too large is refused when it is loaded.
        let blocks = u32::try_from(elements.div_ceil(self.threads as usize)).unwrap_or(u32::MAX);
        self.launch([blocks, 1, 1], [self.threads, 1, 1], 0, params, read, written)
    }
}

/// Of two instances of a kernel the one for tensors of this type: float32 or float16.
pub fn of_type<'a>(ty: &TensorType, f32: &'a Kernel, f16: &'a Kernel) -> &'a Kernel {
    match ty.dtype {
        DType::F16 => f16,
        _ => f32,
    }
}

/// A pointer field of a parameter struct before the device fills it in.
pub const UNSET: u64 = 0;

/// Declares the Rust side of a kernel's parameter struct, and proves at compile time that it is as
/// large as the manifest says, which the C++ side proves too.
macro_rules! params {
    ($(#[$doc:meta])* struct $name:ident for $($kernel:ident),+ { $($field:ident: $ty:ty),+ $(,)? }) => {
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
        struct $name { $($field: $ty),+ }
        $(const _: () = assert!(
            size_of::<$name>() == $crate::device::kernels::$kernel.params_bytes,
            "the parameter struct and kernels/manifest.toml differ in size"
        );)+
    };
}
pub(crate) use params;

/// A dimension as kernels take it.
///
/// # Errors
/// Larger than a kernel can count.
pub fn dimension(operation: &str, size: usize) -> Result<i32> {
    i32::try_from(size).map_err(|_| {
        Error::operation(operation, format!("a dimension of {size} is beyond a kernel's limits"))
    })
}

/// Checks that four elements of each view can be read and written at once, from the first on.
///
/// # Errors
/// A view that begins elsewhere than at a multiple of 16 bytes.
pub(crate) fn check_fours<'a>(
    operation: &str,
    views: impl IntoIterator<Item = &'a View>,
) -> Result<()> {
    match views.into_iter().find(|view| !view.offset.is_multiple_of(16)) {
        Some(view) => {
            let what = format!("{view:?} does not begin at a multiple of 16 bytes");
            Err(Error::operation(operation, what))
        }
        None => Ok(()),
    }
}

/// Memory of a session, as far as checks need to know it.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub persistent: usize,
    pub arena: usize,
}

impl Sizes {
    pub(super) fn of(&self, space: Space) -> usize {
        match space {
            Space::Arena => self.arena,
            Space::Persistent => self.persistent,
        }
    }
}

/// Checks that a program was compiled for a code path and launches kernels only.
pub(super) fn check_program(program: &Program, target: &Target) -> Result<()> {
    let cpu_work = program.launches.iter().any(|launch| matches!(launch.work, Work::Cpu(_)));
    if cpu_work || program.target.code_path != target.code_path {
        return Err(Error::device(format!(
            "the program {} was compiled for {}; compile it for {}",
            program.name, program.target.name, target.name
        )));
    }
    Ok(())
}

/// The parameters of a launch with its addresses filled in, aligned as any parameter struct needs.
pub(super) fn filled_params(work: &KernelWork, address: impl Fn(&View) -> u64) -> Vec<u128> {
    let mut params = vec![0u128; work.params.len().div_ceil(16)];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut params);
    bytes[..work.params.len()].copy_from_slice(&work.params);
    for (field, view) in &work.pointers {
        bytes[*field..field + 8].copy_from_slice(&address(view).to_ne_bytes());
    }
    params
}

/// Checks what of a launch does not depend on where its views lie: sizes and limits of the target.
/// Programs are compiled with it, so that nothing beyond a limit is found out only on a device.
///
/// # Errors
/// Names the launch, the kernel, the value and the limit.
pub(crate) fn check_limits(
    label: &str,
    work: &KernelWork,
    target: &Target,
) -> Result<&'static Kernel> {
    let refuse = |what: String| Err(refused(label, work, what));
    let Some(kernel) = Kernel::named(work.kernel) else {
        return refuse("this build has no such kernel".into());
    };
    if work.params.len() != kernel.params_bytes {
        return refuse(format!(
            "{} bytes of parameters where {} belong",
            work.params.len(),
            kernel.params_bytes
        ));
    }
    let threads: u64 = work.block.iter().map(|&n| u64::from(n)).product();
    let most = kernel.block_threads(target.code_path);
    if threads == 0 || threads > u64::from(most) {
        return refuse(format!("{threads} threads a block; 1 to {most} can be"));
    }
    let [x, y, z] = work.grid;
    if x == 0 || y == 0 || z == 0 || x > i32::MAX as u32 || y > 65_535 || z > 65_535 {
        return refuse(format!("a grid of {x} × {y} × {z} blocks"));
    }
    let fixed = kernel.shared;
    if work.shared_bytes.saturating_add(fixed) > target.shared_bytes {
        return refuse(format!(
            "{} bytes of shared memory beside {fixed} of its own; {} has {} a block",
            work.shared_bytes, target.name, target.shared_bytes
        ));
    }
    Ok(kernel)
}

fn refused(label: &str, work: &KernelWork, what: String) -> Error {
    Error::operation(label, format!("{}: {what}", work.kernel))
}

/// Checks a launch before anything of it runs: its limits, views inside the memory, nothing written
/// that another view of the launch covers.
pub(super) fn check(
    label: &str,
    work: &KernelWork,
    target: &Target,
    sizes: Sizes,
) -> Result<&'static Kernel> {
    let kernel = check_limits(label, work, target)?;
    let refuse = |what: String| Err(refused(label, work, what));
    if work.written > work.pointers.len() {
        return refuse("more written views than views".into());
    }
    for (field, view) in &work.pointers {
        if field % 8 != 0 || field + 8 > work.params.len() {
            return refuse(format!("no pointer field at byte {field}"));
        }
        let end = view.offset.checked_add(view.ty.bytes());
        if end.is_none_or(|end| end > sizes.of(view.space)) {
            return refuse(format!("{view:?} lies outside the session's memory"));
        }
        if view.offset % view.ty.dtype.size() != 0 {
            return refuse(format!("{view:?} is not aligned to its elements"));
        }
    }
    let first_written = work.pointers.len() - work.written;
    for (index, (_, written)) in work.pointers.iter().enumerate().skip(first_written) {
        for (_, other) in &work.pointers[..index] {
            if written.overlaps(other) {
                return refuse(format!("{written:?} overlaps {other:?}"));
            }
        }
    }
    Ok(kernel)
}

/// A row of `cyanea kernels`: a kernel on an architecture.
#[derive(Clone, Debug, PartialEq)]
pub struct KernelRow {
    pub kernel: &'static str,
    pub source: &'static str,
    pub arch: Arch,
    pub code_path: CodePath,
    /// `None` in PTX.
    pub resources: Option<Resources>,
    /// Most threads of a block.
    pub block_threads: u32,
    /// Instructions of tensor cores in its PTX, each counted once however often a loop runs it.
    pub mma_instructions: u32,
}

/// Every kernel in every image, in the order of the manifest; empty where the build found no CUDA
/// compiler.
pub fn table() -> Vec<KernelRow> {
    let functions = IMAGES.iter().flat_map(|image| image.functions.iter().map(move |f| (image, f)));
    let mut rows: Vec<KernelRow> = functions
        .map(|(image, function)| {
            let block_threads = function.kernel.block_threads(image.code_path);
            KernelRow {
                kernel: function.kernel.name,
                source: image.source,
                arch: image.arch,
                code_path: image.code_path,
                resources: function.resources,
                block_threads,
                mma_instructions: function.mma_instructions,
            }
        })
        .collect();
    rows.sort_by_key(|row| KERNELS.iter().position(|kernel| kernel.name == row.kernel));
    rows
}

impl KernelRow {
    /// Blocks of `threads` with so much dynamic shared memory that a multiprocessor holds at once;
    /// `None` in PTX.
    pub fn resident_blocks(&self, threads: u32, dynamic_shared_bytes: u32) -> Option<u32> {
        let resources = self.resources?;
        Some(resident_blocks(self.arch.number, resources, threads, dynamic_shared_bytes))
    }

    /// Warps that a multiprocessor holds at once, as a share of the most it can hold, for blocks of `block_threads` with
    /// so much dynamic shared memory; `None` in PTX.
    pub fn occupancy(&self, dynamic_shared_bytes: u32) -> Option<f64> {
        let blocks = self.resident_blocks(self.block_threads, dynamic_shared_bytes)?;
        let (most, ..) = multiprocessor(self.arch.number);
        Some(f64::from(blocks * self.block_threads.div_ceil(32)) / f64::from(most))
    }
}

/// Warps that a multiprocessor can hold, blocks, shared memory, and what each block's is rounded to:
/// CUDA C++ Programming Guide, "Compute Capabilities".
fn multiprocessor(arch: u32) -> (u32, u32, u32, u32, u32) {
    match arch {
        ..80 => (64, 32, 96 << 10, 0, 256),
        80 => (64, 32, 164 << 10, 1024, 128),
        81..=88 => (48, 16, 100 << 10, 1024, 128),
        89 => (48, 24, 100 << 10, 1024, 128),
        _ => (64, 32, 228 << 10, 1024, 128),
    }
}

/// By the rules of the CUDA C++ Programming Guide: registers are given out in units of 256 a warp,
/// shared memory of a block in units of 256 bytes (128 from 8.0 on, which also keep 1 KiB a block for
/// themselves).
fn resident_blocks(arch: u32, resources: Resources, threads: u32, dynamic_shared: u32) -> u32 {
    let (max_warps, max_blocks, shared, reserved, unit) = multiprocessor(arch);
    let warps = threads.div_ceil(32);
    let registers = (resources.registers * 32).next_multiple_of(256) * warps;
    let by_registers = 65_536 / registers.max(1);
    let block = (resources.shared_bytes + dynamic_shared + reserved).next_multiple_of(unit);
    let by_shared = u32::checked_div(shared, block).unwrap_or(max_blocks);
    max_blocks.min(by_registers).min(by_shared).min(max_warps / warps)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn occupancy_follows_the_scarcest_resource() {
        let resources =
            |registers, shared_bytes| Resources { registers, shared_bytes, local_bytes: 0 };
        let row = |number, resources, block_threads| KernelRow {
            kernel: "",
            source: "",
            arch: Arch { number, ptx: false },
            code_path: CodePath::Sm70,
            resources,
            block_threads,
            mma_instructions: 0,
        };
        let occupancy = |number, resources, threads| {
            row(number, Some(resources), threads).occupancy(0).expect("resources are known")
        };
        assert_eq!(occupancy(70, resources(32, 0), 256), 1.0);
        // 65,536 / (128 * 256) = 2 blocks of 8 warps.
        assert_eq!(occupancy(80, resources(128, 0), 256), 0.25);
        // 164 KiB / (40 + 1 KiB) = 4 blocks of 4 warps.
        assert_eq!(occupancy(80, resources(32, 40 << 10), 128), 0.25);
        assert_eq!(resident_blocks(80, resources(32, 8 << 10), 128, 32 << 10), 4);
        // 96 KiB on Volta, all of it.
        assert_eq!(resident_blocks(70, resources(32, 0), 128, 48 << 10), 2);
        let volta = row(70, Some(resources(32, 0)), 128);
        assert_eq!(
            [0, 40 << 10, 56 << 10].map(|bytes| volta.occupancy(bytes)),
            [Some(1.0), Some(0.125), Some(0.0625)]
        );
        assert_eq!(row(70, None, 128).occupancy(0), None);
    }

    #[test]
    fn every_image_has_every_symbol_of_its_file() {
        if IMAGES.is_empty() {
            eprintln!("skipped: built without GPU kernels; run scripts/cuda-toolchain.sh");
            return;
        }
        for image in IMAGES {
            let wanted: Vec<_> =
                KERNELS.iter().filter(|k| k.source == image.source).map(|k| k.name).collect();
            let found: Vec<_> = image.functions.iter().map(|f| f.kernel.name).collect();
            assert_eq!(found, wanted, "{} for {}", image.source, image.arch);
            for function in image.functions {
                // In ELF a symbol name ends with a zero; in PTX it stands behind `.entry `.
                let needle = if image.arch.ptx {
                    format!(".entry {}(", function.symbol).into_bytes()
                } else {
                    format!("\0{}\0", function.symbol).into_bytes()
                };
                assert!(
                    image.bytes.windows(needle.len()).any(|bytes| bytes == needle),
                    "{} is missing from {} for {}",
                    function.symbol,
                    image.source,
                    image.arch
                );
            }
        }
        // The sm_70 path is built for Hopper too.
        let on_hopper =
            |path| IMAGES.iter().any(|i| i.arch.number == 90 && !i.arch.ptx && i.code_path == path);
        if IMAGES.iter().any(|image| image.arch.number == 90 && !image.arch.ptx) {
            assert!(on_hopper(CodePath::Sm70) && on_hopper(CodePath::Sm80));
        }
    }
}
