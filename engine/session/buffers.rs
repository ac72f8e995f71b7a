//! The buffers that the steps of a sequence, a batch or a scorer work on.

use crate::error::{Error, Result};
use crate::gpu::BufferRange;
use crate::kernels::draw::Options;
use crate::kernels::rope;
use crate::kernels::sample::MAX_VOCABULARY;
use crate::model::LayerDims;
use crate::model::config::MAX_CONTEXT;
use crate::model::openelm::StepGraph;
use crate::model::shape::{Logits, Sampling, StepShape};
use crate::session::bound::Bound;
use crate::session::logprobs::ScoreBuffers;
use crate::session::model::Loaded;

/// The sizes that determine the buffers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// Capacity of a sequence's KV cache in tokens, `S`.
    pub(super) context: usize,
    /// Most tokens of a step, `T`.
    pub(super) rows: usize,
    /// Slots of the KV cache for a batch; `None` for one sequence.
    pub(super) slots: Option<usize>,
}

/// The buffers that outlive a step. [`allocate`](Self::allocate) adds those that only some steps need.
#[derive(Debug)]
pub(super) struct StepBuffers {
    sizes: Sizes,
    /// K and V of each layer, `[Hkv, S, Dh]`, with slots `[slots, Hkv, S, Dh]`.
    pub(super) caches: Vec<[BufferRange; 2]>,
    /// RoPE table, `[S, Dh]`.
    pub(super) rope: BufferRange,
    /// Token of each row, `[T]`.
    pub(super) ids: BufferRange,
    /// Position of the first row, `[1]`; with slots the position and slot of each row, `[T, 2]`.
    pub(super) position: BufferRange,
    /// One sequence only: the id at each position, then the id chosen last, `[S + 1]`.
    pub(super) history: Option<BufferRange>,
    /// One sequence only: the logits of its last row, `[V]`.
    pub(super) last_logits: Option<BufferRange>,
    /// The logits of every row, `[T, V]`.
    logits: Option<BufferRange>,
    /// The token chosen for each row, `[T]`.
    pub(super) drawn: Option<BufferRange>,
    pub(super) drawing: Option<Drawing>,
    pub(super) scores: Option<ScoreBuffers>,
}

/// The buffers needed to draw tokens.
#[derive(Debug)]
pub(super) struct Drawing {
    /// Sampling options of the sequence, `[16]`; with slots those of each row, `[T, 16]`.
    pub(super) options: BufferRange,
    /// 1 + the newest position of each id, `[V]`; with slots `[slots, V]`.
    pub(super) last_seen: BufferRange,
}

impl StepBuffers {
    /// Allocates the buffers that every step needs. `rope` is the table of [`rope_table`] for the same context.
    pub(super) fn new(model: &Loaded, sizes: Sizes, rope: BufferRange) -> Result<Self> {
        let Sizes { context, rows, slots } = sizes;
        let storage = |name: &str, words: usize| model.gpu.storage(name, words as u64 * 4);
        let sequence = |name: &str, words: usize| slots.is_none().then(|| storage(name, words)).transpose();
        Ok(Self {
            sizes,
            caches: caches(model, slots.unwrap_or(1), context)?,
            rope,
            ids: storage("ids", rows)?,
            position: storage("position", if slots.is_some() { 2 * rows } else { 1 })?,
            history: sequence("history", context + 1)?,
            last_logits: sequence("logits", model.config.vocab_size)?,
            logits: None,
            drawn: None,
            drawing: None,
            scores: None,
        })
    }

    pub(super) fn sizes(&self) -> Sizes {
        self.sizes
    }

    /// Allocates what a step of this shape needs in addition, if missing.
    pub(super) fn allocate(&mut self, model: &Loaded, shape: &StepShape) -> Result<()> {
        let (rows, vocabulary) = (self.sizes.rows, model.config.vocab_size);
        let every_row = matches!(shape.logits, Logits::Rows(_) | Logits::All);
        if every_row && self.logits.is_none() {
            self.logits = Some(model.gpu.storage("logits of every row", (rows * vocabulary) as u64 * 4)?);
        }
        if every_row && shape.sampling.is_some() && self.drawn.is_none() {
            self.drawn = Some(model.gpu.storage("drawn", rows as u64 * 4)?);
        }
        if shape.sampling == Some(Sampling::Random) {
            self.allocate_drawing(model)?;
        }
        if shape.scored {
            self.allocate_scores(model)?;
        }
        Ok(())
    }

