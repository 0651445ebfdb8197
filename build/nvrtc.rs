//! Compiles each `.cu` file for NVIDIA GPUs with NVRTC, loaded from the folder `.cuda` that
//! `scripts/cuda-toolchain.sh` fills, or from an installed CUDA 12 toolkit.

use crate::cache::{self, Cache};
use crate::cubin::{self, Resources};
use crate::manifest::Sources;
use crate::ptx;
use libloading::Library;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

/// One compiled file.
pub struct Image {
    /// Index of the file in the manifest.
    pub file: usize,
    pub arch: Arch,
    pub code_path: u32,
    /// Holds the machine code or the PTX.
    pub path: PathBuf,
    /// For each kernel of the file the symbol that the image knows it by.
    pub symbols: Vec<String>,
    /// For each kernel of the file how many matrix instructions its PTX has.
    pub mma_instructions: Vec<u32>,
    /// For each kernel of the file what it needs; `None` in PTX.
    pub resources: Vec<Option<Resources>>,
}

/// Everything for GPUs; `compiler` is `None` where no compiler was found.
pub struct Gpu {
    pub compiler: Option<String>,
    pub images: Vec<Image>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Arch {
    /// 70 for compute capability 7.0.
    pub number: u32,
    /// PTX, which the driver translates for chips newer than the compiler.
    pub ptx: bool,
}

impl Arch {
    pub fn name(self) -> String {
        format!("{}_{}", if self.ptx { "compute" } else { "sm" }, self.number)
    }

    /// The sm_70 path is built for Hopper too, so that it can be checked and timed there.
    fn code_paths(self) -> &'static [u32] {
        match self {
            Arch { number: ..80, .. } => &[70],
            Arch { number: 90.., ptx: false } => &[80, 70],
            _ => &[80],
        }
    }
}

/// Extension of the file beside a compiled unit: for each kernel a line with its symbol and the number
/// of its matrix instructions.
const NOTES: &str = "kernels";

fn read_notes(text: &str) -> Result<(Vec<String>, Vec<u32>), String> {
    let note = |line: &str| {
        let (symbol, count) = line.split_once(' ')?;
        Some((symbol.to_string(), count.parse::<u32>().ok()?))
    };
    let notes = text.lines().map(|line| {
        note(line).ok_or(format!("the kernel cache holds `{line}`; delete target/kernel-cache"))
    });
    notes.collect()
}

const VARIABLE: &str = "CYANEA_CUDA_ARCHS";
const DEFAULT_ARCHS: &str = "sm_70,sm_80,sm_90,compute_90";

fn archs() -> Result<Vec<Arch>, String> {
    println!("cargo:rerun-if-env-changed={VARIABLE}");
    let list = std::env::var(VARIABLE).unwrap_or(DEFAULT_ARCHS.into());
    let words = list.split([',', ' ']).filter(|word| !word.is_empty());
    words
        .map(|word| {
            let parsed = match word.split_once('_') {
                Some(("sm", number)) => number.parse().ok().map(|n| (n, false)),
                Some(("compute", number)) => number.parse().ok().map(|n| (n, true)),
                _ => None,
            };
            match parsed {
                Some((number, ptx)) if (70..1000).contains(&number) => Ok(Arch { number, ptx }),
                _ => Err(format!(
                    "{VARIABLE}: `{word}` is no architecture; write for example {DEFAULT_ARCHS}"
                )),
            }
        })
        .collect()
}

