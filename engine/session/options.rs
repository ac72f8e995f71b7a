//! How a model is loaded: options, their defaults and their limits.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Backend, Clock, Gpu};
use crate::graph::fuse::Fusion;
use crate::kernels::{MOST_TOKENS, Shaders, Tier};
use crate::model::Checkpoint;
use crate::model::shape::Paths;
use crate::quant::Format;
use crate::tensor::DType;

/// Most workgroups that may share the keys of a head.
const MAX_SPLITS: usize = 16;
/// Most tokens of one prefill step.
const MAX_CHUNK: usize = 4096;
/// Tokens of a prefill step that fill a large GPU, and the fewest if the size of the model decides.
const FULL_CHUNK: usize = 512;
const LEAST_CHUNK: usize = 128;
/// FLOPs of one prefill step without matrix units: one second on a GPU of 10^12 FLOP/s.
const STEP_FLOPS: u64 = 1_000_000_000_000;

/// Called with the bytes on the device so far and the bytes of the whole model.
pub type Progress = Box<dyn Fn(u64, u64) + Send + Sync>;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// 16-bit floats: half the memory of f32, the default.
    #[default]
    F16,
    /// 32-bit floats.
    F32,
    /// ggml's q8_0: 8-bit integers and an f16 scale for each 32, about half the memory of f16.
    Q8_0,
}

impl KvFormat {
    /// Returns the tensor element type.
    pub fn dtype(self) -> DType {
        match self {
            Self::F16 => DType::F16,
            Self::F32 => DType::F32,
            Self::Q8_0 => DType::Q8_0Rows,
        }
    }

    /// Returns the bytes of `rows` keys, or values, of `head_dim` each.
    pub fn bytes(self, rows: usize, head_dim: usize) -> u64 {
        (rows * self.dtype().row_bytes(head_dim)) as u64
    }
}

impl fmt::Display for KvFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}

impl FromStr for KvFormat {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "f16" => Ok(Self::F16),
            "f32" => Ok(Self::F32),
            "q8_0" => Ok(Self::Q8_0),
            _ => Err(Error::Input(format!("KV cache format `{name}` is none of f16, f32, q8_0"))),
        }
    }
}

/// How a model is loaded. `samara generate --help` states the defaults of what the adapter decides.
#[derive(Default)]
pub struct LoadOptions {
    /// Format of the weight matrices; without one, as the checkpoint stores them.
    pub format: Option<Format>,
    /// Format of the KV cache.
    pub kv: KvFormat,
    /// Adapter, by number or part of its name.
    pub adapter: Option<String>,
    /// Graphics API to look for adapters in.
    pub backend: Option<Backend>,
    /// Masks features of the adapter above this tier; without one the environment variable `SAMARA_TIER` decides.
    pub tier: Option<Tier>,
    /// Fusion rules that are on.
    pub fusion: Fusion,
    /// Files that replace built-in shaders.
    pub shaders: Shaders,
    /// Most tokens of one prefill step, 1 to 4096; without a number the adapter and the size of the model decide.
    pub prefill_chunk: Option<usize>,
    /// Workgroups that share the keys of a head when a few rows attend to many keys
    /// ([`SPLIT_KEYS`](crate::kernels::SPLIT_KEYS)), 1 to 16, for one more dispatch a layer; without a number the
    /// adapter decides.
    pub splits: Option<usize>,
    /// Folder in which compiled pipelines are kept between runs ([`pipeline_folder`](crate::gpu::pipeline_folder) is
    /// the user's), if the backend exposes them; without one nothing is kept.
    pub pipelines: Option<PathBuf>,
    /// Lowers the largest storage binding below what the adapter offers, in bytes.
    pub max_binding_bytes: Option<u64>,
    /// Clock that times dispatches; without one, the best that the adapter has.
    pub clock: Option<Clock>,
    /// Called while weights are loaded.
    pub progress: Option<Progress>,
}

impl LoadOptions {
    /// Rejects numbers outside their limits.
    ///
    /// # Errors
    /// When one is.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(chunk) = self.prefill_chunk.filter(|chunk| !(1..=MAX_CHUNK).contains(chunk)) {
            return Err(Error::Input(format!(
                "a prefill chunk of {chunk} tokens is not within 1 to {MAX_CHUNK}"
            )));
        }
        if let Some(splits) = self.splits.filter(|splits| !(1..=MAX_SPLITS).contains(splits)) {
            return Err(Error::Input(format!(
                "{splits} splits of a head's keys are not within 1 to {MAX_SPLITS}"
            )));
        }
        Ok(())
    }

    /// Returns the most tokens of one prefill step. By default they fill a large GPU, but without matrix units a step
    /// stays far below the 2 s after which drivers give up, even on a slow GPU.
    pub(crate) fn chunk(&self, gpu: &Gpu, checkpoint: &Checkpoint) -> usize {
        let affordable = (STEP_FLOPS / (2 * checkpoint.parameters().max(1))).next_power_of_two() / 2;
        self.prefill_chunk.unwrap_or(match gpu.summary() {
            summary if summary.software => MOST_TOKENS,
            summary if summary.tier.coop.is_some() => FULL_CHUNK,
            _ => (affordable as usize).clamp(LEAST_CHUNK, FULL_CHUNK),
        })
    }

    /// Returns the numbers by which steps with weights of a format choose their kernels on a device.
    pub(super) fn paths(&self, gpu: &Gpu, format: Format) -> Paths {
        let (tier, summary) = (gpu.tier(), gpu.summary());
        // A subgroup size of exactly 8 means the vector units of a CPU.
        let vectors = tier.subgroup && !tier.int8 && summary.subgroup_sizes == Some((8, 8));
        let untuned = Paths::untuned(summary.software, vectors);
        Paths {
            few: gpu.tuning().few_tokens(tier, format).unwrap_or(untuned.few),
            splits: self.splits.unwrap_or(untuned.splits),
        }
    }

    /// Returns the largest binding that weights may take.
    pub(super) fn binding_limit(&self, gpu: &Gpu) -> u64 {
        let limit = gpu.summary().max_binding_bytes.min(gpu.summary().max_buffer_bytes);
        self.max_binding_bytes.map_or(limit, |bytes| bytes.min(limit))
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, kv, adapter, backend, tier, fusion, prefill_chunk, max_binding_bytes, .. } = self;
        write!(f, "LoadOptions {{ {format:?}, {kv}, {adapter:?}, {backend:?}, {tier:?}, {fusion:?}, ")?;
        write!(f, "prefill_chunk: {prefill_chunk:?}, max_binding_bytes: {max_binding_bytes:?} }}")
    }
}

/// How long loading a model took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// To open the device; zero if it was already open.
    pub device: Duration,
    /// To read, pack and upload the weights.
    pub weights: Duration,
    /// To compile the pipelines of a prompt and of decoding, in parallel with the weights.
    pub pipelines: Duration,
}
