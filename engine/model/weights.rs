//! A checkpoint: a configuration and a source of named host tensors, read by row range as f32.
//!
//! Opening checks the presence, shape and element type of every tensor and reads no weight.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use half::bf16;
use safetensors::tensor::TensorInfo;
use serde_json::{Map, Value};

use super::config::{Config, PADDED_VOCAB, PUBLISHED_VOCAB};
use super::generator::Stream;
use super::safetensors::{TensorFile, float_type, widen, width};
use super::scaling::Size;
use super::{demo, names};
use crate::error::{Error, Result};
use crate::quant::Format;
use crate::tensor::{DType, Shape};

/// Values that [`Checkpoint::fits_f16`] holds at a time.
const SCAN: usize = 1 << 16;
/// Files with the weights in a model's directory; the first that exists is used, the second lists shards.
pub(super) const FILES: [&str; 3] =
    ["model.safetensors", "model.safetensors.index.json", "weights.safetensors"];

/// The description of a weight, without its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WeightInfo {
    /// Published (Hugging Face) name, which may differ from the name in the file.
    pub name: String,
    /// Rows (outputs) of a matrix; 1 for a norm.
    pub rows: usize,
    /// Values in a row.
    pub cols: usize,
    /// Element type in the file.
    pub stored: DType,
}

/// A model: its configuration and its weights, from files or generated.
pub struct Checkpoint {
    config: Config,
    weights: Vec<WeightInfo>,
    source: WeightSource,
}

enum WeightSource {
    /// Safetensors files, and for each weight its file and where it starts in the file's data.
    Files(Vec<TensorFile>, Vec<(usize, usize)>),
    /// One generator for each weight.
    Synthetic(Vec<Stream>),
}

impl Checkpoint {
    /// Opens the model that a user names: `demo`, `synthetic:SIZE[:SEED]` or a directory.
    ///
    /// # Errors
    /// [`Error::Input`] for a name that is none of these, and those of [`Checkpoint::open`].
    pub fn source(spec: &str) -> Result<Self> {
        if spec == "demo" {
            return Self::demo();
        }
        if let Some(rest) = spec.strip_prefix("synthetic:") {
            let (size, seed) = rest.split_once(':').unwrap_or((rest, "0"));
            let seed = seed.parse().map_err(|_| {
                Error::Input(format!("seed `{seed}` of `{spec}` is no whole number from 0 to {}", u64::MAX))
            })?;
            return Ok(Self::synthetic(size.parse()?, seed));
        }
        let dir = Path::new(spec);
        let wrong = |what| Err(Error::Input(format!("`{spec}` {what}")));
        match fs::metadata(dir) {
            Ok(found) if found.is_dir() => Self::open(dir),
            Ok(_) => wrong("is a file; name the directory that holds config.json and the weights"),
            Err(_) => wrong("is neither `demo`, nor `synthetic:SIZE[:SEED]`, nor a directory"),
        }
    }

    /// Opens a directory with `config.json` and weights in safetensors, in one file or in shards.
    ///
    /// # Errors
    /// [`Error::Io`] for files that cannot be read, [`Error::Model`] for anything wrong in them.
    pub fn open(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        let text = fs::read_to_string(&path).map_err(|e| Error::io("read", &path, e))?;
        let config = Config::from_json(&text, &path)?;
        let Some(path) = FILES.iter().map(|name| dir.join(name)).find(|path| path.exists()) else {
            let names = FILES.join(", ");
            return Err(Error::Model(format!("`{}` has no weights: none of {names} exists", dir.display())));
        };
        let shards =
            if path.extension().is_some_and(|e| e == "json") { shards(&path)? } else { vec![path.clone()] };
        let files = shards.iter().map(|shard| TensorFile::open(shard)).collect::<Result<_>>()?;
        Self::from_files(config, files, &path)
    }

    /// Opens a checkpoint that is in memory.
    ///
    /// # Errors
    /// [`Error::Model`], as for [`Checkpoint::open`].
    pub fn from_bytes(config_json: &str, safetensors: Vec<u8>) -> Result<Self> {
        let path = Path::new(FILES[0]);
        let config = Config::from_json(config_json, Path::new("config.json"))?;
        Self::from_files(config, vec![TensorFile::from_bytes(path, safetensors)?], path)
    }

    /// Opens the embedded demo model.
    ///
    /// # Errors
    /// None for an unchanged build; the embedded files are checked like any others.
    pub fn demo() -> Result<Self> {
        let path = Path::new("demo/model.safetensors");
        let config = Config::from_json(demo::CONFIG, Path::new("demo/config.json"))?;
        Self::from_files(config, vec![TensorFile::from_bytes(path, demo::WEIGHTS)?], path)
    }

