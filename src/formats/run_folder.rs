//! What a run leaves behind, and where:
//!
//! ```text
//! config.toml          the resolved configuration
//! metrics.jsonl  metrics.csv  tensorboard/
//! checkpoints/step-00001000.safetensors
//! averages/step-00001000.safetensors     where a run keeps snapshots of them
//! samples/step-00001000.png
//! model/               diffusers' layout
//! held_out.safetensors samples.png denoising.png denoising.gif
//! ```

use super::atomic::{create_folder, write_atomic};
use crate::error::{Error, Result};
use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// The folder of one run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunFolder {
    root: PathBuf,
}

/// A checkpoint that could be read, and the newer ones that couldn't.
#[derive(Debug)]
pub struct Found<T> {
    pub step: u64,
    pub path: PathBuf,
    pub content: T,
    /// Why newer checkpoints were passed over.
    pub skipped: Vec<Error>,
}

impl RunFolder {
    /// Begins a run in a new or empty folder and writes its configuration.
    ///
    /// # Errors
    /// A folder that holds another run or anything else, and what the operating system says.
    pub fn create(root: impl AsRef<Path>, config: &str) -> Result<Self> {
        let run = RunFolder { root: root.as_ref().to_path_buf() };
        run.require_free()?;
        create_folder(&run.root)?;
        for folder in [run.checkpoints_folder(), run.samples_folder(), run.tensorboard()] {
            create_folder(folder)?;
        }
        write_atomic(run.config(), |out| out.write_all(config.as_bytes()))?;
        Ok(run)
    }

    /// Whether a run could begin in a folder; to be asked before work is done for it. Creates
    /// nothing.
    ///
    /// # Errors
    /// As [`RunFolder::create`].
    pub fn check_free(root: impl AsRef<Path>) -> Result<()> {
        RunFolder { root: root.as_ref().to_path_buf() }.require_free()
    }

    fn require_free(&self) -> Result<()> {
        let mut entries = match fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(Error::io(&self.root, error)),
        };
        if entries.next().is_none() {
            return Ok(());
        }
        let what = if self.config().is_file() {
            "holds another run; resume that one, or choose another folder"
        } else {
            "is not empty; choose an empty or a new folder"
        };
        Err(Error::file(&self.root, what))
    }

    /// A run that was begun before.
    ///
    /// # Errors
    /// A folder without a run.
    pub fn open(root: impl AsRef<Path>) -> Result<Self> {
        let run = RunFolder { root: root.as_ref().to_path_buf() };
        if !run.config().is_file() {
            let what = "holds no run that could be resumed: there is no config.toml in it";
            return Err(Error::file(&run.root, what));
        }
        for folder in [run.checkpoints_folder(), run.samples_folder(), run.tensorboard()] {
            create_folder(folder)?;
        }
        Ok(run)
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    pub fn config(&self) -> PathBuf {
        self.root.join("config.toml")
    }

    pub fn metrics_jsonl(&self) -> PathBuf {
        self.root.join("metrics.jsonl")
    }

    pub fn metrics_csv(&self) -> PathBuf {
        self.root.join("metrics.csv")
    }

    /// Folder of the TensorBoard event file.
    pub fn tensorboard(&self) -> PathBuf {
        self.root.join("tensorboard")
    }

    pub fn checkpoints_folder(&self) -> PathBuf {
        self.root.join("checkpoints")
    }

    /// The trained model in diffusers' layout.
    pub fn model(&self) -> PathBuf {
        self.root.join("model")
    }

    /// Grid of samples at the end.
    pub fn samples_png(&self) -> PathBuf {
        self.root.join("samples.png")
    }

    pub fn denoising_png(&self) -> PathBuf {
        self.root.join("denoising.png")
    }

    pub fn denoising_gif(&self) -> PathBuf {
        self.root.join("denoising.gif")
    }

    /// Held-out images, their fixed noise and timesteps.
    pub fn held_out(&self) -> PathBuf {
        self.root.join("held_out.safetensors")
    }

    /// Grids of samples during training.
    pub fn samples_folder(&self) -> PathBuf {
        self.root.join("samples")
    }

    /// Grid of samples after `step` steps.
    pub fn sample_grid(&self, step: u64) -> PathBuf {
        self.samples_folder().join(format!("step-{step:08}.png"))
    }

    /// Checkpoint after `step` steps.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints_folder().join(format!("step-{step:08}.safetensors"))
    }

    /// The checkpoints that are there, oldest first; other files are ignored.
    ///
    /// # Errors
    /// A folder that can't be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        numbered(&self.checkpoints_folder(), |step| self.checkpoint(step))
    }

    fn averages_folder(&self) -> PathBuf {
        self.root.join("averages")
    }

    /// Averages of the weights after `step` steps.
    pub fn averages(&self, step: u64) -> PathBuf {
        self.averages_folder().join(format!("step-{step:08}.safetensors"))
    }

    /// The averages that are there, oldest first; none where a run keeps none.
    ///
    /// # Errors
    /// A folder that can't be listed.
    pub fn all_averages(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.averages_folder();
        if !folder.exists() {
            return Ok(Vec::new());
        }
        numbered(&folder, |step| self.averages(step))
    }

    /// The newest checkpoint that `read` accepts.
    ///
    /// # Errors
    /// No checkpoint at all, or none that can be read: the reason of the newest one.
    pub fn newest_checkpoint<T>(&self, read: impl Fn(&Path) -> Result<T>) -> Result<Found<T>> {
        let mut skipped = Vec::new();
        for (step, path) in self.checkpoints()?.into_iter().rev() {
            match read(&path) {
                Ok(content) => return Ok(Found { step, path, content, skipped }),
                Err(error) => skipped.push(error),
            }
        }
        Err(skipped.into_iter().next().unwrap_or_else(|| {
            let what = "has no checkpoint to resume from; begin the run anew in another folder";
            Error::file(self.checkpoints_folder(), what)
        }))
    }

    /// Removes checkpoints and averages of steps beyond `step`: a run that goes on from there replaces
    /// them, and a damaged one must not count as the newest.
    ///
    /// # Errors
    /// A file that can't be removed.
    pub fn discard_after(&self, step: u64) -> Result<()> {
        let all = self.checkpoints()?.into_iter().chain(self.all_averages()?);
        for (_, path) in all.filter(|(later, _)| *later > step) {
            let path = &path;
            fs::remove_file(path).map_err(|error| Error::io(path, error))?;
        }
        Ok(())
    }

    /// Removes all but the newest `keep` checkpoints.
    ///
    /// # Errors
    /// A file that can't be removed.
    pub fn prune_checkpoints(&self, keep: usize) -> Result<()> {
        let all = self.checkpoints()?;
        for (_, path) in &all[..all.len().saturating_sub(keep)] {
            fs::remove_file(path).map_err(|error| Error::io(path, error))?;
        }
        Ok(())
    }
}

