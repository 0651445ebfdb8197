//! Compiled kernels by content, in one folder that all profiles share.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// `kernel-cache` in the target folder, which is found from Cargo's `OUT_DIR`
    /// (`target/<profile>/build/<package>/out`).
    pub fn beside(out: &Path) -> Result<Cache, String> {
        let profile = out
            .ancestors()
            .find(|path| path.file_name().is_some_and(|name| name == "build"))
            .and_then(Path::parent);
        let folder = match profile.and_then(Path::parent) {
            Some(target) => target.join("kernel-cache"),
            None => out.join("kernel-cache"),
        };
        std::fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        Ok(Cache { folder })
    }

    /// The file that holds what these inputs compile to.
    pub fn file(&self, inputs: &[&str], extension: &str) -> PathBuf {
        let half = |salt: u8| {
            let mut hasher = DefaultHasher::new();
            (salt, inputs).hash(&mut hasher);
            hasher.finish()
        };
        self.folder.join(format!("{:016x}{:016x}.{extension}", half(0), half(1)))
    }
}

/// Writes a file whole or not at all: other builds may read the cache at the same time.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let temporary = path.with_extension(format!("tmp{}", std::process::id()));
    std::fs::write(&temporary, bytes)
        .and_then(|()| std::fs::rename(&temporary, path))
        .map_err(|e| format!("{}: {e}", path.display()))
}

pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))
}

/// Calls `task` for every index below `tasks` on as many threads as Cargo allows. The first error
/// is returned.
pub fn parallel(
    tasks: usize,
    task: impl Fn(usize) -> Result<(), String> + Sync,
) -> Result<(), String> {
    let threads = std::env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let errors = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..tasks.min(threads) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= tasks {
                        break;
                    }
                    if let Err(error) = task(index) {
                        errors.lock().unwrap().push((index, error));
                        next.store(tasks, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let first = errors.into_inner().unwrap().into_iter().min_by_key(|(index, _)| *index);
    first.map_or(Ok(()), |(_, error)| Err(error))
}
