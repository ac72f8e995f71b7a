//! Loading: from the rows of a checkpoint to planes on the device.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Backend, BufferRange, Clock, Gpu, GpuOptions, asked_tier};
use crate::graph::Graph;
use crate::graph::fuse::Fusion;
use crate::kernels::{FEW_TOKENS, SPLIT_KEYS, Shaders, Tier};
use crate::model::layout::Layout;
use crate::model::openelm::{self, Step, StepShape};
use crate::model::{Checkpoint, Config};
use crate::quant::Format;
use crate::session::Session;
use crate::tensor::DType;

/// Values that one task reads and packs at a time, and how many such tasks run between uploads.
const TASK_VALUES: usize = 1 << 18;
const TASKS: usize = 16;
/// Bytes written before the device is given time to take them: bounds the staging memory.
const STAGED_BYTES: u64 = 16 << 20;

/// Workgroups that share the keys of a head on a GPU: by the arithmetic of `attention_decode.wgsl`, not yet measured.
const SPLITS: usize = 4;
/// Most workgroups that may.
const MAX_SPLITS: usize = 16;

/// Most tokens of one prefill step.
const MAX_CHUNK: usize = 4096;

/// Called with the bytes on the device so far and in the end.
pub type Progress = Box<dyn Fn(u64, u64) + Send + Sync>;

/// Element type of the KV cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// 16-bit floats: half the memory, the default.
    #[default]
    F16,
    /// 32-bit floats.
    F32,
    /// ggml's q8_0: 8-bit integers and an f16 scale for each 32, about half of f16.
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

/// Bytes of one sequence's cache that become those of a slot of many.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) bytes: u64,
}

impl KvFormat {
    /// Yields where the first `tokens` keys, or values, of each head of `[heads, S, Dh]` go in one slot of
    /// `[slots, heads, S, Dh]`.
    pub(super) fn spans(
        self,
        tokens: usize,
        [context, head_dim]: [usize; 2],
        heads: usize,
        slot: usize,
    ) -> impl Iterator<Item = Span> + Clone {
        let bytes = move |rows: usize| self.bytes(rows, head_dim);
        (0..heads).map(move |head| Span {
            from: bytes(head * context),
            to: bytes((slot * heads + head) * context),
            bytes: bytes(tokens),
        })
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

/// How a model is loaded.
pub struct LoadOptions {
    /// Format of the weight matrices; without one, as the checkpoint stores them.
    pub format: Option<Format>,
    /// Format of the KV cache.
    pub kv: KvFormat,
    /// Adapter, by number or part of its name.
    pub adapter: Option<String>,
    /// Graphics API to look for adapters in.
    pub backend: Option<Backend>,
    /// Masks features of the adapter above this tier; without one `SAMARA_TIER` in the environment says.
    pub tier: Option<Tier>,
    /// Fusion rules that are on.
    pub fusion: Fusion,
    /// Files that stand in for built-in shaders.
    pub shaders: Shaders,
    /// Most tokens of one prefill step, 1 to 4096.
    pub prefill_chunk: usize,
    /// Workgroups that share the keys of a head when a few rows attend to many keys
    /// ([`SPLIT_KEYS`](crate::kernels::SPLIT_KEYS)), 1 to 16, for one more dispatch a layer; without a number 4 on a GPU and 1 on
    /// a software adapter.
    pub splits: Option<usize>,
    /// Lowers the largest storage binding below what the adapter offers, in bytes.
    pub max_binding_bytes: Option<u64>,
    /// What takes the times of dispatches; without it the best that the adapter has.
    pub clock: Option<Clock>,
    /// Hears of the bytes loaded.
    pub progress: Option<Progress>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            format: None,
            kv: KvFormat::default(),
            adapter: None,
            backend: None,
            tier: None,
            fusion: Fusion::all(),
            shaders: Shaders::default(),
            // 128 rows fill a GPU and keep one step of the 3B far from driver time-outs.
            prefill_chunk: 128,
            splits: None,
            max_binding_bytes: None,
            clock: None,
            progress: None,
        }
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, kv, adapter, backend, tier, fusion, prefill_chunk, max_binding_bytes, .. } = self;
        write!(f, "LoadOptions {{ {format:?}, {kv}, {adapter:?}, {backend:?}, {tier:?}, {fusion:?}, ")?;
        write!(f, "prefill_chunk: {prefill_chunk}, max_binding_bytes: {max_binding_bytes:?} }}")
    }
}