/// The files of a folder that have a step's name, by their steps.
fn numbered(folder: &Path, name: impl Fn(u64) -> PathBuf) -> Result<Vec<(u64, PathBuf)>> {
    let refuse = |error| Error::io(folder, error);
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(refuse)? {
        let path = entry.map_err(refuse)?.path();
        let step = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
            name.strip_prefix("step-")?.strip_suffix(".safetensors")?.parse().ok()
        });
        // The name must be the one that this step is given, or two files could claim it.
        if let Some(step) = step.filter(|&step| path == name(step)) {
            found.push((step, path));
        }
    }
    found.sort_unstable();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: impl AsRef<Path>) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_new_run_needs_a_free_folder_and_an_old_one_its_configuration() {
        let place = tempfile::tempdir().unwrap();
        let root = place.path().join("deep/run");
        RunFolder::check_free(&root).unwrap();
        assert!(!root.exists());
        assert!(RunFolder::open(&root).unwrap_err().to_string().contains("no config.toml"));
        let run = RunFolder::create(&root, "steps = 3\n").unwrap();
        assert_eq!(names(&root), ["checkpoints", "config.toml", "samples", "tensorboard"]);
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "steps = 3\n");
        let said = RunFolder::create(&root, "other").unwrap_err().to_string();
        assert!(said.contains("deep/run") && said.contains("holds another run"), "{said}");
        assert_eq!(fs::read_to_string(run.config()).unwrap(), "steps = 3\n");
        assert_eq!(RunFolder::open(&root).unwrap(), run);
        let said = RunFolder::create(place.path(), "").unwrap_err().to_string();
        assert!(said.contains("is not empty"), "{said}");
        let said = RunFolder::create(run.config(), "").unwrap_err().to_string();
        assert!(said.contains("config.toml"), "{said}");
    }

    #[test]
    fn the_newest_checkpoint_that_can_be_read_is_found() {
        let place = tempfile::tempdir().unwrap();
        let run = RunFolder::create(place.path(), "").unwrap();
        let read = |path: &Path| {
            let text = fs::read_to_string(path).map_err(|error| Error::io(path, error))?;
            text.parse::<u32>().map_err(|_| Error::file(path, "is damaged"))
        };
        let said = run.newest_checkpoint(read).unwrap_err().to_string();
        assert!(said.contains("no checkpoint to resume from"), "{said}");
        for (step, text) in [(5, "1"), (1000, "2"), (123_456_789, "broken"), (999, "3")] {
            fs::write(run.checkpoint(step), text).unwrap();
        }
        for other in ["step-7.safetensors", "notes.txt", ".cyanea-x.partial", "step-x.safetensors"]
        {
            fs::write(run.checkpoints_folder().join(other), "9").unwrap();
        }
        let found = run.newest_checkpoint(read).unwrap();
        assert_eq!((found.step, found.content), (1000, 2));
        assert_eq!(found.path, run.checkpoint(1000));
        assert_eq!(found.skipped.len(), 1);
        assert!(found.skipped[0].to_string().contains("step-123456789"));
        run.prune_checkpoints(2).unwrap();
        let steps: Vec<u64> = run.checkpoints().unwrap().iter().map(|(step, _)| *step).collect();
        assert_eq!(steps, [1000, 123_456_789]);
        assert_eq!(names(run.checkpoints_folder()).len(), 6);
        fs::write(run.checkpoint(1000), "broken too").unwrap();
        let said = run.newest_checkpoint(read).unwrap_err().to_string();
        assert!(said.contains("step-123456789") && said.contains("damaged"), "{said}");
        run.prune_checkpoints(10).unwrap();
        assert_eq!(run.checkpoints().unwrap().len(), 2);
        run.discard_after(1000).unwrap();
        assert_eq!(run.checkpoints().unwrap(), [(1000, run.checkpoint(1000))]);
    }
}
