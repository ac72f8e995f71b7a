//! The buffers of one sequence and the steps that were built on them.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gpu::{Bindings, BufferRange, Executor, Readback, Span, Submission};
use crate::graph::plan::{self, Plan};
use crate::graph::{Graph, Role};
use crate::kernels::draw::{Options, last_seen};
use crate::kernels::sample::MAX_VOCABULARY;
use crate::kernels::{FEW_TOKENS, SPLIT_KEYS, rope};
use crate::model::LayerDims;
use crate::model::config::MAX_CONTEXT;
use crate::model::openelm::{self, Logits, Sampling, Step, StepShape};
use crate::sampler::Sampler;
use crate::session::generate::{IN_FLIGHT, MAX_TOKENS_PER_SUBMIT};
use crate::session::load::Inner;
use crate::session::scores::{Scores, TokenScore};
use crate::tensor::{TensorDesc, TensorId};

/// Steps of many tokens that are kept before they are built anew; a full chunk and a rest are two.
const KEPT: usize = 4;

/// What a step is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    tokens: usize,
    logits: Logits,
    sampling: Option<Sampling>,
    scored: bool,
    splits: usize,
}

impl Key {
    /// A step of a prompt; all of its logits are wanted only to score tokens.
    fn prompt(tokens: usize, logits: Logits, splits: usize) -> Self {
        let sampling = (logits == Logits::Last).then_some(Sampling::Greedy);
        Self { tokens, logits, sampling, scored: logits == Logits::All, splits }
    }

    /// A step that decodes one token.
    fn decode(sampling: Sampling, splits: usize) -> Self {
        Self { tokens: 1, logits: Logits::Last, sampling: Some(sampling), scored: false, splits }
    }
}

/// Decode steps that were submitted together.
#[derive(Debug)]
pub(super) struct Block {
    /// Its tokens.
    pub(super) count: usize,
    readback: usize,
    submission: Submission,
}

/// State of a sequence on the device, with the steps built so far.
#[derive(Debug)]
pub(super) struct Steps {
    context: usize,
    ids: BufferRange,
    /// The id at each position, with the one that was chosen last behind them, `[S + 1]`.
    history: BufferRange,
    position: BufferRange,
    options: BufferRange,
    last_seen: BufferRange,
    /// What verified rows choose, `[8]`.
    drawn: BufferRange,
    rope: BufferRange,
    caches: Vec<[BufferRange; 2]>,
    last_logits: BufferRange,
    all_logits: Option<BufferRange>,
    scores: Option<Scores>,
    /// Scores the token that was chosen last by the last logits.
    scoring: Option<Executor>,
    built: HashMap<Key, Executor>,
    /// Where blocks of ids are read back, in turn; the last one holds the token that a prompt's step chose.
    readbacks: Vec<Readback>,
    turn: usize,
    drawing: Option<Executor>,
    chosen: Option<Submission>,
    /// The position that the device's buffer holds, where it is known.
    device_position: Option<usize>,
}

impl Steps {
    /// Allocates the state of a sequence of at most `context` tokens and builds the decode step.
    pub(super) fn new(model: &Inner, context: usize) -> Result<Self> {
        let (gpu, config) = (&model.gpu, &model.config);
        check_context(context)?;
        let (caches, rope) = (caches(model, 1, context)?, rope(model, context)?);
        let mut steps = Self {
            context,
            ids: gpu.storage("ids", model.chunk.max(FEW_TOKENS) as u64 * 4)?,
            history: gpu.storage("history", (context as u64 + 1) * 4)?,
            position: gpu.storage("position", 4)?,
            options: gpu.storage("options", 4 * Options::WORDS as u64)?,
            last_seen: gpu.storage("last_seen", config.vocab_size as u64 * 4)?,
            drawn: gpu.storage("drawn", FEW_TOKENS as u64 * 4)?,
            rope,
            caches,
            last_logits: gpu.storage("logits", config.vocab_size as u64 * 4)?,
            all_logits: None,
            scores: None,
            scoring: None,
            built: HashMap::new(),
            readbacks: (0..=IN_FLIGHT)
                .map(|_| Readback::new(gpu, MAX_TOKENS_PER_SUBMIT as u64 * 4))
                .collect(),
            turn: 0,
            drawing: None,
            chosen: None,
            device_position: Some(0),
        };
        steps.build(model, Key::decode(Sampling::Greedy, 1))?;
        gpu.check()?;
        Ok(steps)
    }

    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// K and V of each layer.
    pub(super) fn caches(&self) -> &[[BufferRange; 2]] {
        &self.caches
    }

