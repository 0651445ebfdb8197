//! Writes the Rust side of the manifest: one static for each kernel, and the built images.

use crate::CODE_PATHS;
use crate::cache;
use crate::manifest::Sources;
use crate::nvrtc::Gpu;
use std::fmt::Write;
use std::path::Path;

pub fn write(sources: &Sources, gpu: &Gpu, out: &Path) -> Result<(), String> {
    let text = text(sources, gpu).map_err(|e| e.to_string())?;
    cache::write(&out.join("kernels.rs"), text.as_bytes())
}

fn text(sources: &Sources, gpu: &Gpu) -> Result<String, std::fmt::Error> {
    let mut text = String::from("// Made from kernels/manifest.toml by build.rs.\n\n");
    let kernels = || sources.files.iter().flat_map(|f| f.kernels.iter().map(move |k| (f, k)));

    writeln!(text, "unsafe extern \"C\" {{")?;
    for (_, kernel) in kernels() {
        for path in CODE_PATHS {
            writeln!(text, "    fn cyanea_sm{path}_{}(params: *const c_void);", kernel.name)?;
        }
    }
    writeln!(text, "}}\n")?;
    for (file, kernel) in kernels() {
        let (name, upper) = (&kernel.name, kernel.name.to_uppercase());
        writeln!(text, "/// `{name}` of `kernels/{}`.", file.source)?;
        writeln!(text, "pub static {upper}: Kernel = Kernel {{")?;
        writeln!(text, "    name: {name:?},")?;
        writeln!(text, "    source: {:?},", file.source)?;
        writeln!(text, "    params_bytes: {},", kernel.params_bytes)?;
        writeln!(text, "    threads: {},", kernel.threads)?;
        writeln!(text, "    loaders: {},", kernel.loaders)?;
        writeln!(text, "    shared: {},", kernel.shared)?;
        writeln!(text, "    host: [cyanea_sm70_{name}, cyanea_sm80_{name}],")?;
        writeln!(text, "}};\n")?;
    }
    writeln!(text, "/// All kernels, as the manifest lists them.")?;
    writeln!(text, "pub static KERNELS: &[&Kernel] = &[")?;
    for (_, kernel) in kernels() {
        writeln!(text, "    &{},", kernel.name.to_uppercase())?;
    }
    writeln!(text, "];\n")?;

    writeln!(
        text,
        "/// What compiled the images for GPUs; `None`: the build found no CUDA compiler."
    )?;
    writeln!(text, "pub static GPU_COMPILER: Option<&str> = {:?};\n", gpu.compiler)?;
    writeln!(text, "/// Machine code and PTX of every file.")?;
    writeln!(text, "pub static IMAGES: &[Image] = &[")?;
    for image in &gpu.images {
        let file = &sources.files[image.file];
        writeln!(text, "    Image {{")?;
        writeln!(text, "        source: {:?},", file.source)?;
        writeln!(
            text,
            "        arch: Arch {{ number: {}, ptx: {} }},",
            image.arch.number, image.arch.ptx
        )?;
        writeln!(text, "        code_path: CodePath::Sm{},", image.code_path)?;
        writeln!(text, "        bytes: include_bytes!({:?}),", image.path)?;
        writeln!(text, "        functions: &[")?;
        for (index, kernel) in file.kernels.iter().enumerate() {
            let resources = image.resources[index].map(|r| {
                format!(
                    "Resources {{ registers: {}, shared_bytes: {}, local_bytes: {} }}",
                    r.registers, r.shared_bytes, r.local_bytes
                )
            });
            let resources = resources.map_or("None".into(), |r| format!("Some({r})"));
            writeln!(
                text,
                "            Function {{ kernel: &{}, symbol: {:?}, resources: {resources}, \
                 mma_instructions: {} }},",
                kernel.name.to_uppercase(),
                image.symbols[index],
                image.mma_instructions[index]
            )?;
        }
        writeln!(text, "        ],\n    }},")?;
    }
    writeln!(text, "];")?;
    Ok(text)
}