    /// Returns a model of a published size with made-up weights, for timings and checks.
    pub fn synthetic(size: Size, seed: u64) -> Self {
        Self::synthetic_with(Config::published(size), seed)
    }

    /// Returns a model of any configuration with made-up bf16 weights.
    pub fn synthetic_with(config: Config, seed: u64) -> Self {
        let (mut weights, mut streams) = (Vec::new(), Vec::new());
        for (name, rows, cols) in names::all(&config) {
            streams.push(Stream::new(&name, cols, seed));
            weights.push(WeightInfo { name, rows, cols, stored: DType::Bf16 });
        }
        Self { config, weights, source: WeightSource::Synthetic(streams) }
    }

    /// Finds every weight of `config` in `files`; the error for a missing one names `origin`.
    fn from_files(config: Config, files: Vec<TensorFile>, origin: &Path) -> Result<Self> {
        let mut found: BTreeMap<String, (usize, &TensorInfo)> = BTreeMap::new();
        for (index, file) in files.iter().enumerate() {
            for (name, info) in file.tensors() {
                let name = names::canonical(&name);
                if let Some((first, _)) = found.insert(name.clone(), (index, info)) {
                    let (first, second) = (files[first].path().display(), file.path().display());
                    return Err(Error::Model(format!("tensor `{name}` exists twice: `{first}`, `{second}`")));
                }
            }
        }
        let (mut weights, mut offsets) = (Vec::new(), Vec::new());
        for (name, rows, cols) in names::all(&config) {
            let expected =
                if names::is_norm(&name) { Shape::from([cols]) } else { Shape::from([rows, cols]) };
            let wrong = |file: &Path, what: String| {
                Error::Model(format!("`{}`: tensor `{name}`: expected {expected}, {what}", file.display()))
            };
            let Some((index, info)) = found.remove(&name) else {
                return Err(wrong(origin, "found none of that name".into()));
            };
            let file = files[index].path();
            let padded = name == names::EMBEDDING
                && config.vocab_size == PUBLISHED_VOCAB
                && info.shape == [PADDED_VOCAB, cols];
            if info.shape != expected.dims() && !padded {
                return Err(wrong(file, format!("found {:?}", info.shape)));
            }
            let stored = float_type(info.dtype)
                .ok_or_else(|| wrong(file, format!("of BF16, F16 or F32, found {}", info.dtype)))?;
            offsets.push((index, info.data_offsets.0));
            weights.push(WeightInfo { name, rows, cols, stored });
        }
        for (name, (index, _)) in found {
            refuse_or_ignore(&name, files[index].path())?;
        }
        Ok(Self { config, weights, source: WeightSource::Files(files, offsets) })
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns every weight: the embedding, the layers in order, the last norm.
    pub fn weights(&self) -> &[WeightInfo] {
        &self.weights
    }

    /// Returns the index of a weight in [`Checkpoint::weights`] by its published name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.weights.iter().position(|weight| weight.name == name)
    }

    /// Returns the number of parameters; the head is the embedding and counts once.
    pub fn parameters(&self) -> u64 {
        self.weights.iter().map(|weight| (weight.rows * weight.cols) as u64).sum()
    }

    /// Reads rows of a weight as f32, exactly. Threads may read at the same time.
    ///
    /// # Errors
    /// [`Error::Model`] naming tensor, row and column of a NaN or an infinity.
    ///
    /// # Panics
    /// When `rows` is not within the weight or `out` is not as long as they are.
    pub fn read_rows(&self, index: usize, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let WeightInfo { cols, stored, .. } = self.weights[index];
        self.assert_within(index, &rows);
        assert_eq!(out.len(), rows.len() * cols, "the buffer is as long as the rows");
        match &self.source {
            WeightSource::Synthetic(streams) => {
                streams[index].fill(rows.start * cols, out);
                out.iter_mut().for_each(|value| *value = bf16::from_f32(*value).to_f32());
                Ok(())
            }
            WeightSource::Files(files, offsets) => {
                let (file, start) = offsets[index];
                widen(stored, files[file].data(byte_range(start, &rows, cols, stored)), out);
                self.expect_finite(index, rows.start, out)
            }
        }
    }

