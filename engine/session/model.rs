//! A model on a device: how it is loaded, and what its steps need.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::gpu::{AdapterSummary, Gpu, GpuOptions, asked_tier};
use crate::graph::Graph;
use crate::graph::fuse::Fusion;
use crate::kernels::{Access, MOST_TOKENS};
use crate::model::layout::Layout;
use crate::model::openelm::{self, StepGraph};
use crate::model::shape::{Paths, StepShape};
use crate::model::{Checkpoint, Config};
use crate::quant::Format;
use crate::session::options::{KvFormat, LoadOptions, LoadTimes};
use crate::session::upload::{Uploader, Weights};
use crate::tensor::{TensorDesc, TensorId};

/// A model on a device. Cloning shares it.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::{Checkpoint, Format, Gpu, KvFormat, LoadOptions, Model};
///
/// // From a directory, quantized while it is loaded, on an adapter that is named.
/// let options = LoadOptions {
///     format: Some(Format::Q8_0),
///     kv: KvFormat::Q8_0,
///     adapter: Some("NVIDIA".into()),
///     ..LoadOptions::default()
/// };
/// let model = Model::load("path/to/OpenELM-270M", options)?;
///
/// // On a device that is open already.
/// let gpu = Gpu::open(None, None)?;
/// let demo = Model::from_checkpoint(&Checkpoint::source("demo")?, gpu, LoadOptions::default())?;
/// println!("{} and {} parameters", model.parameters(), demo.parameters());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Model(Arc<Loaded>);

/// The data that a model's sessions share. Models that differ only in fusion rules or paths share the large parts.
#[derive(Clone, Debug)]
pub(super) struct Loaded {
    pub(super) gpu: Arc<Gpu>,
    pub(super) config: Arc<Config>,
    pub(super) layout: Arc<Layout>,
    pub(super) weights: Arc<Weights>,
    /// Format of the matrices, as requested or as the embedding is stored.
    pub(super) format: Format,
    pub(super) kv: KvFormat,
    pub(super) fusion: Fusion,
    /// Most tokens of one prefill step.
    pub(super) chunk: usize,
    pub(super) paths: Paths,
    pub(super) times: LoadTimes,
}

impl Loaded {
    /// Returns the shape of a greedy step of one sequence that appends `tokens` tokens at `position`.
    pub(super) fn shape(&self, context: usize, position: usize, tokens: usize) -> StepShape {
        self.paths.apply(StepShape::greedy(tokens, context, self.kv.dtype()), position + tokens)
    }

    /// Returns the fused graph of a step.
    pub(super) fn step(&self, shape: StepShape) -> StepGraph {
        let mut step = openelm::step(&self.config, &self.layout, shape);
        self.fusion.apply(&mut step.graph);
        step
    }

    /// Compiles the pipelines of a first step of `tokens` tokens; needs no weights.
    fn compile_ahead(&self, tokens: usize) {
        let step = self.step(self.shape(self.config.max_context_length.max(tokens), 0, tokens));
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

    /// Loads a checkpoint onto a device that is already open, for instance the caller's ([`Gpu::from_device`]);
    /// `adapter`, `backend`, `tier`, `shaders`, `pipelines` and `clock` of the options are ignored.
    ///
    /// # Errors
    /// When a value is not finite or the device lacks memory.
    pub fn from_checkpoint(checkpoint: &Checkpoint, gpu: Gpu, options: LoadOptions) -> Result<Self> {
        Self::on(checkpoint, gpu.into(), options, Duration::ZERO)
    }

    /// Loads another model onto the device of this one; `adapter`, `backend`, `tier`, `shaders`, `pipelines` and `clock`
    /// of the options are ignored.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn load_beside(&self, spec: &str, options: LoadOptions) -> Result<Self> {
        Self::on(&Checkpoint::source(spec)?, Arc::clone(&self.0.gpu), options, Duration::ZERO)
    }

