//! `kernels/manifest.toml`: the one list of kernels.

use std::path::{Path, PathBuf};

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
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
    /// Bytes of static shared memory, the most on any architecture.
    #[serde(default = "few")]
    pub shared: u32,
}

/// Static shared memory of kernels that have little, such as the ticket that a block drew.
fn few() -> u32 {
    64
}

impl Kernel {
    pub fn expression(&self) -> &str {
        self.expression.as_deref().unwrap_or(&self.name)
    }
}

/// The manifest, and the folder that its files lie in.
pub struct Sources {
    /// The folder `kernels`.
    pub folder: PathBuf,
    pub files: Vec<File>,
}

impl Sources {
    pub fn read(folder: &Path) -> Result<Sources, String> {
        let path = folder.join("manifest.toml");
        let text = text(&path)?;
        let manifest: Manifest =
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
        Ok(Sources { folder: folder.to_path_buf(), files: manifest.file })
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

    /// What is instantiated of a file.
    pub fn expressions(&self, file: usize) -> Vec<&str> {
        self.files[file].kernels.iter().map(Kernel::expression).collect()
    }

    /// What a unit is compiled from: its text, and once each that of all it includes.
    pub fn expanded(&self, unit: &str) -> Result<String, String> {
        let mut names = std::collections::HashSet::new();
        let mut texts = vec![unit.to_string()];
        let mut at = 0;
        while at < texts.len() {
            let found: Result<Vec<String>, String> =
                texts[at].lines().filter_map(included).collect();
            for name in found? {
                if names.insert(name.clone()) {
                    let text = text(&self.folder.join(&name))?;
                    texts.push(format!("{name}\n{text}"));
                }
            }
            at += 1;
        }
        Ok(texts.concat())
    }
}

fn text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// What a line includes, below `kernels/`; headers of the compiler, in angles, aside. What can't be read would be
/// missed when it changes.
fn included(line: &str) -> Option<Result<String, String>> {
    let directive = line.trim_start().strip_prefix('#')?.trim_start().strip_prefix("include")?;
    let named = directive.trim_start();
    if named.starts_with('<') {
        return None;
    }
    let name = named.strip_prefix('"').and_then(|rest| rest.split_once('"'));
    Some(match name {
        Some((name, _)) => Ok(name.into()),
        None => Err(format!("kernels: `{line}` names no file; write #include \"folder/file\"")),
    })
}