    /// Allocates the buffers needed to draw tokens, if missing.
    pub(super) fn allocate_drawing(&mut self, model: &Loaded) -> Result<()> {
        if self.drawing.is_none() {
            let Sizes { rows, slots, .. } = self.sizes;
            let options = slots.map_or(1, |_| rows) * Options::WORDS;
            let seen = slots.unwrap_or(1) * model.config.vocab_size;
            self.drawing = Some(Drawing {
                options: model.gpu.storage("options", options as u64 * 4)?,
                last_seen: model.gpu.storage("last_seen", seen as u64 * 4)?,
            });
        }
        Ok(())
    }

    /// Allocates the buffers needed to score tokens, if missing.
    pub(super) fn allocate_scores(&mut self, model: &Loaded) -> Result<()> {
        if self.scores.is_none() {
            self.scores = Some(ScoreBuffers::new(&model.gpu, self.sizes.rows)?);
        }
        Ok(())
    }

    /// Allocates a step's activations and binds everything that it reads or writes.
    pub(super) fn bind(&self, model: &Loaded, step: &StepGraph, logits: Logits) -> Result<Bound> {
        let mut bound = Bound::new(model, step)?;
        let state = [
            (step.ids, Some(&self.ids)),
            (step.position, Some(&self.position)),
            (step.rope, Some(&self.rope)),
            (step.history, self.history.as_ref()),
            (step.drawn, self.drawn.as_ref()),
            (step.options, self.drawing.as_ref().map(|drawing| &drawing.options)),
            (step.last_seen, self.drawing.as_ref().map(|drawing| &drawing.last_seen)),
            (step.targets, self.scores.as_ref().map(|scores| &scores.targets)),
            (step.scores, self.scores.as_ref().map(|scores| &scores.values)),
            (step.likeliest, self.scores.as_ref().map(|scores| &scores.likeliest)),
        ];
        let rows = if logits == Logits::Last { &self.last_logits } else { &self.logits };
        let caches = step.caches.iter().flatten().zip(self.caches.iter().flatten());
        let bindings = state.into_iter().filter_map(|(tensor, range)| Some((tensor, range?)));
        for (tensor, range) in bindings
            .chain(step.logits.zip(rows.as_ref()))
            .chain(caches.map(|(&tensor, range)| (tensor, range)))
        {
            bound.set(step, tensor, range);
        }
        Ok(bound)
    }
}

/// Rejects a context outside 1 to [`MAX_CONTEXT`].
pub(super) fn check_context(context: usize) -> Result<()> {
    if context == 0 || context as u64 > MAX_CONTEXT {
        return Err(Error::Input(format!("a context of {context} tokens is not within 1 to {MAX_CONTEXT}")));
    }
    Ok(())
}

/// Rejects a vocabulary too large to be drawn from on the device.
pub(super) fn check_vocabulary(model: &Loaded) -> Result<()> {
    let vocab = model.config.vocab_size;
    if vocab > MAX_VOCABULARY {
        return Err(Error::Unsupported(format!(
            "a vocabulary of {vocab} tokens cannot be drawn from on the device: at most {MAX_VOCABULARY} can"
        )));
    }
    Ok(())
}

/// Computes the RoPE table of a context, `[S, Dh]`.
pub(super) fn rope_table(model: &Loaded, context: usize) -> Result<BufferRange> {
    let (gpu, config) = (&model.gpu, &model.config);
    let table = rope::table(context, config.head_dim, f64::from(config.rope_theta));
    let table: Vec<f32> = table.into_iter().map(|v| v as f32).collect();
    let rope = gpu.storage("rope", (context * config.head_dim * 4) as u64)?;
    gpu.write(&rope, 0, bytemuck::cast_slice(&table));
    Ok(rope)
}

/// Allocates K and V of each layer for `slots` sequences.
fn caches(model: &Loaded, slots: usize, context: usize) -> Result<Vec<[BufferRange; 2]>> {
    let cache = |(layer, dims): (usize, &LayerDims)| -> Result<_> {
        let bytes = model.kv.bytes(slots * dims.kv_heads * context, model.config.head_dim);
        let [k, v] =
            ["k", "v"].map(|name| model.gpu.storage(&format!("layer.{layer}/attn/cache.{name}"), bytes));
        Ok([k?, v?])
    };
    model.config.layers.iter().enumerate().map(cache).collect()
}
