//! The state of one sequence on the device: its buffers and the steps that run on them.

use crate::error::Result;
use crate::gpu::{BufferRange, Executor, Readback, Span, Submission};
use crate::kernels::draw::last_seen;
use crate::kernels::{FEW_TOKENS, SPLIT_KEYS};
use crate::model::openelm;
use crate::model::shape::{Logits, Sampling, StepShape};
use crate::sampler::Sampler;
use crate::session::buffers::{Drawing, Sizes, StepBuffers, check_context, check_vocabulary, rope_table};
use crate::session::built::Built;
use crate::session::logprobs::{ScoreBuffers, TokenScore};
use crate::session::model::Loaded;
use crate::session::ring::{InFlight, Ring, words};

/// Most tokens of one submission.
pub const MAX_TOKENS_PER_SUBMIT: usize = 32;

/// Most cached steps of many tokens: four of a full chunk (few or many keys, two choices of logits), and a last partial
/// one.
const KEPT: usize = 5;

/// Decode steps that were submitted together.
#[derive(Debug)]
pub(super) struct Block {
    /// Number of tokens.
    pub(super) count: usize,
    flight: InFlight,
}

/// A sequence on the device, with the steps built so far.
#[derive(Debug)]
pub(super) struct SequenceState {
    buffers: StepBuffers,
    built: Built,
    /// Draws a token from the last logits.
    drawing: Option<Executor>,
    /// Scores the newest token by the last logits.
    scoring: Option<Executor>,
    /// Read-backs of the ids of blocks.
    blocks: Ring,
    /// Read-back of the token that the last logits chose.
    chosen: Readback,
    choice: Option<Submission>,
    /// The position in the device's buffer, if known.
    device_position: Option<usize>,
}

impl SequenceState {
    /// Allocates the state of a sequence of at most `context` tokens and builds the decode step.
    pub(super) fn new(model: &Loaded, context: usize) -> Result<Self> {
        check_context(context)?;
        let rows = model.chunk.max(FEW_TOKENS).min(context);
        let rope = rope_table(model, context)?;
        let mut buffers = StepBuffers::new(model, Sizes { context, rows, slots: None }, rope)?;
        buffers.allocate_drawing(model)?;
        let mut built = Built::new(KEPT);
        built.step(model, model.shape(context, 0, 1), &buffers)?;
        model.gpu.check()?;
        Ok(Self {
            buffers,
            built,
            drawing: None,
            scoring: None,
            blocks: Ring::new(&model.gpu, MAX_TOKENS_PER_SUBMIT as u64 * 4),
            chosen: Readback::new(&model.gpu, 4),
            choice: None,
            device_position: Some(0),
        })
    }

    pub(super) fn context(&self) -> usize {
        self.buffers.sizes().context
    }

    /// K and V of each layer.
    pub(super) fn caches(&self) -> &[[BufferRange; 2]] {
        &self.buffers.caches
    }

    /// The RoPE table.
    pub(super) fn rope(&self) -> &BufferRange {
        &self.buffers.rope
    }

    /// The logits of the last token, `[V]`.
    pub(super) fn last_logits(&self) -> &BufferRange {
        self.buffers.last_logits.as_ref().expect("one sequence has them")
    }

    /// Submits one step that appends `ids` at `position`, and uploads them unless they are `on_device`. If only the
    /// last logits are computed, their argmax becomes the chosen token; if all are, `targets` are scored.
    pub(super) fn run(
        &mut self,
        model: &Loaded,
        position: usize,
        ids: &[u32],
        on_device: bool,
        logits: Logits,
        targets: &[u32],
    ) -> Result<()> {
        let gpu = &model.gpu;
        let sampling = (logits == Logits::Last).then_some(Sampling::Greedy);
        let scored = logits == Logits::All;
        let shape = model.shape(self.context(), position, ids.len());
        let shape = StepShape { logits, sampling, scored, ..shape };
        self.buffers.allocate(model, &shape)?;
        let executor = self.built.step(model, shape, &self.buffers)?;
        if !on_device {
            gpu.write(&self.buffers.ids, 0, bytemuck::cast_slice(ids));
        }
        if let Some(scores) = self.buffers.scores.as_ref().filter(|_| scored) {
            scores.aim(gpu, targets);
        }
        move_to(model, &self.buffers, &mut self.device_position, position);
        if logits == Logits::Last {
            let chosen = self.buffers.ids.slice(0, 4);
            self.choice = Some(executor.run_and_copy(gpu, 1, &[&chosen], &self.chosen));
            self.device_position = Some(position + ids.len());
        } else {
            executor.run(gpu);
        }
        gpu.check()
    }