    /// The RoPE table.
    pub(super) fn rope(&self) -> &BufferRange {
        &self.rope
    }

    /// The logits of the last token, `[V]`.
    pub(super) fn last_logits(&self) -> &BufferRange {
        &self.last_logits
    }

    /// The logits of a step of `tokens` tokens, `[T, V]`.
    ///
    /// # Panics
    /// When no step that computes all of its logits was built yet.
    fn all_logits(&self, tokens: usize) -> BufferRange {
        let row = self.last_logits.bytes();
        self.all_logits.as_ref().expect("a step computed all logits").slice(0, row * tokens as u64)
    }

    /// Submits one step that appends `ids` at `position`. `ids` are not uploaded where they are
    /// `on_device` already. The argmax of the last logits, if they are computed, becomes the chosen token; where all are
    /// computed, `targets` are scored.
    pub(super) fn run(
        &mut self,
        model: &Inner,
        position: usize,
        ids: &[u32],
        on_device: bool,
        logits: Logits,
        targets: &[u32],
    ) -> Result<()> {
        let splits = model.splits_of(ids.len(), position);
        let (gpu, key) = (&model.gpu, Key::prompt(ids.len(), logits, splits));
        self.ensure(model, key)?;
        if !on_device {
            gpu.write(&self.ids, 0, bytemuck::cast_slice(ids));
        }
        if let Some(scores) = &self.scores {
            scores.aim(gpu, targets);
        }
        self.place(model, position);
        if logits == Logits::Last {
            let chosen = self.ids.slice(0, 4);
            self.chosen = Some(self.built[&key].run_and_copy(gpu, 1, &[&chosen], &self.readbacks[IN_FLIGHT]));
            self.device_position = Some(position + ids.len());
        } else {
            self.built[&key].run(gpu);
        }
        gpu.check()
    }

    /// Returns the token that the last step chose.
    pub(super) fn chosen(&self, model: &Inner) -> Result<u32> {
        let submission = self.chosen.as_ref().expect("a step that chooses has run");
        self.readbacks[IN_FLIGHT].map(&model.gpu, submission, 4, |bytes| words(bytes).sum())
    }

    /// Returns the scores of the rows of the step that ran last and computed all of its logits: of `targets`, one for
    /// each of its tokens or of all but the last; `None` where a logit is no number.
    pub(super) fn scores(
        &self,
        model: &Inner,
        tokens: usize,
        targets: &[u32],
    ) -> Result<Vec<Option<TokenScore>>> {
        let scores = self.scores.as_ref().expect("a step that scores has run");
        let [values, likeliest] = scores.ranges(tokens).map(|range| model.gpu.read(&range));
        let bytes = [values?, likeliest?].concat();
        let score = |(row, &target)| Scores::of_row(&bytes, tokens, row, target, 0);
        Ok(targets.iter().enumerate().map(score).collect())
    }

    /// Returns what is to be copied to a record, and where: the token that was chosen last, and behind it, where it is
    /// `scored`, what is read back of its scores. Does not wait.
    pub(super) fn record(
        &mut self,
        model: &Inner,
        scored: bool,
        record: &BufferRange,
    ) -> Result<Vec<(BufferRange, BufferRange)>> {
        let chosen = self.ids.slice(0, 4);
        let mut kept = vec![chosen.clone()];
        if scored {
            self.ensure_scores(model)?;
            let scores = self.scores.as_ref().expect("it was just allocated");
            if self.scoring.is_none() {
                let step = openelm::scoring(&model.config, &model.layout);
                let mut bound = Bound::of_step(model, &step, &[])?;
                scores.bind(&mut bound, &step, 1);
                bound.set(step.targets, vec![chosen]);
                step.logits.into_iter().for_each(|logits| bound.set(logits, vec![self.last_logits.clone()]));
                self.scoring = Some(bound.executor(model, &step)?);
            }
            if let Some(scoring) = &self.scoring {
                scoring.run(&model.gpu);
            }
            kept.extend(scores.ranges(1));
        }
        let mut at = 0;
        let place = |range: BufferRange| {
            let bytes = range.bytes();
            at += bytes;
            (range, record.slice(at - bytes, bytes))
        };
        Ok(kept.into_iter().map(place).collect())
    }

