//! Synthetic weights in files of Apple's layout, and prompts for checks and timings.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::json;

use super::config::Config;
use super::generator::{Stream, key, uniform};
use super::names;
use super::safetensors::{narrow, width};
use super::scaling::Size;
use super::weights::FILES;
use crate::error::{Error, Result};
use crate::files::Partial;
use crate::tensor::DType;

/// Largest shard that is written, unless one tensor alone is larger.
const SHARD_BYTES: usize = 5_000_000_000;
/// Values that one thread generates at a time, and how many such pieces are held before writing.
const PIECE: usize = 1 << 16;
const PIECES: usize = 64;

/// Returns `len` token ids for a check or a timing: BOS, then ids that are no special token.
pub fn prompt(vocab_size: usize, len: usize) -> Vec<u32> {
    let key = key("prompt", 7);
    let ordinary = vocab_size.saturating_sub(3) as f64;
    let id = |k: usize| 3 + ((f64::from(uniform(key, k as u64)) + 1.0) / 2.0 * ordinary) as u32;
    (0..len).map(|k| if k == 0 { 1 } else { id(k) }).collect()
}

/// Writes `config.json` and the weights of a size into `dir`, which is created if absent.
///
/// Complete files are renamed into place, `config.json` last, so that a directory never holds half a
/// model. Past 5 GB the weights go to shards with an index, as published checkpoints do.
///
/// # Errors
/// [`Error::Input`] for a type that is no float and for a directory that holds a model already
/// without `overwrite`; [`Error::Model`] for a vocabulary out of range; [`Error::Io`].
pub fn write_checkpoint(
    size: Size,
    dir: &Path,
    dtype: DType,
    seed: u64,
    vocab_size: usize,
    overwrite: bool,
) -> Result<()> {
    write_sharded(size, dir, dtype, seed, vocab_size, overwrite, SHARD_BYTES)
}

fn write_sharded(
    size: Size,
    dir: &Path,
    dtype: DType,
    seed: u64,
    vocab_size: usize,
    overwrite: bool,
    shard_bytes: usize,
) -> Result<()> {
    let (stored, torch_dtype) = match dtype {
        DType::F32 => (Dtype::F32, "float32"),
        DType::F16 => (Dtype::F16, "float16"),
        DType::Bf16 => (Dtype::BF16, "bfloat16"),
        other => return Err(Error::Input(format!("weights are stored as f32, f16 or bf16, not {other}"))),
    };
    let config_json = size.config_json(vocab_size, torch_dtype);
    let config_path = dir.join("config.json");
    let config = Config::from_json(&config_json, &config_path)?;
    let entries: Vec<PathBuf> = [&["config.json"], &FILES[..]].concat().iter().map(|n| dir.join(n)).collect();
    if let Some(found) = entries.iter().find(|path| path.exists()).filter(|_| !overwrite) {
        let found = found.display();
        return Err(Error::Input(format!("`{found}` already exists; nothing was overwritten")));
    }
    fs::create_dir_all(dir).map_err(|e| Error::io("create", dir, e))?;

    let shards = split(&config, dtype, shard_bytes);
    let mut index = serde_json::Map::new();
    let (mut complete, mut total) = (Vec::new(), 0);
    for (i, shard) in shards.iter().enumerate() {
        let name = match shards.len() {
            1 => FILES[0].to_owned(),
            count => format!("model-{:05}-of-{count:05}.safetensors", i + 1),
        };
        let partial = Partial::create(&dir.join(&name))?;
        total += write_shard(&partial, shard, dtype, stored, seed)?;
        index.extend(shard.iter().map(|(tensor, ..)| (tensor.clone(), json!(name))));
        complete.push(partial);
    }
    if shards.len() > 1 {
        let text = json!({"metadata": {"total_size": total}, "weight_map": index});
        let partial = Partial::create(&dir.join(FILES[1]))?;
        partial.write(format!("{text:#}\n").as_bytes())?;
        complete.push(partial);
    }
    let partial = Partial::create(&config_path)?;
    partial.write(config_json.as_bytes())?;
    complete.push(partial);

    // An old file of another layout would be found before the new ones.
    for old in entries.iter().filter(|path| path.exists()) {
        fs::remove_file(old).map_err(|e| Error::io("replace", old, e))?;
    }
    complete.into_iter().try_for_each(Partial::finish)
}

/// Returns the weights by name, in runs that each fit a shard.
fn split(config: &Config, dtype: DType, shard_bytes: usize) -> Vec<Vec<(String, usize, usize)>> {
    let mut weights = names::all(config);
    weights.sort();
    let (mut shards, mut used) = (vec![Vec::new()], 0);
    for weight in weights {
        let bytes = weight.1 * weight.2 * width(dtype);
        if used > 0 && used + bytes > shard_bytes {
            shards.push(Vec::new());
            used = 0;
        }
        used += bytes;
        shards.last_mut().expect("one is there").push(weight);
    }
    shards
}

/// Writes one file and returns the bytes of its tensors.
fn write_shard(
    to: &Partial,
    weights: &[(String, usize, usize)],
    dtype: DType,
    stored: Dtype,
    seed: u64,
) -> Result<usize> {
    let mut end = 0;
    let info = |(name, rows, cols): &(String, usize, usize)| {
        let shape = if names::is_norm(name) { vec![*cols] } else { vec![*rows, *cols] };
        let start = end;
        end += rows * cols * width(dtype);
        (name.clone(), TensorInfo { dtype: stored, shape, data_offsets: (start, end) })
    };
    let tensors = weights.iter().map(info).collect();
    let about = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let metadata = Metadata::new(Some(about), tensors).expect("the tensors follow each other");
    let mut header = serde_json::to_string(&metadata).expect("names and numbers are valid JSON");
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    to.write(&(header.len() as u64).to_le_bytes())?;
    to.write(header.as_bytes())?;

    let piece_bytes = PIECE * width(dtype);
    let mut bytes = vec![0; PIECES * piece_bytes];
    for (name, rows, cols) in weights {
        let stream = Stream::new(name, *cols, seed);
        let count = rows * cols;
        for first in (0..count).step_by(PIECES * PIECE) {
            let part = &mut bytes[..(count - first).min(PIECES * PIECE) * width(dtype)];
            part.par_chunks_mut(piece_bytes).enumerate().for_each(|(i, piece)| {
                let mut values = vec![0.0; piece.len() / width(dtype)];
                stream.fill(first + i * PIECE, &mut values);
                narrow(dtype, &values, piece);
            });
            to.write(part)?;
        }
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Checkpoint;

    #[test]
    fn shards_hold_what_one_file_holds_and_replace_it() {
        let dir = tempfile::tempdir().unwrap();
        let write = |limit| write_sharded(Size::Micro, dir.path(), DType::Bf16, 3, 64, true, limit).unwrap();
        let read = || {
            let model = Checkpoint::open(dir.path()).unwrap();
            let mut values = vec![0.0; 64 * 256];
            model.read_rows(0, 0..64, &mut values).unwrap();
            values
        };
        write(usize::MAX);
        let whole = read();
        assert!(!dir.path().join(FILES[1]).exists());
        write(1_000_000);
        assert!(dir.path().join(FILES[1]).exists() && !dir.path().join(FILES[0]).exists());
        assert!(dir.path().join("model-00002-of-00006.safetensors").exists());
        assert_eq!(read(), whole);
        write(usize::MAX);
        assert!(!dir.path().join(FILES[1]).exists());
    }
}
