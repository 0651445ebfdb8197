//! `kernels/manifest.toml`: the one list of kernels.

use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Names of kernels for products in float16 without tensor cores.
    general: Vec<String>,
    file: Vec<File>,
}

/// One `.cu` file and its kernels.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Below `kernels/`, e.g. `silu.cu`.
    pub source: String,
    pub kernels: Vec<Kernel>,
}

/// One kernel: an instantiation of a `__global__` function.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kernel {
    /// `<op>_<fwd|dgrad|wgrad>_<layout>_<dtype>[_smXX]`.
    pub name: String,
    /// The C++ expression that names it; by default the name itself.
    #[serde(default)]
    expression: Option<String>,
    /// Type of its one by-value parameter.
    pub params: String,
    /// Size of that type.
    pub params_bytes: usize,
    /// Most threads of a block.
    pub threads: u32,
    /// Threads beside those, on the sm_80 path alone.
    #[serde(default)]
    pub loaders: u32,
    /// A product in float16 without tensor cores.
    #[serde(skip)]
    pub general: bool,
}

impl Kernel {
    pub fn expression(&self) -> &str {
        self.expression.as_deref().unwrap_or(&self.name)
    }
}

/// The manifest and everything that the kernels are made of.
pub struct Sources {
    /// The folder `kernels`.
    pub folder: PathBuf,
    pub files: Vec<File>,
    /// Text of each of `files`.
    pub texts: Vec<String>,
    /// Text of all headers, which every compiled unit depends on.
    pub headers: String,
}

impl Sources {
    pub fn read(folder: &Path) -> Result<Sources, String> {
        let path = folder.join("manifest.toml");
        let text = text(&path)?;
        let mut manifest: Manifest =
            toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
        let mut names = std::collections::HashSet::new();
        for kernel in manifest.file.iter().flat_map(|file| &file.kernels) {
            let identifier = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if kernel.name.is_empty() || !kernel.name.chars().all(identifier) {
                return Err(format!(
                    "{}: `{}` is no kernel name; use a-z, 0-9 and _",
                    path.display(),
                    kernel.name
                ));
            }
            if !names.insert(&kernel.name) {
                return Err(format!("{}: `{}` stands there twice", path.display(), kernel.name));
            }
        }
        for name in &manifest.general {
            let mut kernels = manifest.file.iter_mut().flat_map(|file| &mut file.kernels);
            let kernel = kernels.find(|kernel| kernel.name == *name);
            kernel
                .ok_or(format!("{}: `{name}` of `general` is no kernel", path.display()))?
                .general = true;
        }
        let mut texts = Vec::new();
        for file in &manifest.file {
            texts.push(self::text(&folder.join(&file.source))?);
        }
        let mut headers = Vec::new();
        for sub in ["common", "host"] {
            collect(&folder.join(sub), &mut headers)?;
        }
        headers.sort();
        let headers = headers.concat();
        Ok(Sources { folder: folder.to_path_buf(), files: manifest.file, texts, headers })
    }

    /// What is compiled for a file: the file, and proof that its parameter structs have the sizes
    /// that the Rust side was told.
    pub fn unit(&self, file: usize) -> String {
        let mut unit = format!("#include \"{}\"\n", self.files[file].source);
        for kernel in &self.files[file].kernels {
            unit += &format!(
                "static_assert(sizeof({}) == {}, \"size of the parameters of {} in manifest.toml\");\n",
                kernel.params, kernel.params_bytes, kernel.name
            );
        }
        unit
    }
}

fn text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

fn collect(folder: &Path, texts: &mut Vec<String>) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.is_dir() {
            collect(&path, texts)?;
        } else {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            texts.push(format!("{name}\n{}", text(&path)?));
        }
    }
    Ok(())
}