    /// Returns the token that the last step chose.
    pub(super) fn chosen(&self, model: &Loaded) -> Result<u32> {
        let submission = self.choice.as_ref().expect("a step that chooses has run");
        self.chosen.map(&model.gpu, submission, 4, |bytes| words(bytes).sum())
    }

    /// Returns the scores of `targets` after a step that computed all logits: one for each of its `tokens` tokens, or
    /// for all but the last; `None` where a logit is not finite.
    pub(super) fn scores(
        &self,
        model: &Loaded,
        tokens: usize,
        targets: &[u32],
    ) -> Result<Vec<Option<TokenScore>>> {
        let scores = self.buffers.scores.as_ref().expect("a step that scores has run");
        let [values, likeliest] = scores.ranges(tokens).map(|range| model.gpu.read(&range));
        let bytes = [values?, likeliest?].concat();
        let score = |(row, &target)| ScoreBuffers::of_row(&bytes, tokens, row, target, 0);
        Ok(targets.iter().enumerate().map(score).collect())
    }

    /// Returns the copies that fill a record: the newest token and, if `scored`, its score. Does not wait.
    pub(super) fn record(
        &mut self,
        model: &Loaded,
        scored: bool,
        record: &BufferRange,
    ) -> Result<Vec<(BufferRange, BufferRange)>> {
        let chosen = self.buffers.ids.slice(0, 4);
        let mut kept = vec![chosen.clone()];
        if scored {
            self.buffers.allocate_scores(model)?;
            if self.scoring.is_none() {
                let step = openelm::scoring(&model.config, &model.layout);
                let mut bound = self.buffers.bind(model, &step, Logits::Last)?;
                bound.set(&step, step.targets, &chosen);
                self.scoring = Some(bound.executor(model, &step)?);
            }
            if let Some(scoring) = &self.scoring {
                scoring.run(&model.gpu);
            }
            kept.extend(self.buffers.scores.iter().flat_map(|scores| scores.ranges(1)));
        }
        let mut at = 0;
        let copied = |range: BufferRange| {
            let bytes = range.bytes();
            at += bytes;
            (range, record.slice(at - bytes, bytes))
        };
        Ok(kept.into_iter().map(copied).collect())
    }

    /// Draws a token from the last logits, which are those after `history`.
    pub(super) fn draw(&mut self, model: &Loaded, history: &[u32], sampler: &Sampler) -> Result<()> {
        let (gpu, vocab) = (&model.gpu, model.config.vocab_size);
        check_vocabulary(model)?;
        if self.drawing.is_none() {
            let step = openelm::drawing(&model.config, &model.layout, self.context());
            self.drawing = Some(self.buffers.bind(model, &step, Logits::Last)?.executor(model, &step)?);
        }
        if let Some(Drawing { options, last_seen: seen }) = &self.buffers.drawing {
            gpu.write(options, 0, bytemuck::bytes_of(&sampler.options().packed()));
            gpu.write(seen, 0, bytemuck::cast_slice(&last_seen(history, vocab)));
        }
        move_to(model, &self.buffers, &mut self.device_position, history.len() - 1);
        if let Some(drawing) = &self.drawing {
            let chosen = self.buffers.ids.slice(0, 4);
            self.choice = Some(drawing.run_and_copy(gpu, 1, &[&chosen], &self.chosen));
        }
        self.device_position = Some(history.len());
        gpu.check()
    }

    /// Records the positions of tokens that a verification chose, the first of them at `position`.
    pub(super) fn note_seen(&self, model: &Loaded, position: usize, ids: impl Iterator<Item = u32>) {
        let Some(drawing) = &self.buffers.drawing else { return };
        for (next, id) in (position as u32 + 1..).zip(ids) {
            model.gpu.write(&drawing.last_seen, u64::from(id) * 4, &next.to_le_bytes());
        }
    }

