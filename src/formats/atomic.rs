//! Writing a file so that nobody ever sees half of it.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes `path` through `write`, all or nothing: the bytes go to a temporary file in the same
/// folder, reach the disk, and only then take the name. After an error (or a crash) `path` holds
/// what it held before. The writer is buffered and can seek. An existing file is replaced;
/// the folder must exist.
///
/// # Errors
/// `Error::Io` with `path` where the folder can't be written to, the disk is full, `path` is a
/// folder, or `write` itself fails.
pub fn write_atomic(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    try_write(path, write).map_err(|source| Error::io(path, source))
}

fn try_write(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> io::Result<()> {
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    if path.is_dir() {
        return Err(io::Error::new(
            io::ErrorKind::IsADirectory,
            "is a folder, and a file is to be written here; choose another name",
        ));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".cyanea-").suffix(".partial");
    // Temporary files are private by default; these become ordinary files, so the umask decides.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let mut temporary = builder.tempfile_in(folder)?;
    let mut writer = BufWriter::with_capacity(1 << 16, temporary.as_file_mut());
    write(&mut writer)?;
    writer.flush()?;
    drop(writer);
    // Without this a crash soon after the rename could leave an empty file under the final name.
    temporary.as_file().sync_all()?;
    temporary.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}

/// Creates `folder` and its parents where they don't exist yet.
///
/// # Errors
/// `Error::Io` with `folder`.
pub fn create_folder(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    fs::create_dir_all(folder).map_err(|source| Error::io(folder, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn replaces_the_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "something longer than what follows").unwrap();
        write_atomic(&path, |w| w.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let error = write_atomic(&path, |w| {
            w.write_all(&[0; 100_000])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(error.unwrap_err().to_string().contains("a.txt"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a.txt"]);
    }

    #[test]
    fn a_folder_or_a_missing_parent_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        assert!(write_atomic(folder.path(), |w| w.write_all(b"x")).is_err());
        assert!(write_atomic(folder.path().join("no/such/a"), |w| w.write_all(b"x")).is_err());
        assert!(names(folder.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_an_ordinary_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (plain, atomic) = (folder.path().join("plain"), folder.path().join("atomic"));
        fs::write(&plain, "x").unwrap();
        write_atomic(&atomic, |w| w.write_all(b"x")).unwrap();
        let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode();
        assert_eq!(mode(&plain), mode(&atomic));
    }
}
