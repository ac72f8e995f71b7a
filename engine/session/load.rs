//! Loading: from the rows of a checkpoint to planes on the device.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Backend, BufferRange, Clock, Gpu, GpuOptions, asked_tier};
use crate::graph::Graph;
use crate::graph::fuse::Fusion;
use crate::kernels::{Access, FEW_TOKENS, MOST_TOKENS, SPLIT_KEYS, Shaders, Tier};
use crate::model::layout::{Layout, WeightLayout};
use crate::model::openelm::{self, Step, StepShape};
use crate::model::{Checkpoint, Config};
use crate::quant::Format;
use crate::session::Session;
use crate::tensor::{DType, TensorDesc, TensorId};

/// Values that one task reads and packs at a time, and how many packed tasks may wait to be written: with a task in
/// hand for each processor this bounds the host's memory.
const TASK_VALUES: usize = 1 << 18;
const WAITING: usize = 8;
/// Bytes written before the device is given time to take them: bounds the staging memory.
const STAGED_BYTES: u64 = 16 << 20;

/// Workgroups that share the keys of a head on a GPU: by the arithmetic of `attention_decode.wgsl`, not yet measured.
const SPLITS: usize = 4;
/// Most workgroups that may.
const MAX_SPLITS: usize = 16;

/// Most tokens of one prefill step.
const MAX_CHUNK: usize = 4096;
/// Operations of one prefill step without matrix units: a second of a GPU that does 10^12 of them.
const STEP_FLOPS: u64 = 1_000_000_000_000;

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
    /// Masks features of the adapter above this tier; without one `SAMARA_TIER` in the environment says.
    pub tier: Option<Tier>,
    /// Fusion rules that are on.
    pub fusion: Fusion,
    /// Files that stand in for built-in shaders.
    pub shaders: Shaders,
    /// Most tokens of one prefill step, 1 to 4096; without a number 512 on matrix units, 64 on a software adapter, and
    /// on other GPUs between, the fewer the larger the model is.
    pub prefill_chunk: Option<usize>,
    /// Workgroups that share the keys of a head when a few rows attend to many keys
    /// ([`SPLIT_KEYS`](crate::kernels::SPLIT_KEYS)), 1 to 16, for one more dispatch a layer; without a number 4 on a GPU and 1 on
    /// a software adapter.
    pub splits: Option<usize>,
    /// Folder in which what the driver compiles is kept from run to run
    /// ([`pipeline_folder`](crate::gpu::pipeline_folder) is the user's), where the backend hands it out; nothing is
    /// kept without one.
    pub pipelines: Option<PathBuf>,
    /// Lowers the largest storage binding below what the adapter offers, in bytes.
    pub max_binding_bytes: Option<u64>,
    /// What takes the times of dispatches; without it the best that the adapter has.
    pub clock: Option<Clock>,
    /// Hears of the bytes loaded.
    pub progress: Option<Progress>,
}

impl LoadOptions {
    /// Returns the most tokens of one prefill step. Without a number as many as fill a large GPU, but without matrix units
    /// few enough to keep a step of a slow one far from the 2 s that drivers allow.
    pub(crate) fn chunk(&self, gpu: &Gpu, checkpoint: &Checkpoint) -> usize {
        let affordable = (STEP_FLOPS / (2 * checkpoint.parameters().max(1))).next_power_of_two() / 2;
        self.prefill_chunk.unwrap_or(match gpu.summary() {
            summary if summary.software => MOST_TOKENS,
            summary if summary.tier.coop.is_some() => 512,
            _ => (affordable as usize).clamp(128, 512),
        })
    }
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { format, kv, adapter, backend, tier, fusion, prefill_chunk, max_binding_bytes, .. } = self;
        write!(f, "LoadOptions {{ {format:?}, {kv}, {adapter:?}, {backend:?}, {tier:?}, {fusion:?}, ")?;
        write!(f, "prefill_chunk: {prefill_chunk:?}, max_binding_bytes: {max_binding_bytes:?} }}")
    }
}

