//! Tuned values of an adapter: found once by `samara kernel tune`, kept in the user's cache directory.
//!
//! A value is valid for one kernel, shape, tier and text of its file on one adapter with one driver; anything
//! else keeps its default. The values in a file are checked against the kernel's own list of values
//! ([`Choice::of`]), so a damaged one only costs speed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use etcetera::BaseStrategy;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::gpu::AdapterSummary;
use crate::kernels::{Choice, FEW_TOKENS, Kernel, MOST_TOKENS, Source, Tier};
use crate::quant::Format;

/// Version of the file's layout.
const VERSION: u32 = 1;

/// What a file of tuned values holds.
#[derive(Debug, Serialize, Deserialize)]
struct File {
    version: u32,
    adapter: String,
    backend: String,
    driver: String,
    kernels: Vec<Tuned>,
    #[serde(default)]
    few: Vec<Few>,
}

/// Up to how many tokens the products of a prompt's step run by rows and not in tiles.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Few {
    tier: String,
    format: String,
    /// Version of samara: another one may have other kernels.
    samara: String,
    tokens: usize,
}

/// The best values found for one kernel and shape.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tuned {
    /// The kernel.
    pub kernel: String,
    /// Its [`Kernel::shape`].
    pub shape: String,
    /// The tier that was timed.
    pub tier: String,
    /// A sum of the text of the kernel's own file.
    pub source: String,
    /// The values.
    pub choice: BTreeMap<String, u32>,
}

impl Tuned {
    /// Returns `choice` as the best for a kernel.
    pub fn new(kernel: &dyn Kernel, tier: Tier, source: &Source, choice: &Choice) -> Self {
        Self {
            kernel: kernel.name().to_owned(),
            shape: kernel.shape(),
            tier: tier.to_string(),
            source: sum(source),
            choice: choice.iter().map(|(name, value)| (name.to_owned(), value)).collect(),
        }
    }

    fn key(&self) -> TuningKey {
        [&self.kernel, &self.shape, &self.tier, &self.source].map(String::clone)
    }
}

/// Kernel, shape, tier and sum of the kernel's own file.
type TuningKey = [String; 4];

/// Tuned values by kernel and shape.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tuning {
    tuned: BTreeMap<TuningKey, BTreeMap<String, u32>>,
    /// Most tokens computed row by row, by tier, format and version of samara.
    few: BTreeMap<[String; 3], usize>,
}

impl Tuning {
    /// Reads the tuned values of an adapter; none if nothing was tuned, or if `SAMARA_TUNE` is `off`.
    ///
    /// A damaged file, or one of another adapter or driver, is ignored with a warning.
    ///
    /// # Errors
    /// When `SAMARA_TUNE` is neither `on` nor `off`.
    pub(crate) fn of_user(adapter: &AdapterSummary) -> Result<Self> {
        match std::env::var("SAMARA_TUNE") {
            Ok(value) if value == "off" => return Ok(Self::default()),
            Ok(value) if value != "on" => {
                return Err(Error::Input(format!("SAMARA_TUNE `{value}` is neither `on` nor `off`")));
            }
            _ => {}
        }
        let Some(path) = Self::path(adapter) else { return Ok(Self::default()) };
        Ok(Self::read(&path, adapter).unwrap_or_else(|why| {
            warn_once(&path, &why);
            Self::default()
        }))
    }

    /// Returns where the user's values for an adapter are kept; `None` if there is no cache directory.
    pub fn path(adapter: &AdapterSummary) -> Option<PathBuf> {
        Some(cache_folder()?.join("tuning").join(file_name(adapter, "json")))
    }