/// A model on a device. Cloning shares it.
#[derive(Clone, Debug)]
pub struct Model(Arc<Inner>);

/// What is large is shared by models that differ in their rules.
#[derive(Clone, Debug)]
pub(super) struct Inner {
    pub(super) gpu: Arc<Gpu>,
    pub(super) config: Arc<Config>,
    pub(super) layout: Arc<Layout>,
    /// Planes of each part of each weight.
    pub(super) weights: Arc<HashMap<(String, usize), Vec<BufferRange>>>,
    /// Format of the matrices, as asked for or as the embedding is stored.
    pub(super) format: Format,
    pub(super) kv: KvFormat,
    pub(super) fusion: Fusion,
    pub(super) chunk: usize,
    pub(super) splits: usize,
}

impl Inner {
    /// Returns the fused graph of a step.
    pub(super) fn step(&self, shape: StepShape) -> Step {
        let mut step = openelm::step(&self.config, &self.layout, shape);
        self.fusion.apply(&mut step.graph);
        step
    }

    /// Returns how many workgroups share the keys of a head in a step of which a row sees as many as `keys`.
    pub(super) fn splits(&self, keys: usize) -> usize {
        if keys < SPLIT_KEYS { 1 } else { self.splits }
    }

    /// Returns the same for a step of `tokens` tokens of one sequence: many attend in tiles, which share no keys.
    pub(super) fn splits_of(&self, tokens: usize, position: usize) -> usize {
        if tokens > FEW_TOKENS { 1 } else { self.splits(position + tokens) }
    }
}