    /// Lets the system reclaim the memory of rows that were read; they may be read again.
    ///
    /// # Panics
    /// When `rows` is not within the weight.
    pub fn release(&self, index: usize, rows: Range<usize>) {
        self.assert_within(index, &rows);
        if let WeightSource::Files(files, offsets) = &self.source {
            let WeightInfo { cols, stored, .. } = self.weights[index];
            let (file, start) = offsets[index];
            files[file].release(byte_range(start, &rows, cols, stored));
        }
    }

    /// Returns whether every value of a weight is within f16's range.
    ///
    /// Reads up to the first that is not; a weight stored as f16 is not read at all.
    ///
    /// # Errors
    /// Those of [`Checkpoint::read_rows`], in what is read.
    pub fn fits_f16(&self, index: usize) -> Result<bool> {
        let WeightInfo { rows, cols, stored, .. } = self.weights[index];
        if stored == DType::F16 {
            return Ok(true);
        }
        let step = (SCAN / cols).max(1);
        let mut values = vec![0.0; step * cols];
        let largest = Format::F16.largest();
        for start in (0..rows).step_by(step) {
            let part = start..rows.min(start + step);
            let values = &mut values[..part.len() * cols];
            self.read_rows(index, part.clone(), values)?;
            self.release(index, part);
            // No early exit, so that the loop is vectorized.
            if values.iter().fold(false, |any, value| any | (value.abs() > largest)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Rejects a NaN or an infinity in rows read from `first_row` on.
    fn expect_finite(&self, index: usize, first_row: usize, values: &[f32]) -> Result<()> {
        // No early exit, so that the loop is vectorized.
        if values.iter().fold(true, |all, value| all & value.is_finite()) {
            return Ok(());
        }
        let at = values.iter().position(|value| !value.is_finite()).expect("one of them is not finite");
        let WeightInfo { name, cols, .. } = &self.weights[index];
        let (row, col, value) = (first_row + at / cols, at % cols, values[at]);
        Err(Error::Model(format!(
            "tensor `{name}`: the value at row {row}, column {col}, {value}, is not a finite number"
        )))
    }

    fn assert_within(&self, index: usize, rows: &Range<usize>) {
        let WeightInfo { name, rows: count, .. } = &self.weights[index];
        assert!(rows.start <= rows.end && rows.end <= *count, "rows {rows:?} of {count} in `{name}`");
    }
}

/// Returns the byte range of rows in the data of a file, for a weight that begins at `start`.
fn byte_range(start: usize, rows: &Range<usize>, cols: usize, stored: DType) -> Range<usize> {
    let row = cols * width(stored);
    start + rows.start * row..start + rows.end * row
}

/// Returns the shard files that an index names, each of them a plain name within its directory.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |what: String| Error::Model(format!("`{}`: {what}", index.display()));
    let text = fs::read_to_string(index).map_err(|e| Error::io("read", index, e))?;
    let map: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| wrong(format!("is no JSON object: {e}")))?;
    let Some(Value::Object(weights)) = map.get("weight_map") else {
        return Err(wrong("`weight_map` is no object of tensor names and files".into()));
    };
    let mut names = BTreeSet::new();
    for (tensor, shard) in weights {
        let shard = shard.as_str().unwrap_or_default();
        let mut parts = Path::new(shard).components();
        // `..`, a root or a folder would read outside the directory that the user named.
        if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) || shard.contains('\\')
        {
            return Err(wrong(format!(
                "tensor `{tensor}` is in `{shard}`, which is no file name in its directory"
            )));
        }
        names.insert(index.with_file_name(shard));
    }
    names.into_iter().map(|path| if path.is_file() { Ok(path) } else { Err(missing(index, &path)) }).collect()
}

fn missing(index: &Path, shard: &Path) -> Error {
    Error::Model(format!("`{}` names the shard `{}`, which is not there", index.display(), shard.display()))
}

/// Rejects or ignores a tensor that the configuration does not have.
///
/// It rejects what would change the result, ignores tables that programs save along with the weights, and
/// ignores the rest with a warning.
fn refuse_or_ignore(name: &str, file: &Path) -> Result<()> {
    let wrong = |what| Err(Error::Model(format!("`{}`: tensor `{name}`: {what}", file.display())));
    if name.starts_with("lm_head.") {
        return wrong("samara has no untied output head; OpenELM's head is its embedding");
    }
    if ["inv_freq", "causal_mask", "pos_embedding"].iter().any(|table| name.contains(table)) {
        return Ok(());
    }
    if name.starts_with("transformer.") {
        return wrong("the configuration has no place for it");
    }
    tracing::warn!(tensor = name, file = %file.display(), "ignored: OpenELM has no such tensor");
    Ok(())
}
