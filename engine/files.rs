//! Files that are written whole or not at all.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes a file, replacing an existing one; on any error, the existing one stays.
///
/// # Errors
/// When `path` names no file, or the file cannot be written.
pub fn write_whole(path: &Path, contents: &[u8]) -> Result<()> {
    let partial = Partial::create(path)?;
    partial.write(contents)?;
    partial.finish()
}

/// A file under a temporary name next to its own, deleted on drop unless it was finished.
pub(crate) struct Partial {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

impl Partial {
    pub(crate) fn create(path: &Path) -> Result<Self> {
        let name = path
            .file_name()
            .ok_or_else(|| Error::Input(format!("`{}` is not the name of a file", path.display())))?;
        let name = name.to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
        let file = File::create(&temporary).map_err(|e| Error::io("write", path, e))?;
        Ok(Self { file, temporary, path: path.to_owned() })
    }

    pub(crate) fn write(&self, bytes: &[u8]) -> Result<()> {
        (&self.file).write_all(bytes).map_err(|e| Error::io("write", &self.path, e))
    }

    pub(crate) fn finish(self) -> Result<()> {
        let done = self.file.sync_all().and_then(|()| fs::rename(&self.temporary, &self.path));
        done.map_err(|e| Error::io("write", &self.path, e))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After `finish` there is nothing left under this name.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_replaced_whole_and_leave_nothing_beside_them() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("out.json");
        fs::write(&path, "before").unwrap();
        write_whole(&path, b"after").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert!(write_whole(&directory.path().join("none/out.json"), b"").is_err());
        fs::create_dir(directory.path().join("taken")).unwrap();
        assert!(write_whole(&directory.path().join("taken"), b"").is_err());
        assert!(write_whole(Path::new("/"), b"").is_err());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
    }
}