    fn ensure_scores(&mut self, model: &Inner) -> Result<()> {
        if self.scores.is_none() {
            self.scores = Some(Scores::new(&model.gpu, self.rows(model))?);
        }
        Ok(())
    }

    /// Most tokens of a step.
    fn rows(&self, model: &Inner) -> usize {
        model.chunk.max(FEW_TOKENS).min(self.context)
    }

    /// Draws a token from the last logits, which follow from `history`.
    pub(super) fn draw(&mut self, model: &Inner, history: &[u32], sampler: &Sampler) -> Result<()> {
        let (gpu, vocab) = (&model.gpu, model.config.vocab_size);
        check_vocabulary(model)?;
        if self.drawing.is_none() {
            let step = openelm::drawing(&model.config, &model.layout, self.context);
            let mut bound = Bound::of_step(model, &step, &[])?;
            self.bind_state(&mut bound, &step, 1);
            step.logits.into_iter().for_each(|logits| bound.set(logits, vec![self.last_logits.clone()]));
            self.drawing = Some(bound.executor(model, &step)?);
        }
        gpu.write(&self.options, 0, bytemuck::bytes_of(&sampler.options().packed()));
        gpu.write(&self.last_seen, 0, bytemuck::cast_slice(&last_seen(history, vocab)));
        self.place(model, history.len() - 1);
        if let Some(drawing) = &self.drawing {
            let chosen = self.ids.slice(0, 4);
            self.chosen = Some(drawing.run_and_copy(gpu, 1, &[&chosen], &self.readbacks[IN_FLIGHT]));
        }
        self.device_position = Some(history.len());
        gpu.check()
    }

    /// Notes where tokens that a verification chose stand, the first of them at `position`.
    pub(super) fn note_seen(&self, model: &Inner, position: usize, ids: impl Iterator<Item = u32>) {
        for (next, id) in (position as u32 + 1..).zip(ids) {
            model.gpu.write(&self.last_seen, u64::from(id) * 4, &next.to_le_bytes());
        }
    }

    /// Submits at most `count` steps from `position` on, each of which feeds on what the one before it chose.
    pub(super) fn decode(
        &mut self,
        model: &Inner,
        position: usize,
        count: usize,
        sampler: &Sampler,
    ) -> Result<Block> {
        // A block ends where the steps become others.
        let count = if position + 1 < SPLIT_KEYS { count.min(SPLIT_KEYS - 1 - position) } else { count };
        let splits = model.splits(position + 1);
        let (gpu, key) = (&model.gpu, Key::decode(sampling(sampler), splits));
        self.ensure(model, key)?;
        self.place(model, position);
        let (readback, ids) = (self.turn, self.history.slice((position as u64 + 1) * 4, count as u64 * 4));
        self.turn = (self.turn + 1) % IN_FLIGHT;
        let submission = self.built[&key].run_and_copy(gpu, count, &[&ids], &self.readbacks[readback]);
        self.device_position = Some(position + count);
        gpu.check()?;
        Ok(Block { count, readback, submission })
    }

    /// Submits one step of `ids` at `position` that chooses a token behind each of them.
    ///
    /// Rows are filled up to a power of two where the cache has room for them, so that few steps are built.
    pub(super) fn verify(
        &mut self,
        model: &Inner,
        position: usize,
        ids: &[u32],
        sampler: &Sampler,
    ) -> Result<Block> {
        let filled = ids.len().next_power_of_two();
        let tokens = if position + filled <= self.context { filled } else { ids.len() };
        let (logits, sampling) = (Logits::All, Some(sampling(sampler)));
        let splits = model.splits_of(tokens, position);
        let (gpu, key) = (&model.gpu, Key { tokens, logits, sampling, scored: false, splits });
        self.ensure(model, key)?;
        let mut rows = [ids[0]; FEW_TOKENS];
        rows[..ids.len()].copy_from_slice(ids);
        gpu.write(&self.ids, 0, bytemuck::cast_slice(&rows[..tokens]));
        self.place(model, position);
        let (readback, chosen) = (self.turn, self.drawn.slice(0, ids.len() as u64 * 4));
        let submission = self.built[&key].run_and_copy(gpu, 1, &[&chosen], &self.readbacks[readback]);
        gpu.check()?;
        Ok(Block { count: ids.len(), readback, submission })
    }