/// What loading a model took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadTimes {
    /// To open the device; zero for one that was open.
    pub device: Duration,
    /// To read, pack and upload the weights.
    pub weights: Duration,
    /// To compile the pipelines of a prompt and of decoding, meanwhile.
    pub pipelines: Duration,
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
    /// Most tokens of a prompt's step whose products are computed row by row.
    pub(super) few: usize,
    pub(super) times: LoadTimes,
}

impl Inner {
    /// Returns the fused graph of a step.
    pub(super) fn step(&self, shape: StepShape) -> Step {
        let shape = StepShape { few: self.few, ..shape };
        let mut step = openelm::step(&self.config, &self.layout, shape);
        self.fusion.apply(&mut step.graph);
        step
    }

    /// Compiles the pipelines of a step of `tokens` tokens; no weight has to be there.
    fn compile_ahead(&self, tokens: usize) {
        let context = self.config.max_context_length.max(tokens);
        let step = self.step(StepShape::greedy(tokens, context, self.kv.dtype()));
        let tensors = step.graph.tensors();
        let planes = |id: TensorId| {
            let TensorDesc { shape, dtype, .. } = &tensors[id];
            Format::of(*dtype).map_or(1, |format| format.row_words(shape.last()).len())
        };
        let kernels = step.graph.ops().iter().map(|op| {
            let operands = op.kernel.operands();
            let weights = operands.iter().filter(|operand| operand.access == Access::Weight);
            (&*op.kernel, weights.map(|operand| planes(operand.tensor)).sum())
        });
        self.gpu.compile_ahead(kernels);
    }

    /// Returns how many workgroups share the keys of a head in a step of which a row sees as many as `keys`.
    pub(super) fn splits(&self, keys: usize) -> usize {
        if keys < SPLIT_KEYS { 1 } else { self.splits }
    }

    /// Returns every number of workgroups that do for sequences of at most `context` tokens.
    pub(super) fn all_splits(&self, context: usize) -> BTreeSet<usize> {
        [self.splits(1), self.splits(context)].into()
    }