impl Model {
    /// Loads `demo`, `synthetic:SIZE[:SEED]` or a model directory onto the adapter that the options
    /// choose.
    ///
    /// # Errors
    /// When the model is damaged or unsupported, there is no such adapter, or it lacks memory.
    pub fn load(spec: &str, options: LoadOptions) -> Result<Self> {
        let checkpoint = Checkpoint::source(spec)?;
        let (adapter, backend) = (options.adapter.clone(), options.backend);
        let tier = options.tier.map_or_else(asked_tier, |tier| Ok(Some(tier)))?;
        let mut gpu = Gpu::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })?;
        gpu.set_shaders(options.shaders.clone());
        options.clock.map_or(Ok(()), |clock| gpu.set_clock(clock))?;
        Self::from_checkpoint(&checkpoint, gpu, options)
    }

    /// Loads a checkpoint onto an opened device, for instance the caller's own
    /// ([`Gpu::from_device`]); `adapter`, `backend`, `tier`, `shaders` and `clock` of the options are not looked at.
    ///
    /// # Errors
    /// When a value is not finite or the device lacks memory.
    pub fn from_checkpoint(checkpoint: &Checkpoint, gpu: Gpu, options: LoadOptions) -> Result<Self> {
        Self::on(checkpoint, gpu.into(), options)
    }

    /// Loads another model onto the device of this one; `adapter`, `backend`, `tier`, `shaders` and `clock` of the options
    /// are not looked at.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_beside(&self, spec: &str, options: LoadOptions) -> Result<Self> {
        Self::on(&Checkpoint::source(spec)?, Arc::clone(&self.0.gpu), options)
    }

    fn on(checkpoint: &Checkpoint, gpu: Arc<Gpu>, options: LoadOptions) -> Result<Self> {
        let chunk = options.prefill_chunk;
        if chunk == 0 || chunk > MAX_CHUNK {
            return Err(Error::Input(format!(
                "a prefill chunk of {chunk} tokens is not within 1 to {MAX_CHUNK}"
            )));
        }
        if let Some(splits) = options.splits.filter(|splits| !(1..=MAX_SPLITS).contains(splits)) {
            return Err(Error::Input(format!(
                "{splits} splits of a head's keys are not within 1 to {MAX_SPLITS}"
            )));
        }
        let limit = binding_limit(&gpu, &options);
        let config = checkpoint.config().clone();
        let layout = layout(checkpoint, &gpu, &options)?;
        let weights = Uploader::new(&gpu, checkpoint, &layout, options.progress.as_ref()).run()?;
        // The logits of a chunk must fit one binding when all of them are wanted.
        let rows = usize::try_from(limit / (config.vocab_size as u64 * 4)).unwrap_or(usize::MAX);
        let chunk = chunk.min(rows.max(1));
        let stored = Format::of(checkpoint.weights()[0].stored).expect("checkpoints hold floats");
        let (format, kv, fusion) = (options.format.unwrap_or(stored), options.kv, options.fusion);
        let (config, layout, weights) = (config.into(), layout.into(), weights.into());
        let splits = options.splits.unwrap_or(if gpu.summary().software { 1 } else { SPLITS });
        Ok(Self(Arc::new(Inner { gpu, config, layout, weights, format, kv, fusion, chunk, splits })))
    }

    /// Returns a model with other fusion rules on the same device and weights.
    pub fn with_fusion(&self, fusion: Fusion) -> Self {
        Self(Arc::new(Inner { fusion, ..Inner::clone(&self.0) }))
    }

    /// Returns the graph of a step that the model would run on a device, without loading it.
    ///
    /// # Errors
    /// When a value that decides about a format cannot be read.
    pub fn graph(
        checkpoint: &Checkpoint,
        gpu: &Gpu,
        options: &LoadOptions,
        shape: StepShape,
    ) -> Result<Graph> {
        let layout = layout(checkpoint, gpu, options)?;
        let mut graph = openelm::step(checkpoint.config(), &layout, shape).graph;
        options.fusion.apply(&mut graph);
        Ok(graph)
    }

    /// Starts a sequence of at most `context` tokens; without a number, as many as the model was
    /// trained for.
    ///
    /// # Errors
    /// When `context` is 0 or the device lacks memory for the cache.
    pub fn session(&self, context: Option<usize>) -> Result<Session> {
        Session::new(Arc::clone(&self.0), context.unwrap_or(self.0.config.max_context_length))
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Returns the number of parameters; the head is the embedding and counts once.
    pub fn parameters(&self) -> u64 {
        self.0.layout.iter().map(|(_, weight)| (weight.rows * weight.cols) as u64).sum()
    }

    /// Returns what is known of the adapter.
    pub fn adapter(&self) -> &AdapterSummary {
        self.0.gpu.summary()
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    pub(super) fn shared(&self) -> Arc<Inner> {
        Arc::clone(&self.0)
    }
}

/// Returns the largest binding that weights may take.
fn binding_limit(gpu: &Gpu, options: &LoadOptions) -> u64 {
    let limit = gpu.summary().max_binding_bytes.min(gpu.summary().max_buffer_bytes);
    options.max_binding_bytes.map_or(limit, |bytes| bytes.min(limit))
}

/// Returns how each weight is stored on a device.
fn layout(checkpoint: &Checkpoint, gpu: &Gpu, options: &LoadOptions) -> Result<Layout> {
    let formats = formats(checkpoint, options.format)?;
    Ok(Layout::new(checkpoint.weights(), |index| formats[index], binding_limit(gpu, options)))
}

/// Chooses the format of each weight: the one asked for, or as stored. Where f16 is asked for and a
/// value would overflow, the weight stays as stored.
fn formats(checkpoint: &Checkpoint, wanted: Option<Format>) -> Result<Vec<Format>> {
    let weights = checkpoint.weights().iter().enumerate();
    weights
        .map(|(index, info)| {
            let stored = Format::of(info.stored).expect("checkpoints hold floats");
            let wanted = wanted.unwrap_or(stored);
            if wanted == Format::F16 && info.rows > 1 && !checkpoint.fits_f16(index)? {
                tracing::warn!("tensor `{}` has values beyond f16: kept as {stored}", info.name);
                return Ok(stored);
            }
            Ok(wanted)
        })
        .collect()
}

/// Refuses values that a format cannot hold.
fn check_range(name: &str, format: Format, values: &[f32]) -> Result<()> {
    let (top, largest) = (values.iter().fold(0.0f32, |top, value| top.max(value.abs())), format.largest());
    if top <= largest {
        return Ok(());
    }
    Err(Error::Model(format!(
        "tensor `{name}`: a value of magnitude {top} is past {largest}, the largest in {format}"
    )))
}

/// Packs weights and writes them to the device.
struct Uploader<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    progress: Option<&'a Progress>,
    total: u64,
    done: u64,
    staged: u64,
}