    /// Waits for a block and hands its ids to `take`.
    pub(super) fn ids<R>(
        &self,
        model: &Inner,
        block: &Block,
        take: impl FnOnce(&mut dyn Iterator<Item = u32>) -> R,
    ) -> Result<R> {
        let readback = &self.readbacks[block.readback];
        readback.map(&model.gpu, &block.submission, block.count as u64 * 4, |bytes| take(&mut words(bytes)))
    }

    /// Builds a step if it is not there.
    fn ensure(&mut self, model: &Inner, key: Key) -> Result<()> {
        if self.built.contains_key(&key) { Ok(()) } else { self.build(model, key) }
    }

    /// Brings the device to a position.
    fn place(&mut self, model: &Inner, position: usize) {
        if self.device_position != Some(position) {
            model.gpu.write(&self.position, 0, &(position as u32).to_le_bytes());
            self.device_position = Some(position);
        }
    }

    /// Runs one step that appends `ids` at `position` and returns when each of its dispatches ran.
    pub(super) fn spans(&mut self, model: &Inner, position: usize, ids: &[u32]) -> Result<Vec<Span>> {
        let splits = model.splits_of(ids.len(), position);
        let (gpu, key) = (&model.gpu, Key::prompt(ids.len(), Logits::Last, splits));
        self.ensure(model, key)?;
        // The clock may repeat the dispatch that advances the position.
        self.device_position = None;
        self.built[&key].spans(gpu, || {
            gpu.write(&self.ids, 0, bytemuck::cast_slice(ids));
            gpu.write(&self.position, 0, &(position as u32).to_le_bytes());
        })
    }

    /// Binds what outlives a step of `tokens` tokens, but for its caches and logits.
    fn bind_state(&self, bound: &mut Bound, step: &Step, tokens: usize) {
        let tokens = tokens as u64 * 4;
        for (tensor, range) in [
            (step.ids, self.ids.slice(0, tokens)),
            (step.history, self.history.clone()),
            (step.position, self.position.clone()),
            (step.options, self.options.clone()),
            (step.last_seen, self.last_seen.clone()),
            (step.drawn, self.drawn.slice(0, tokens.min(self.drawn.bytes()))),
            (step.rope, self.rope.clone()),
        ] {
            bound.set(tensor, vec![range]);
        }
    }

    /// Builds graph, plan, buffers and bind groups of a step.
    fn build(&mut self, model: &Inner, key: Key) -> Result<()> {
        let Key { tokens, logits, sampling, scored, splits } = key;
        if logits == Logits::All && self.all_logits.is_none() {
            let bytes = self.last_logits.bytes() * self.rows(model) as u64;
            self.all_logits = Some(model.gpu.storage("logits of a chunk", bytes)?);
        }
        if scored {
            self.ensure_scores(model)?;
        }
        let long = |key: &Key| key.tokens > FEW_TOKENS;
        if self.built.keys().filter(|key| long(key)).count() > KEPT {
            self.built.retain(|key, _| !long(key));
        }
        let shape = StepShape::greedy(tokens, self.context, model.kv.dtype());
        let step = model.step(StepShape { logits, sampling, scored, splits, ..shape });
        let mut bound = Bound::of_step(model, &step, &self.caches)?;
        self.bind_state(&mut bound, &step, tokens);
        if let Some(scores) = self.scores.as_ref().filter(|_| scored) {
            scores.bind(&mut bound, &step, tokens);
        }
        if let Some(tensor) = step.logits {
            let all = logits == Logits::All;
            bound.set(tensor, vec![if all { self.all_logits(tokens) } else { self.last_logits.clone() }]);
        }
        self.built.insert(key, bound.executor(model, &step)?);
        Ok(())
    }
}

/// Yields `least` and its doubles below `most`, and `most`.
pub(super) fn powers_of_two(least: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(least), |rows| Some(rows * 2))
        .take_while(move |&rows| rows < most)
        .chain([most])
}