pub fn build(root: &Path, sources: &Sources, cache: &Cache, out: &Path) -> Result<Gpu, String> {
    let archs = archs()?;
    let Some(nvrtc) = Nvrtc::find(root)? else {
        return Ok(Gpu { compiler: None, images: Vec::new() });
    };
    let mut jobs = Vec::new();
    for file in 0..sources.files.len() {
        let instantiated = sources.expressions(file).join("\n");
        let expanded = sources.expanded(&sources.unit(file))?;
        for &arch in &archs {
            for &code_path in arch.code_paths() {
                let options = nvrtc.options(
                    &arch.name(),
                    &sources.folder,
                    &[format!("-DCYANEA_CODE_PATH={code_path}")],
                );
                let key = [nvrtc.version.as_str(), &options.join(" "), &instantiated, &expanded];
                let cached = cache.file(&key, if arch.ptx { "ptx" } else { "cubin" });
                jobs.push((file, arch, code_path, options, cached));
            }
        }
    }
    cache::parallel(jobs.len(), |index| {
        let (file, arch, _, options, cached) = &jobs[index];
        let (source, expressions) = (&sources.files[*file].source, sources.expressions(*file));
        let unit = Unit { name: source, text: sources.unit(*file), expressions: &expressions };
        nvrtc
            .compile(&unit, arch.ptx, options, cached)
            .map_err(|e| format!("{source} for {}: {e}", arch.name()))
    })?;
    let mut images = Vec::new();
    for (file, arch, code_path, _, cached) in jobs {
        let notes = cache::read(&cached.with_extension(NOTES))?;
        let (symbols, mma_instructions) = read_notes(&String::from_utf8_lossy(&notes))?;
        let bytes = cache::read(&cached)?;
        let resources = match arch.ptx {
            true => vec![None; symbols.len()],
            false => {
                let of_each = cubin::resources(&bytes, &symbols, arch.number)?;
                of_each.into_iter().map(Some).collect()
            }
        };
        let extension = if arch.ptx { "ptx" } else { "cubin" };
        let path = out.join(format!("{file}-{}-path{code_path}.{extension}", arch.name()));
        cache::write(&path, &bytes)?;
        images.push(Image { file, arch, code_path, path, symbols, mma_instructions, resources });
    }
    Ok(Gpu { compiler: Some(nvrtc.version.clone()), images })
}

/// What one call of the compiler gets.
pub struct Unit<'a> {
    /// For messages.
    pub name: &'a str,
    pub text: String,
    /// Kernels that are instantiated, beside those that the text itself defines as `extern "C"`.
    pub expressions: &'a [&'a str],
}

type Program = *mut c_void;

/// The compiler library. Its functions are called as nvrtc.h of CUDA 12 declares them.
pub struct Nvrtc {
    library: Library,
    pub version: String,
    includes: Vec<PathBuf>,
}

impl Nvrtc {
    /// The first usable one; a library of another major version is passed over, because CUDA 13
    /// no longer compiles for Volta.
    pub fn find(root: &Path) -> Result<Option<Nvrtc>, String> {
        let wheels = root.join(".cuda/nvidia");
        let mut places = vec![(
            wheels.join("cuda_nvrtc/lib/libnvrtc.so.12"),
            vec![wheels.join("cuda_runtime/include"), wheels.join("cuda_cccl/include")],
        )];
        let mut toolkits = Vec::new();
        for variable in ["CUDA_HOME", "CUDA_PATH"] {
            println!("cargo:rerun-if-env-changed={variable}");
            toolkits.extend(std::env::var_os(variable).map(PathBuf::from));
        }
        toolkits.extend(["/usr/local/cuda-12", "/usr/local/cuda"].map(PathBuf::from));
        for toolkit in toolkits {
            let includes = vec![toolkit.join("include")];
            places.push((toolkit.join("lib64/libnvrtc.so.12"), includes));
        }
        for (path, includes) in places {
            if !path.exists() {
                continue;
            }
            println!("cargo:rerun-if-changed={}", path.display());
            // SAFETY: NVRTC's initialisers have no preconditions.
            let library = unsafe { Library::new(&path) };
            let library = library.map_err(|e| {
                format!("{}: {e}; run scripts/cuda-toolchain.sh again", path.display())
            })?;
            let (mut major, mut minor) = (0, 0);
            type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
            // SAFETY: the signature is that of nvrtc.h; both pointers are valid.
            let status = unsafe {
                let version = library.get::<Version>("nvrtcVersion").map_err(|e| e.to_string())?;
                version(&mut major, &mut minor)
            };
            if status == 0 && major == 12 {
                let version = format!("NVRTC {major}.{minor}");
                return Ok(Some(Nvrtc { library, version, includes }));
            }
        }
        Ok(None)
    }

    /// No contraction: a kernel says `fmaf` where it means it, so that every device rounds alike.
    pub fn options(&self, arch: &str, folder: &Path, more: &[String]) -> Vec<String> {
        let mut options = vec![
            format!("--gpu-architecture={arch}"),
            "--std=c++17".into(),
            "--fmad=false".into(),
            "-lineinfo".into(),
            format!("-I{}", folder.display()),
        ];
        options.extend(self.includes.iter().map(|path| format!("-I{}", path.display())));
        options.extend_from_slice(more);
        options
    }

    /// Calls a function that takes a program and one more pointer.
    fn call<T>(&self, name: &str, program: Program, argument: *mut T) -> Result<(), String> {
        type Function = unsafe extern "C" fn(Program, *mut c_void) -> c_int;
        // SAFETY: every function called this way takes a program and one pointer to an object of
        // the type that the caller passes.
        let status = unsafe {
            let function = self.library.get::<Function>(name).map_err(|e| e.to_string())?;
            function(program, argument.cast())
        };
        if status == 0 { Ok(()) } else { Err(format!("{name} failed with status {status}")) }
    }