    /// Submits at most `count` steps from `position` on; each takes the token that the one before it chose.
    pub(super) fn decode(
        &mut self,
        model: &Loaded,
        position: usize,
        count: usize,
        sampler: &Sampler,
    ) -> Result<Block> {
        // A block ends where splitting of the keys begins: later steps have another shape.
        let count = if position + 1 < SPLIT_KEYS { count.min(SPLIT_KEYS - 1 - position) } else { count };
        let shape = model.shape(self.context(), position, 1);
        let shape = StepShape { sampling: Some(sampling(sampler)), ..shape };
        let executor = self.built.step(model, shape, &self.buffers)?;
        move_to(model, &self.buffers, &mut self.device_position, position);
        let history = self.buffers.history.as_ref().expect("one sequence has it");
        let ids = history.slice((position as u64 + 1) * 4, count as u64 * 4);
        let flight = self.blocks.run(&model.gpu, executor, count, &[&ids]);
        self.device_position = Some(position + count);
        model.gpu.check()?;
        Ok(Block { count, flight })
    }

    /// Submits one step of `ids` at `position` that chooses a token after each of them.
    ///
    /// Rows are padded to a power of two if the cache has room, so that few steps are built.
    pub(super) fn verify(
        &mut self,
        model: &Loaded,
        position: usize,
        ids: &[u32],
        sampler: &Sampler,
    ) -> Result<Block> {
        let filled = ids.len().next_power_of_two();
        let tokens = if position + filled <= self.context() { filled } else { ids.len() };
        let shape = model.shape(self.context(), position, tokens);
        let shape = StepShape { logits: Logits::All, sampling: Some(sampling(sampler)), ..shape };
        self.buffers.allocate(model, &shape)?;
        let executor = self.built.step(model, shape, &self.buffers)?;
        let mut rows = [ids[0]; FEW_TOKENS];
        rows[..ids.len()].copy_from_slice(ids);
        model.gpu.write(&self.buffers.ids, 0, bytemuck::cast_slice(&rows[..tokens]));
        move_to(model, &self.buffers, &mut self.device_position, position);
        let drawn = self.buffers.drawn.as_ref().expect("it was just allocated");
        let chosen = drawn.slice(0, ids.len() as u64 * 4);
        let flight = self.blocks.run(&model.gpu, executor, 1, &[&chosen]);
        model.gpu.check()?;
        Ok(Block { count: ids.len(), flight })
    }

    /// Waits for a block and passes its ids to `take`.
    pub(super) fn ids<R>(
        &self,
        model: &Loaded,
        block: &Block,
        take: impl FnOnce(&mut dyn Iterator<Item = u32>) -> R,
    ) -> Result<R> {
        let bytes = block.count as u64 * 4;
        self.blocks.read(&model.gpu, &block.flight, bytes, |bytes| take(&mut words(bytes)))
    }

    /// Runs one step that appends `ids` at `position` and returns when each of its dispatches ran.
    pub(super) fn spans(&mut self, model: &Loaded, position: usize, ids: &[u32]) -> Result<Vec<Span>> {
        let (gpu, shape) = (&model.gpu, model.shape(self.context(), position, ids.len()));
        // The clock may repeat the dispatch that advances the position.
        self.device_position = None;
        self.built.step(model, shape, &self.buffers)?.spans(gpu, || {
            gpu.write(&self.buffers.ids, 0, bytemuck::cast_slice(ids));
            gpu.write(&self.buffers.position, 0, &(position as u32).to_le_bytes());
        })
    }
}

/// Writes a position to the device, unless the device holds it.
fn move_to(model: &Loaded, buffers: &StepBuffers, held: &mut Option<usize>, position: usize) {
    if *held != Some(position) {
        model.gpu.write(&buffers.position, 0, &(position as u32).to_le_bytes());
        *held = Some(position);
    }
}

fn sampling(sampler: &Sampler) -> Sampling {
    if sampler.is_greedy() { Sampling::Greedy } else { Sampling::Random }
}