    /// Returns the number for a step of `tokens` tokens of one sequence: many attend in tiles, which share no keys.
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
        let start = Instant::now();
        let (adapter, backend) = (options.adapter.clone(), options.backend);
        let tier = options.tier.map_or_else(asked_tier, |tier| Ok(Some(tier)))?;
        let mut gpu = Gpu::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })?;
        gpu.set_shaders(options.shaders.clone());
        options.clock.map_or(Ok(()), |clock| gpu.set_clock(clock))?;
        if let Some(folder) = &options.pipelines {
            gpu.keep_pipelines(folder);
        }
        Self::on(&checkpoint, gpu.into(), options, start.elapsed())
    }

    /// Loads a checkpoint onto an opened device, for instance the caller's own
    /// ([`Gpu::from_device`]); `adapter`, `backend`, `tier`, `shaders`, `pipelines` and `clock` of the options are not
    /// looked at.
    ///
    /// # Errors
    /// When a value is not finite or the device lacks memory.
    pub fn from_checkpoint(checkpoint: &Checkpoint, gpu: Gpu, options: LoadOptions) -> Result<Self> {
        Self::on(checkpoint, gpu.into(), options, Duration::ZERO)
    }

    /// Loads another model onto the device of this one; `adapter`, `backend`, `tier`, `shaders`, `pipelines` and `clock`
    /// of the options are not looked at.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_beside(&self, spec: &str, options: LoadOptions) -> Result<Self> {
        Self::on(&Checkpoint::source(spec)?, Arc::clone(&self.0.gpu), options, Duration::ZERO)
    }

    fn on(checkpoint: &Checkpoint, gpu: Arc<Gpu>, options: LoadOptions, device: Duration) -> Result<Self> {
        let chunk = options.chunk(&gpu, checkpoint);
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
        // The logits of a chunk must fit one binding when all of them are wanted.
        let rows = usize::try_from(limit / (config.vocab_size as u64 * 4)).unwrap_or(usize::MAX);
        let chunk = chunk.min(rows.max(1));
        let (format, kv, fusion) = (format(checkpoint, &options), options.kv, options.fusion);
        let (config, layout, weights) = (config.into(), layout.into(), Arc::default());
        let splits = options.splits.unwrap_or(if gpu.summary().software { 1 } else { SPLITS });
        let few = gpu.few_tokens(format);
        let times = LoadTimes { device, ..LoadTimes::default() };
        let mut inner = Inner { gpu, config, layout, weights, format, kv, fusion, chunk, splits, few, times };
        let progress = options.progress.as_ref();
        let (weights, times) = thread::scope(|scope| {
            // A prompt and a decode step are what most models run first.
            let compiling = scope.spawn(|| {
                let start = Instant::now();
                [1, chunk].into_iter().for_each(|tokens| inner.compile_ahead(tokens));
                start.elapsed()
            });
            let start = Instant::now();
            let weights = Uploader::new(&inner.gpu, checkpoint, &inner.layout, progress).run()?;
            let times = LoadTimes { weights: start.elapsed(), ..inner.times };
            let pipelines = compiling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((weights, LoadTimes { pipelines, ..times }))
        })?;
        inner.times = times;
        inner.weights = weights.into();
        // What is compiled later is kept when the device is dropped, so that no token waits for a file.
        inner.gpu.save_pipelines();
        Ok(Self(Arc::new(inner)))
    }

    /// Returns a model with other fusion rules on the same device and weights.
    pub fn with_fusion(&self, fusion: Fusion) -> Self {
        Self(Arc::new(Inner { fusion, ..Inner::clone(&self.0) }))
    }

    /// Returns the most tokens of a prompt's step whose products are computed row by row and not in tiles.
    pub fn few_tokens(&self) -> usize {
        self.0.few
    }

    /// Returns a model with another such number on the same device and weights. Below 8, verified guesses no longer
    /// are to the last bit what decoding computes.
    ///
    /// # Panics
    /// When it is more than [`MOST_TOKENS`].
    pub fn with_few_tokens(&self, few: usize) -> Self {
        assert!(few <= MOST_TOKENS, "{few} tokens are more than {MOST_TOKENS}");
        Self(Arc::new(Inner { few, ..Inner::clone(&self.0) }))
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
        let shape = StepShape { few: gpu.few_tokens(format(checkpoint, options)), ..shape };
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

    /// Returns what loading it took.
    pub fn load_times(&self) -> LoadTimes {
        self.0.times
    }

    /// Returns the most tokens of one prefill step.
    pub fn prefill_chunk(&self) -> usize {
        self.0.chunk
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

/// Returns the format of matrices that is asked for, or in which the embedding is stored.
fn format(checkpoint: &Checkpoint, options: &LoadOptions) -> Format {
    let stored = Format::of(checkpoint.weights()[0].stored).expect("checkpoints hold floats");
    options.format.unwrap_or(stored)
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

/// Rows of a weight that are read and packed at a time.
struct Task {
    /// Which weight of the checkpoint.
    index: usize,
    rows: Range<usize>,
    /// Where they go: which part of all, and the row in it.
    part: usize,
    row: usize,
}

/// Rows of a task in the planes of its format, with the number of the task.
type Packed = (usize, Result<Vec<Vec<u32>>>);

/// Reads and packs weights on every processor and writes them to the device meanwhile.
struct Uploader<'a> {
    gpu: &'a Gpu,
    checkpoint: &'a Checkpoint,
    layout: &'a Layout,
    progress: Option<&'a Progress>,
    /// Planes of each part of each weight.
    parts: Vec<Vec<BufferRange>>,
    tasks: Vec<Task>,
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
        Self { gpu, checkpoint, layout, progress, parts: vec![], tasks: vec![], done: 0, staged: 0 }
    }

    fn run(mut self) -> Result<HashMap<(String, usize), Vec<BufferRange>>> {
        let mut names = Vec::new();
        for (index, info) in self.checkpoint.weights().iter().enumerate() {
            for (part, rows) in self.layout[&info.name].parts.iter().enumerate() {
                self.plan(index, rows.clone())?;
                names.push((info.name.clone(), part));
            }
        }
        self.upload()?;
        self.flush()?;
        Ok(names.into_iter().zip(self.parts).collect())
    }

    /// Allocates the planes of one row range of a weight and cuts it into tasks.
    fn plan(&mut self, index: usize, rows: Range<usize>) -> Result<()> {
        let name = &self.checkpoint.weights()[index].name;
        let layout = &self.layout[name];
        let storage = |words: usize| self.gpu.storage(name, (words * rows.len() * 4) as u64);
        let planes = layout.format.row_words(layout.cols).into_iter().map(storage);
        let (planes, part) = (planes.collect::<Result<Vec<_>>>()?, self.parts.len());
        let step = (TASK_VALUES / layout.cols).max(1);
        let task =
            |start| Task { index, rows: start..rows.end.min(start + step), part, row: start - rows.start };
        self.tasks.extend(rows.clone().step_by(step).map(task));
        self.parts.push(planes);
        Ok(())
    }

    /// Lets threads pack what this one writes, and returns the error of the first task that has one.
    fn upload(&mut self) -> Result<()> {
        let (tasks, next) = (std::mem::take(&mut self.tasks), AtomicUsize::new(0));
        let (checkpoint, layout) = (self.checkpoint, self.layout);
        let (sender, packed) = sync_channel::<Packed>(WAITING);
        thread::scope(|scope| {
            for _ in 0..rayon::current_num_threads() {
                let (sender, next, tasks) = (sender.clone(), &next, &tasks);
                let take = || next.fetch_add(1, Ordering::Relaxed);
                scope.spawn(move || {
                    while let Some((number, task)) = Some(take()).and_then(|n| Some((n, tasks.get(n)?))) {
                        let packed = pack(checkpoint, layout, task);
                        let failed = packed.is_err();
                        if sender.send((number, packed)).is_err() || failed {
                            // Tasks before this one are under way; none behind it is begun.
                            next.fetch_max(tasks.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
            drop(sender);
            self.write_all(&tasks, packed)
        })
    }

    fn write_all(&mut self, tasks: &[Task], packed: Receiver<Packed>) -> Result<()> {
        let mut failed: Option<(usize, Error)> = None;
        for (number, packed) in packed {
            match packed {
                Ok(planes) if failed.is_none() => self.write(&tasks[number], &planes)?,
                Ok(_) => {}
                Err(error) if failed.as_ref().is_none_or(|(first, _)| number < *first) => {
                    failed = Some((number, error));
                }
                Err(_) => {}
            }
        }
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn write(&mut self, task: &Task, planes: &[Vec<u32>]) -> Result<()> {
        for (plane, words) in self.parts[task.part].iter().zip(planes) {
            let offset = (words.len() / task.rows.len() * task.row * 4) as u64;
            self.gpu.write(plane, offset, bytemuck::cast_slice(words));
            self.done += words.len() as u64 * 4;
            self.staged += words.len() as u64 * 4;
        }
        if self.staged > STAGED_BYTES {
            self.flush()?;
        }
        if let Some(progress) = self.progress {
            progress(self.done, self.layout.bytes());
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        self.staged = 0;
        self.gpu.flush()
    }
}

/// Reads the rows of a task and brings them into the planes of their format.
fn pack(checkpoint: &Checkpoint, layout: &Layout, task: &Task) -> Result<Vec<Vec<u32>>> {
    let name = &checkpoint.weights()[task.index].name;
    let WeightLayout { format, cols, .. } = layout[name];
    let mut values = vec![0.0; task.rows.len() * cols];
    checkpoint.read_rows(task.index, task.rows.clone(), &mut values)?;
    check_range(name, format, &values)?;
    let planes = format.pack(&values, cols);
    checkpoint.release(task.index, task.rows.clone());
    Ok(planes)
}