    /// Fetches a size with one function and as many bytes with another.
    fn fetch(&self, size: &str, get: &str, program: Program) -> Result<Vec<u8>, String> {
        let mut bytes = 0usize;
        self.call(size, program, &mut bytes)?;
        let mut buffer = vec![0u8; bytes];
        self.call(get, program, buffer.as_mut_ptr())?;
        Ok(buffer)
    }

    /// Compiles to machine code, or with `ptx` to PTX, into the file `cached` and its notes, unless
    /// both are there.
    pub fn compile(
        &self,
        unit: &Unit,
        ptx: bool,
        options: &[String],
        cached: &Path,
    ) -> Result<(), String> {
        if cached.exists() && cached.with_extension(NOTES).exists() {
            return Ok(());
        }
        let text = CString::new(unit.text.as_str()).map_err(|e| e.to_string())?;
        let name = CString::new(format!("{}.unit", unit.name)).map_err(|e| e.to_string())?;
        let mut program: Program = std::ptr::null_mut();
        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        // SAFETY: the signature is that of nvrtc.h; the strings outlive the call; no headers.
        let status = unsafe {
            let create =
                self.library.get::<Create>("nvrtcCreateProgram").map_err(|e| e.to_string())?;
            let none = std::ptr::null();
            create(&mut program, text.as_ptr(), name.as_ptr(), 0, none, none)
        };
        if status != 0 {
            return Err(format!("nvrtcCreateProgram failed with status {status}"));
        }
        let result = self.compile_program(program, unit, ptx, options, cached);
        let mut closing = program;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        // SAFETY: the program was created above and is not used again.
        unsafe {
            if let Ok(destroy) = self.library.get::<Destroy>("nvrtcDestroyProgram") {
                destroy(&mut closing);
            }
        }
        result
    }

    fn compile_program(
        &self,
        program: Program,
        unit: &Unit,
        ptx: bool,
        options: &[String],
        cached: &Path,
    ) -> Result<(), String> {
        let expressions =
            unit.expressions.iter().map(|&e| CString::new(e).map_err(|e| e.to_string()));
        let expressions = expressions.collect::<Result<Vec<_>, _>>()?;
        for expression in &expressions {
            self.call("nvrtcAddNameExpression", program, expression.as_ptr().cast_mut())?;
        }
        let options = options.iter().map(|o| CString::new(o.as_str()).unwrap()).collect::<Vec<_>>();
        let pointers = options.iter().map(|o| o.as_ptr()).collect::<Vec<_>>();
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        // SAFETY: the signature is that of nvrtc.h; the options outlive the call.
        let status = unsafe {
            let compile =
                self.library.get::<Compile>("nvrtcCompileProgram").map_err(|e| e.to_string())?;
            compile(program, pointers.len() as c_int, pointers.as_ptr())
        };
        if status != 0 {
            let log = self.fetch("nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program)?;
            return Err(format!("does not compile:\n{}", String::from_utf8_lossy(&log)));
        }
        // Also where machine code is asked for: NVRTC makes it from PTX.
        let assembly = self.fetch("nvrtcGetPTXSize", "nvrtcGetPTX", program)?;
        let text = String::from_utf8_lossy(&assembly);
        let mut notes = String::new();
        for expression in &expressions {
            let mut lowered: *const c_char = std::ptr::null();
            type Lowered =
                unsafe extern "C" fn(Program, *const c_char, *mut *const c_char) -> c_int;
            // SAFETY: the signature is that of nvrtc.h; the string that comes back belongs to the
            // program, which outlives this use.
            unsafe {
                let function = self
                    .library
                    .get::<Lowered>("nvrtcGetLoweredName")
                    .map_err(|e| e.to_string())?;
                if function(program, expression.as_ptr(), &mut lowered) != 0 {
                    return Err(format!("{expression:?} is no kernel of this file"));
                }
                let symbol = CStr::from_ptr(lowered).to_string_lossy();
                let count = ptx::mma_instructions(&text, &symbol)
                    .ok_or_else(|| format!("the PTX lacks {symbol}"))?;
                notes += &format!("{symbol} {count}\n");
            }
        }
        let image = match ptx {
            true => assembly,
            false => self.fetch("nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)?,
        };
        cache::write(&cached.with_extension(NOTES), notes.as_bytes())?;
        cache::write(cached, &image)
    }
}