    /// Reads a file, or returns why it cannot be used; a missing file is empty.
    fn read(path: &Path, adapter: &AdapterSummary) -> std::result::Result<Self, String> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(format!("cannot be read: {e}")),
        };
        let file: File = serde_json::from_str(&text).map_err(|e| format!("holds no tuned values: {e}"))?;
        if file.version != VERSION {
            return Err(format!("has version {}, expected {VERSION}", file.version));
        }
        let found = [&file.adapter, &file.backend, &file.driver];
        let expected = [&adapter.name, &adapter.backend, &adapter.driver];
        if found != expected {
            return Err(format!("is of {found:?}, not of {expected:?}"));
        }
        let mut tuning = Self::default();
        file.kernels.into_iter().for_each(|tuned| tuning.insert(tuned));
        tuning.few =
            file.few.into_iter().map(|few| ([few.tier, few.format, few.samara], few.tokens)).collect();
        Ok(tuning)
    }

    /// Adds values, replacing those of the same kernel and shape.
    pub fn insert(&mut self, tuned: Tuned) {
        self.tuned.insert(tuned.key(), tuned.choice);
    }

    /// Forgets the values of the same kernel and shape.
    pub fn remove(&mut self, tuned: &Tuned) {
        self.tuned.remove(&tuned.key());
    }

    /// Returns the number of kernels and shapes that have tuned values.
    pub fn len(&self) -> usize {
        self.tuned.len()
    }

    /// Returns whether nothing was tuned.
    pub fn is_empty(&self) -> bool {
        self.tuned.is_empty() && self.few.is_empty()
    }

    /// Returns the most tokens of a prompt's step whose products are computed row by row, if that was tuned:
    /// [`FEW_TOKENS`] to [`MOST_TOKENS`].
    pub fn few_tokens(&self, tier: Tier, format: Format) -> Option<usize> {
        let tokens = self.few.get(&few_key(tier, format))?;
        Some(*tokens).filter(|tokens| (FEW_TOKENS..=MOST_TOKENS).contains(tokens))
    }

    /// Sets the number that [`few_tokens`](Self::few_tokens) returns.
    pub fn set_few_tokens(&mut self, tier: Tier, format: Format, tokens: usize) {
        self.few.insert(few_key(tier, format), tokens);
    }

    /// Returns the values for a kernel, none if it was not tuned with this text.
    pub(crate) fn choice(&self, kernel: &dyn Kernel, tier: Tier, source: impl FnOnce() -> Source) -> Choice {
        if self.tuned.is_empty() || kernel.tunables().is_empty() {
            return Choice::default();
        }
        let key = [kernel.name().to_owned(), kernel.shape(), tier.to_string(), sum(&source())];
        self.tuned.get(&key).map(|choice| choice.clone().into_iter().collect()).unwrap_or_default()
    }

    /// Writes the user's file for an adapter, whole or not at all, and returns its path.
    ///
    /// # Errors
    /// When there is no cache directory, or it cannot be written.
    pub fn save(&self, adapter: &AdapterSummary) -> Result<PathBuf> {
        let path = Self::path(adapter).ok_or_else(|| {
            Error::Unsupported("this user has no cache directory to keep tuned values in".into())
        })?;
        self.write(&path, adapter)?;
        Ok(path)
    }

    /// Writes a file for an adapter, whole or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, path: &Path, adapter: &AdapterSummary) -> Result<()> {
        let kernels = self.tuned.iter().map(|([kernel, shape, tier, source], choice)| Tuned {
            kernel: kernel.clone(),
            shape: shape.clone(),
            tier: tier.clone(),
            source: source.clone(),
            choice: choice.clone(),
        });
        let few = self.few.iter().map(|([tier, format, samara], tokens)| Few {
            tier: tier.clone(),
            format: format.clone(),
            samara: samara.clone(),
            tokens: *tokens,
        });
        let file = File {
            version: VERSION,
            adapter: adapter.name.clone(),
            backend: adapter.backend.clone(),
            driver: adapter.driver.clone(),
            kernels: kernels.collect(),
            few: few.collect(),
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
        }
        let text = serde_json::to_string_pretty(&file).expect("names and numbers are valid JSON");
        crate::files::write_whole(path, text.as_bytes())
    }
}

fn few_key(tier: Tier, format: Format) -> [String; 3] {
    [tier.to_string(), format.to_string(), env!("CARGO_PKG_VERSION").to_owned()]
}

/// Warns of a file that cannot be used, the first time that it is read.
fn warn_once(path: &Path, why: &str) {
    static WARNED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());
    if WARNED.lock().unwrap_or_else(PoisonError::into_inner).insert(path.to_owned()) {
        tracing::warn!("`{}` {why}; kernels run with their defaults", path.display());
    }
}

/// A sum that changes with any change of a kernel's own file. The other fragments are left out: a batch reads positions
/// through another one and has to run with the same values.
fn sum(source: &Source) -> String {
    format!("{:016x}", fnv1a(source.files[0].1.as_bytes()))
}

/// Returns the folder of samara's files in the user's cache directory; `None` if there is no such directory.
pub(super) fn cache_folder() -> Option<PathBuf> {
    Some(etcetera::choose_base_strategy().ok()?.cache_dir().join("samara"))
}

/// Returns the name of a file for one adapter with one driver.
pub(super) fn file_name(adapter: &AdapterSummary, extension: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = adapter.name.chars().map(plain).collect();
    let whole = [&adapter.name, &adapter.backend, &adapter.driver].map(|part| part.as_str()).join("\n");
    format!("{name}-{:016x}.{extension}", fnv1a(whole.as_bytes()))
}

