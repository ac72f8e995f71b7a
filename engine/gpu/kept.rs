//! Compiled pipelines kept on disk between runs, if the backend exposes what its driver compiled (Vulkan).
//!
//! A file is valid for one adapter with one driver. wgpu and the driver do not check that no byte changed, so
//! this module does; a file that cannot be used only costs time.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::gpu::AdapterSummary;
use crate::gpu::tuning::{cache_folder, file_name, fnv1a};

/// The first line of a file, with the version of its layout.
const FIRST_LINE: &str = "samara pipelines 1";
/// Most bytes of a file that is read: drivers drop nothing, so a file that outgrows this is started again.
const MAX_BYTES: usize = 64 << 20;

/// Returns the folder of the user's compiled pipelines; none when there is no cache directory, or when
/// `SAMARA_PIPELINES` is `off`.
///
/// # Errors
/// When `SAMARA_PIPELINES` is neither `on` nor `off`.
pub fn pipeline_folder() -> Result<Option<PathBuf>> {
    match std::env::var("SAMARA_PIPELINES") {
        Ok(value) if value == "off" => Ok(None),
        Ok(value) if value != "on" => {
            Err(Error::Input(format!("SAMARA_PIPELINES `{value}` is neither `on` nor `off`")))
        }
        _ => Ok(cache_folder().map(|cache| cache.join("pipelines"))),
    }
}

/// What a driver compiled, and the file that it comes from and goes to.
#[derive(Debug)]
pub(super) struct Kept {
    cache: wgpu::PipelineCache,
    path: PathBuf,
    heading: String,
    /// Sum of what the file holds; 0 if there is none that can be used.
    stored: AtomicU64,
    /// Whether something was compiled since the file was written.
    asked: AtomicBool,
}

impl Kept {
    /// Reads what was kept for an adapter in a folder, if any; `None` if the device does not expose
    /// pipelines.
    ///
    /// A damaged file, or one of another adapter or driver, is ignored with a warning.
    pub(super) fn open(device: &wgpu::Device, adapter: &AdapterSummary, folder: &Path) -> Option<Self> {
        if !device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let key = wgpu::util::pipeline_cache_key(&device.adapter_info())?;
        let path = folder.join(format!("{key}-{}", file_name(adapter, "bin")));
        let heading = heading(adapter);
        let data = read(&path, &heading).unwrap_or_else(|why| {
            tracing::warn!("`{}` {why}; pipelines are compiled anew", path.display());
            None
        });
        // SAFETY: the data is what `get_data` returned, to the last byte as its sum says, for a device of this name
        // with this driver. Whoever can forge such a file of the user's can change their programs too.
        let cache = unsafe {
            device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("samara"),
                data: data.as_deref(),
                fallback: true,
            })
        };
        let stored = data.as_deref().map_or(0, fnv1a);
        Some(Self { cache, path, heading, stored: stored.into(), asked: false.into() })
    }

    /// Returns the cache that a driver reads and extends; call [`note`](Self::note) afterwards.
    pub(super) fn cache(&self) -> &wgpu::PipelineCache {
        &self.cache
    }

    /// Notes that something was compiled.
    pub(super) fn note(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// Writes the file, whole or not at all, if the driver has more than it holds. A failure is only a
    /// warning: the next run compiles again.
    pub(super) fn save(&self) {
        // One at a time: threads of a process share the name of the file that is being written.
        static SAVING: Mutex<()> = Mutex::new(());
        let _saving = SAVING.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.asked.swap(false, Ordering::Relaxed) {
            return;
        }
        let Some(data) = self.cache.get_data() else { return };
        let sum = fnv1a(&data);
        if self.stored.swap(sum, Ordering::Relaxed) == sum {
            return;
        }
        if let Err(error) = write(&self.path, &self.heading, &data) {
            tracing::warn!("compiled pipelines are not kept: {error}");
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.save();
    }
}

/// Returns what a file begins with; the sum and the length of its data follow.
fn heading(adapter: &AdapterSummary) -> String {
    let whole = [&adapter.name, &adapter.backend, &adapter.driver];
    // A line break in a name would look like one of the file's.
    let [name, backend, driver] = whole.map(|part| part.replace('\n', " "));
    format!("{FIRST_LINE}\n{name}\n{backend}\n{driver}\n")
}

fn write(path: &Path, heading: &str, data: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    let mut file = format!("{heading}{:016x} {}\n", fnv1a(data), data.len()).into_bytes();
    file.extend(data);
    crate::files::write_whole(path, &file)
}

/// Reads the data of a file, or returns why it cannot be used; `None` if there is no file, or too large a
/// one.
fn read(path: &Path, heading: &str) -> std::result::Result<Option<Vec<u8>>, String> {
    let file = match std::fs::read(path) {
        Ok(file) => file,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("cannot be read: {e}")),
    };
    if !file.starts_with(FIRST_LINE.as_bytes()) {
        return Err(format!("does not begin with `{FIRST_LINE}`"));
    }
    let Some(rest) = file.strip_prefix(heading.as_bytes()) else {
        return Err("is of another adapter or driver".to_owned());
    };
    let line = rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len());
    let (line, data) = (&rest[..line], rest.get(line + 1..).unwrap_or_default());
    let expected = format!("{:016x} {}", fnv1a(data), data.len());
    if line != expected.as_bytes() {
        return Err(format!(
            "is damaged: its {} bytes are not those that it names, `{}`",
            data.len(),
            String::from_utf8_lossy(&line[..line.len().min(40)])
        ));
    }
    Ok((data.len() <= MAX_BYTES).then(|| data.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEADING: &str = "samara pipelines 1\nCard\nvulkan\nmesa 25\n";

    #[test]
    fn what_is_written_is_read_for_the_same_adapter_and_driver_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/pipelines.bin");
        assert_eq!(read(&path, HEADING), Ok(None));
        for data in [&b"\n\0binary\n"[..], b""] {
            write(&path, HEADING, data).unwrap();
            assert_eq!(read(&path, HEADING), Ok(Some(data.to_vec())));
        }
        let why = read(&path, &HEADING.replace("25", "26")).unwrap_err();
        assert!(why.contains("another adapter or driver"), "{why}");
        assert!(read(folder.path(), HEADING).unwrap_err().contains("cannot be read"));
    }

    #[test]
    fn a_file_with_any_byte_changed_or_missing_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pipelines.bin");
        write(&path, HEADING, b"compiled\n\x01\x02\x03").unwrap();
        let whole = std::fs::read(&path).unwrap();
        for index in 0..whole.len() {
            let mut changed = whole.clone();
            changed[index] ^= 0x20;
            std::fs::write(&path, &changed).unwrap();
            assert!(read(&path, HEADING).is_err(), "byte {index} changed");
            std::fs::write(&path, &whole[..index]).unwrap();
            assert!(read(&path, HEADING).is_err(), "cut at {index}");
        }
        std::fs::write(&path, [&whole[..], b"more"].concat()).unwrap();
        assert!(read(&path, HEADING).unwrap_err().contains("damaged"));
    }
}