    fn on(checkpoint: &Checkpoint, gpu: Arc<Gpu>, options: LoadOptions, device: Duration) -> Result<Self> {
        options.check()?;
        let config = checkpoint.config().clone();
        let layout = layout(checkpoint, &gpu, &options)?;
        // All logits of a chunk must fit one binding.
        let rows = options.binding_limit(&gpu) / (config.vocab_size as u64 * 4);
        let chunk = options.chunk(&gpu, checkpoint).min(usize::try_from(rows).unwrap_or(usize::MAX).max(1));
        let format = format(checkpoint, &options);
        let (paths, kv, fusion) = (options.paths(&gpu, format), options.kv, options.fusion);
        let (config, layout, weights) = (config.into(), layout.into(), Arc::default());
        let times = LoadTimes { device, ..LoadTimes::default() };
        let mut model = Loaded { gpu, config, layout, weights, format, kv, fusion, chunk, paths, times };
        let progress = options.progress.as_ref();
        let (weights, times) = thread::scope(|scope| {
            // Most models first run a prompt and a decode step.
            let compiling = scope.spawn(|| {
                let start = Instant::now();
                [1, chunk].into_iter().for_each(|tokens| model.compile_ahead(tokens));
                start.elapsed()
            });
            let start = Instant::now();
            let weights = Uploader::new(&model.gpu, checkpoint, &model.layout, progress).run()?;
            let times = LoadTimes { weights: start.elapsed(), ..model.times };
            let pipelines = compiling.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            Ok::<_, Error>((weights, LoadTimes { pipelines, ..times }))
        })?;
        model.times = times;
        model.weights = weights.into();
        // Pipelines compiled later are saved when the device is dropped, so that no token waits for a file.
        model.gpu.save_pipelines();
        Ok(Self(Arc::new(model)))
    }

    /// Returns a model with other fusion rules on the same device and weights.
    pub fn with_fusion(&self, fusion: Fusion) -> Self {
        Self(Arc::new(Loaded { fusion, ..Loaded::clone(&self.0) }))
    }

    /// Returns the two numbers by which the model's steps choose their kernels.
    pub fn paths(&self) -> Paths {
        self.0.paths
    }

    /// Returns a model with other such numbers on the same device and weights.
    ///
    /// # Panics
    /// When [`few`](Paths::few) is more than [`MOST_TOKENS`].
    pub fn with_paths(&self, paths: Paths) -> Self {
        assert!(paths.few <= MOST_TOKENS, "{} tokens are more than {MOST_TOKENS}", paths.few);
        Self(Arc::new(Loaded { paths, ..Loaded::clone(&self.0) }))
    }

    /// Returns the graph of a step that the model would run on a device, without loading it.
    ///
    /// # Errors
    /// When weights whose values decide the format cannot be read.
    pub fn graph(
        checkpoint: &Checkpoint,
        gpu: &Gpu,
        options: &LoadOptions,
        shape: StepShape,
    ) -> Result<Graph> {
        let layout = layout(checkpoint, gpu, options)?;
        let shape = StepShape { few: options.paths(gpu, format(checkpoint, options)).few, ..shape };
        let mut graph = openelm::step(checkpoint.config(), &layout, shape).graph;
        options.fusion.apply(&mut graph);
        Ok(graph)
    }

    /// Returns the configuration.
    pub fn config(&self) -> &Config {
        &self.0.config
    }

    /// Returns the number of parameters; the head is the embedding and counts once.
    pub fn parameters(&self) -> u64 {
        self.0.layout.iter().map(|(_, weight)| (weight.rows * weight.cols) as u64).sum()
    }

    /// Returns how long loading took.
    pub fn load_times(&self) -> LoadTimes {
        self.0.times
    }

    /// Returns the most tokens of one prefill step.
    pub fn prefill_chunk(&self) -> usize {
        self.0.chunk
    }

    /// Returns the description of the adapter.
    pub fn adapter(&self) -> &AdapterSummary {
        self.0.gpu.summary()
    }

    pub(super) fn loaded(&self) -> &Arc<Loaded> {
        &self.0
    }
}

/// Returns the requested format of matrices, else the one in which the embedding is stored.
fn format(checkpoint: &Checkpoint, options: &LoadOptions) -> Format {
    let stored = Format::of(checkpoint.weights()[0].stored).expect("checkpoints hold floats");
    options.format.unwrap_or(stored)
}

/// Returns how each weight is stored on a device.
fn layout(checkpoint: &Checkpoint, gpu: &Gpu, options: &LoadOptions) -> Result<Layout> {
    let formats = formats(checkpoint, options.format)?;
    Ok(Layout::new(checkpoint.weights(), |index| formats[index], options.binding_limit(gpu)))
}

/// Chooses the format of each weight: the one requested, or as stored. Where f16 is requested and a value would
/// overflow, the weight stays as stored.
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
