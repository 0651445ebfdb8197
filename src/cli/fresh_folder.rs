//! Output folders: everything or nothing.

use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A folder that was missing or empty when the command began. Dropped without
/// [`FreshFolder::keep`], it is emptied and removed again, with the parents made for it.
#[derive(Debug)]
pub struct FreshFolder {
    path: PathBuf,
    /// Folders that this command made, innermost first.
    made: Vec<PathBuf>,
    kept: bool,
}

impl FreshFolder {
    /// # Errors
    /// A folder with something in it, a file in its place, or no right to make it.
    pub fn create(path: impl AsRef<Path>) -> Result<FreshFolder> {
        let path = path.as_ref().to_path_buf();
        check_free(&path)?;
        let mut made = Vec::new();
        let mut at = Some(path.as_path());
        while let Some(folder) = at.filter(|f| !f.as_os_str().is_empty() && !f.exists()) {
            made.push(folder.to_path_buf());
            at = folder.parent();
        }
        let fresh = FreshFolder { path, made, kept: false };
        fs::create_dir_all(&fresh.path).map_err(|error| Error::io(&fresh.path, error))?;
        Ok(fresh)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The work is complete: the folder stays.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for FreshFolder {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        // It was empty, so all that is in it came from this command. What can't be removed stays.
        if let Ok(entries) = fs::read_dir(&self.path) {
            for path in entries.flatten().map(|entry| entry.path()) {
                let _ =
                    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
            }
        }
        for folder in &self.made {
            let _ = fs::remove_dir(folder);
        }
    }
}

/// Whether `path` is missing or an empty folder, so that output can go there.
///
/// # Errors
/// Says what is there and what to do.
pub fn check_free(path: &Path) -> Result<()> {
    if path.as_os_str().is_empty() {
        return Err(Error::invalid("the name of the output folder is empty; give one"));
    }
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => {
            let what = "is a file, and a folder is to be written here; choose another name";
            return Err(Error::file(path, what));
        }
        Err(error) => return Err(Error::io(path, error)),
    };
    match entries.count() {
        0 => Ok(()),
        count => {
            let noun = if count == 1 { "entry" } else { "entries" };
            let what = format!(
                "already holds {count} {noun}, and nothing is overwritten; choose another folder \
                 or empty this one"
            );
            Err(Error::file(path, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_or_gone() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b");
        let fresh = FreshFolder::create(&path).unwrap();
        fs::create_dir(path.join("sub")).unwrap();
        fs::write(path.join("sub/x"), "x").unwrap();
        drop(fresh);
        assert!(!root.path().join("a").exists());

        let fresh = FreshFolder::create(&path).unwrap();
        fs::write(path.join("x"), "x").unwrap();
        fresh.keep();
        assert!(path.join("x").exists());
        let error = FreshFolder::create(&path).unwrap_err().to_string();
        assert!(error.contains("1 entry"), "{error}");
        assert!(path.join("x").exists());
    }

    #[test]
    fn an_empty_folder_stays_and_parents_with_company_stay() {
        let root = tempfile::tempdir().unwrap();
        let empty = root.path().join("empty");
        fs::create_dir(&empty).unwrap();
        let fresh = FreshFolder::create(&empty).unwrap();
        fs::write(empty.join("x"), "x").unwrap();
        drop(fresh);
        assert!(empty.is_dir() && check_free(&empty).is_ok());
        let error = FreshFolder::create(root.path()).unwrap_err().to_string();
        assert!(error.contains("already holds"), "{error}");
    }
}