/// Refuses a context that no sequence has.
pub(super) fn check_context(context: usize) -> Result<()> {
    if context == 0 || context as u64 > MAX_CONTEXT {
        return Err(Error::Input(format!("a context of {context} tokens is not within 1 to {MAX_CONTEXT}")));
    }
    Ok(())
}

/// Makes the RoPE table of a context.
pub(super) fn rope(model: &Inner, context: usize) -> Result<BufferRange> {
    let (gpu, config) = (&model.gpu, &model.config);
    let table = rope::table(context, config.head_dim, f64::from(config.rope_theta));
    let table: Vec<f32> = table.into_iter().map(|v| v as f32).collect();
    let rope = gpu.storage("rope", (context * config.head_dim * 4) as u64)?;
    gpu.write(&rope, 0, bytemuck::cast_slice(&table));
    Ok(rope)
}

/// Allocates K and V of each layer for `slots` sequences.
pub(super) fn caches(model: &Inner, slots: usize, context: usize) -> Result<Vec<[BufferRange; 2]>> {
    let cache = |(layer, dims): (usize, &LayerDims)| -> Result<_> {
        let bytes = model.kv.bytes(slots * dims.kv_heads * context, model.config.head_dim);
        let [k, v] =
            ["k", "v"].map(|name| model.gpu.storage(&format!("layer.{layer}/attn/cache.{name}"), bytes));
        Ok([k?, v?])
    };
    model.config.layers.iter().enumerate().map(cache).collect()
}

/// Refuses to draw from a vocabulary that is too large.
pub(super) fn check_vocabulary(model: &Inner) -> Result<()> {
    let vocab = model.config.vocab_size;
    if vocab > MAX_VOCABULARY {
        return Err(Error::Unsupported(format!(
            "a vocabulary of {vocab} tokens cannot be drawn from on the device: at most {MAX_VOCABULARY} can"
        )));
    }
    Ok(())
}

fn sampling(sampler: &Sampler) -> Sampling {
    if sampler.is_greedy() { Sampling::Greedy } else { Sampling::Random }
}

/// The ids in bytes that were read back.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}

/// The buffers of a graph's tensors.
pub(super) struct Bound(Vec<Vec<BufferRange>>);

impl Bound {
    /// Binds activations of its own, the weights of the model and the caches; state is still to be
    /// [`set`](Self::set).
    pub(super) fn of_step(model: &Inner, step: &Step, caches: &[[BufferRange; 2]]) -> Result<Self> {
        let mut bound = Self::activations(model, &step.graph, &plan::plan(&step.graph))?;
        for part in &step.weights {
            bound.set(part.tensor, model.weights[&(part.name.clone(), part.part)].clone());
        }
        for (tensors, buffers) in step.caches.iter().zip(caches) {
            tensors.iter().zip(buffers).for_each(|(&tensor, buffer)| bound.set(tensor, vec![buffer.clone()]));
        }
        Ok(bound)
    }

    /// Builds pipelines and bind groups of the step.
    pub(super) fn executor(&self, model: &Inner, step: &Step) -> Result<Executor> {
        let kernels = step.graph.ops().iter().map(|op| (op.label.as_str(), &*op.kernel));
        Executor::new(&model.gpu, kernels, self)
    }

    /// Allocates the slots of a plan and gives every activation its part of one.
    fn activations(model: &Inner, graph: &Graph, plan: &Plan) -> Result<Self> {
        let slot = |(index, &bytes): (usize, &u64)| model.gpu.storage(&format!("activation.{index}"), bytes);
        let slots = plan.slots.iter().enumerate().map(slot).collect::<Result<Vec<_>>>()?;
        let range = |(id, desc): (TensorId, &TensorDesc)| {
            let slot = plan.slot[id.0 as usize].filter(|_| graph.role(id) == Role::Activation);
            slot.map(|slot| slots[slot].slice(0, plan::bytes(desc))).into_iter().collect()
        };
        Ok(Self(graph.tensors().iter().map(range).collect()))
    }

    pub(super) fn set(&mut self, tensor: TensorId, ranges: Vec<BufferRange>) {
        self.0[tensor.0 as usize] = ranges;
    }
}

impl Bindings for Bound {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}