/// The 64-bit FNV-1a sum.
pub(super) fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::{Entry, Shaders};

    fn adapter(driver: &str) -> AdapterSummary {
        AdapterSummary {
            index: 0,
            name: "Card (TM) 9".to_owned(),
            backend: "vulkan".to_owned(),
            driver: driver.to_owned(),
            kind: "discrete GPU".to_owned(),
            software: false,
            tier: Tier::PLAIN,
            matrix_units: None,
            integer_dots: false,
            max_binding_bytes: 1 << 27,
            max_buffer_bytes: 1 << 28,
            workgroup_memory_bytes: 1 << 14,
            max_invocations: 256,
            subgroup_sizes: None,
        }
    }

    /// The first case of `add`, its source, and tuned values for it.
    fn tuned(value: u32) -> (Box<dyn Kernel>, Source, Tuned) {
        let add = Entry::named("add").unwrap();
        let kernel = add.cases().remove(0).kernel;
        let source = Shaders::default().source(&kernel.source(Tier::PLAIN));
        let choice = [("WG".to_owned(), value)].into_iter().collect();
        let tuned = Tuned::new(&*kernel, Tier::PLAIN, &source, &choice);
        (kernel, source, tuned)
    }

    fn workgroup(tuning: &Tuning, kernel: &dyn Kernel, source: &Source) -> u32 {
        tuning.choice(kernel, Tier::PLAIN, || source.clone()).of(&kernel.tunables()[0])
    }

    #[test]
    fn what_is_written_is_read_for_the_same_adapter_and_driver_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/tuned.json");
        let (kernel, source, tuned) = tuned(128);
        let mut tuning = Tuning::default();
        tuning.insert(tuned.clone());
        tuning.write(&path, &adapter("mesa 25")).unwrap();
        let read = Tuning::read(&path, &adapter("mesa 25")).unwrap();
        assert_eq!((read.len(), workgroup(&read, &*kernel, &source)), (1, 128));
        let foreign = Tuning::read(&path, &adapter("mesa 26")).unwrap_err();
        assert!(foreign.contains("mesa 25") && foreign.contains("mesa 26"), "{foreign}");
        tuning.remove(&tuned);
        assert!(tuning.is_empty());
    }

    #[test]
    fn few_tokens_hold_for_a_tier_and_format_and_within_what_kernels_take() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        let mut tuning = Tuning::default();
        tuning.set_few_tokens(Tier::F16, Format::Q4_0, 24);
        tuning.set_few_tokens(Tier::F16, Format::Q8_0, MOST_TOKENS + 1);
        tuning.set_few_tokens(Tier::F16, Format::F32, FEW_TOKENS - 1);
        tuning.write(&path, &adapter("")).unwrap();
        let read = Tuning::read(&path, &adapter("")).unwrap();
        assert_eq!(read, tuning);
        assert_eq!(read.few_tokens(Tier::F16, Format::Q4_0), Some(24));
        let none = [(Tier::PLAIN, Format::Q4_0), (Tier::F16, Format::Q8_0), (Tier::F16, Format::F32)];
        assert!(none.iter().all(|&(tier, format)| read.few_tokens(tier, format).is_none()));
        // A file from before these numbers existed, and one of another version.
        let whole = std::fs::read_to_string(&path).unwrap();
        for text in [
            format!("{}]\n}}", &whole[..whole.find("],\n  \"few\"").unwrap()]),
            whole.replace(concat!("\"samara\": \"", env!("CARGO_PKG_VERSION")), "\"samara\": \"0.0.0"),
        ] {
            std::fs::write(&path, &text).unwrap();
            let read = Tuning::read(&path, &adapter("")).unwrap();
            assert_eq!(read.few_tokens(Tier::F16, Format::Q4_0), None, "{text}");
        }
    }

    #[test]
    fn another_text_or_tier_and_values_out_of_the_list_leave_the_default() {
        let (kernel, source, tuned_values) = tuned(128);
        let mut tuning = Tuning::default();
        tuning.insert(tuned_values);
        let mut changed = source.clone();
        changed.files[0].1 += "\n";
        assert_eq!(workgroup(&tuning, &*kernel, &changed), 64);
        let choice = tuning.choice(&*kernel, Tier::F16, || source.clone());
        assert_eq!(choice.of(&kernel.tunables()[0]), 64);
        tuning.insert(tuned(7).2);
        assert_eq!((tuning.len(), workgroup(&tuning, &*kernel, &source)), (1, 64));
    }

    #[test]
    fn damaged_files_say_why_and_missing_ones_are_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        assert!(Tuning::read(&path, &adapter("")).unwrap().is_empty());
        Tuning::default().write(&path, &adapter("")).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        for (text, part) in [
            (whole[..whole.len() / 2].to_owned(), "holds no tuned values"),
            (whole.replace("\"version\": 1", "\"version\": 9"), "version 9, expected 1"),
            (whole.replace("Card (TM) 9", "Card (TM) 8"), "Card (TM) 8"),
            ("[]".to_owned(), "holds no tuned values"),
        ] {
            std::fs::write(&path, text).unwrap();
            let why = Tuning::read(&path, &adapter("")).unwrap_err();
            assert!(why.contains(part), "{why}");
        }
    }
}