impl<'a> Uploader<'a> {
    fn new(
        gpu: &'a Gpu,
        checkpoint: &'a Checkpoint,
        layout: &'a Layout,
        progress: Option<&'a Progress>,
    ) -> Self {
        Self { gpu, checkpoint, layout, progress, total: layout.bytes(), done: 0, staged: 0 }
    }

    fn run(mut self) -> Result<HashMap<(String, usize), Vec<BufferRange>>> {
        let mut weights = HashMap::new();
        for (index, info) in self.checkpoint.weights().iter().enumerate() {
            let layout = &self.layout[&info.name];
            for (part, rows) in layout.parts.iter().enumerate() {
                let planes = self.part(index, layout.format, layout.cols, rows.clone())?;
                weights.insert((info.name.clone(), part), planes);
            }
        }
        self.flush()?;
        Ok(weights)
    }

    /// Uploads one row range of a weight into buffers of its own.
    fn part(
        &mut self,
        index: usize,
        format: Format,
        cols: usize,
        rows: Range<usize>,
    ) -> Result<Vec<BufferRange>> {
        let name = &self.checkpoint.weights()[index].name;
        let words = format.row_words(cols);
        let storage = |&words: &usize| self.gpu.storage(name, (words * rows.len() * 4) as u64);
        let planes = words.iter().map(storage).collect::<Result<Vec<_>>>()?;
        let task_rows = (TASK_VALUES / cols).max(1);
        let starts: Vec<usize> = rows.clone().step_by(task_rows).collect();
        for starts in starts.chunks(TASKS) {
            let pack = |&start: &usize| -> Result<(usize, Vec<Vec<u32>>)> {
                let end = rows.end.min(start + task_rows);
                let mut values = vec![0.0; (end - start) * cols];
                self.checkpoint.read_rows(index, start..end, &mut values)?;
                check_range(name, format, &values)?;
                Ok((start, format.pack(&values, cols)))
            };
            let packed = starts.par_iter().map(pack).collect::<Result<Vec<_>>>()?;
            self.checkpoint.release(index, starts[0]..rows.end.min(starts[0] + starts.len() * task_rows));
            for (start, parts) in packed {
                for ((plane, words), part) in planes.iter().zip(&words).zip(&parts) {
                    self.write(plane, ((start - rows.start) * words * 4) as u64, bytemuck::cast_slice(part))?;
                }
            }
        }
        Ok(planes)
    }

    fn write(&mut self, plane: &BufferRange, offset: u64, bytes: &[u8]) -> Result<()> {
        self.gpu.write(plane, offset, bytes);
        self.done += bytes.len() as u64;
        self.staged += bytes.len() as u64;
        if self.staged > STAGED_BYTES {
            self.flush()?;
        }
        if let Some(progress) = self.progress {
            progress(self.done, self.total);
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.staged = 0;
        self.gpu.flush()
    }
}
