//! Log-likelihoods of many sequences: a step takes rows of several, so that each weight is read once per full chunk.
//!
//! Products use tiles for any number of rows, and attention goes row by row. So a score depends only on the tokens
//! before it, bit for bit, and not on what else is in its step.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::model::shape::{Logits, StepShape};
use crate::session::buffers::{Sizes, StepBuffers, check_context, rope_table};
use crate::session::built::{Built, powers_of_two};
use crate::session::logprobs::{MAX_TOP, ScoreBuffers, TokenScore};
use crate::session::model::{Loaded, Model};
use crate::session::packing::{LEAST_ROWS, Packing, Row, Scoring, Slots, filled};
use crate::session::ring::{IN_FLIGHT, InFlight, Ring};

/// Most sequences per step.
const MAX_SLOTS: usize = 64;
/// Most cached steps; see [`Built`].
const KEPT: usize = 16;

/// Scores sequences; see [`Model::scorer`].
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::{LoadOptions, Model, Scoring};
///
/// let model = Model::load("demo", LoadOptions::default())?;
/// let mut scorer = model.scorer(16, None)?;
/// let scores = scorer.score(&[Scoring { tokens: vec![1, 51, 87, 40], from: 2, top: 0 }])?;
/// let sum: f32 = scores[0].iter().map(|score| score.logprob).sum();
/// println!("ln p(87, 40 | 1, 51) = {sum}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Scorer {
    model: Arc<Loaded>,
    /// One more slot than sequences: padding rows use the last.
    buffers: StepBuffers,
    built: Built,
    copies: Ring,
    slots: Slots,
}

/// A step in flight.
#[derive(Debug)]
struct Flight {
    copy: InFlight,
    /// Rows with logits, the last ones of the step.
    logits: usize,
    /// Rows with scores, the last of those with logits.
    rows: Vec<Row>,
}

impl Model {
    /// Returns a scorer that takes at most `slots` sequences into a step. A sequence has at most `context` + 1 tokens,
    /// because the last is only scored; without a number, `context` is what the model was trained for.
    ///
    /// # Errors
    /// When `slots` is not within 1 to 64, `context` not within 1 to 2^20, or the device lacks memory or the largest
    /// binding for the caches of `slots` sequences and one more.
    pub fn scorer(&self, slots: usize, context: Option<usize>) -> Result<Scorer> {
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(Error::Input(format!("{slots} sequences of a step are not within 1 to {MAX_SLOTS}")));
        }
        Scorer::new(Arc::clone(self.loaded()), slots, context.unwrap_or(self.config().max_context_length))
    }
}

impl Scorer {
    fn new(model: Arc<Loaded>, slots: usize, context: usize) -> Result<Self> {
        check_context(context)?;
        let rope = rope_table(&model, context)?;
        let sizes = Sizes { context, rows: model.chunk, slots: Some(slots + 1) };
        let mut scorer = Self {
            buffers: StepBuffers::new(&model, sizes, rope)?,
            built: Built::new(KEPT),
            copies: Ring::new(&model.gpu, model.chunk as u64 * ScoreBuffers::ROW_BYTES),
            slots: Slots::new(slots, context, model.chunk),
            model,
        };
        scorer.buffers.allocate(&scorer.model, &scorer.shape(1, 1, 1))?;
        Ok(scorer)
    }

    /// Returns the shape of a step of `rows` rows with at most `keys` keys each; the last `logits` rows get logits.
    fn shape(&self, rows: usize, logits: usize, keys: usize) -> StepShape {
        let shape = StepShape {
            logits: Logits::Rows(logits),
            sampling: None,
            scored: true,
            batch: Some(self.slots.len() + 1),
            packed: true,
            ..StepShape::greedy(rows, self.context(), self.model.kv.dtype())
        };
        self.model.paths.apply(shape, keys)
    }

    /// Builds steps of every number of rows, with few keys and with many, and runs each once on padding rows, so that
    /// no sequence waits for the driver to compile. Steps with fewer logits than rows need no other pipelines.
    ///
    /// This takes at most a few seconds if the driver has cached the pipelines, and a minute on a software adapter if
    /// not.
    ///
    /// # Errors
    /// When the device lacks memory or fails.
    pub fn prepare(&mut self) -> Result<()> {
        let most = self.model.chunk;
        self.write_rows(&vec![0; most], &vec![self.idle(); most], &vec![0; most]);
        for rows in powers_of_two(LEAST_ROWS.min(most), most) {
            for keys in self.model.paths.key_counts(self.context()) {
                let shape = self.shape(rows, rows, keys);
                self.built.step(&self.model, shape, &self.buffers)?.run(&self.model.gpu);
            }
        }
        self.model.gpu.wait()?;
        self.model.gpu.save_pipelines();
        Ok(())
    }

    /// Position and slot of a padding row: the start of a slot that nothing reads.
    fn idle(&self) -> [u32; 2] {
        [0, self.slots.len() as u32]
    }

    /// Writes the token, position and slot of each row, and the targets of rows with logits.
    fn write_rows(&self, ids: &[u32], positions: &[[u32; 2]], targets: &[u32]) {
        let gpu = &self.model.gpu;
        gpu.write(&self.buffers.ids, 0, bytemuck::cast_slice(ids));
        gpu.write(&self.buffers.position, 0, bytemuck::cast_slice(positions));
        if let Some(scores) = &self.buffers.scores {
            scores.aim(gpu, targets);
        }
    }

    /// Returns the most tokens of a sequence, not counting the last.
    pub fn context(&self) -> usize {
        self.buffers.sizes().context
    }

    /// Returns for each sequence the scores of its tokens from `from` on, each given all tokens before it.
    ///
    /// # Errors
    /// When a sequence has fewer than two tokens or too many, an id outside the vocabulary, nothing to score, or
    /// requests too many likeliest tokens: then nothing is scored. When logits are not finite or the device fails.
    pub fn score(&mut self, requests: &[Scoring]) -> Result<Vec<Vec<TokenScore>>> {
        requests.iter().enumerate().try_for_each(|(index, request)| self.check(index, request))?;
        let scored = self.run(requests);
        if scored.is_err() {
            // The content of the cache is unknown.
            self.slots.clear();
        }
        scored
    }

    fn run(&mut self, requests: &[Scoring]) -> Result<Vec<Vec<TokenScore>>> {
        let mut scores: Vec<Vec<TokenScore>> =
            requests.iter().map(|request| Vec::with_capacity(request.tokens.len() - request.from)).collect();
        let mut packing = Packing::new(requests);
        let mut flights = VecDeque::with_capacity(IN_FLIGHT);
        loop {
            let rows = self.slots.next_rows(&mut packing);
            let done = rows.is_empty();
            if !done {
                flights.push_back(self.submit(requests, rows)?);
            }
            if flights.len() == IN_FLIGHT || done {
                let Some(flight) = flights.pop_front() else { return Ok(scores) };
                self.receive(requests, &flight, &mut scores)?;
            }
        }
    }

    /// Submits a step.
    fn submit(&mut self, requests: &[Scoring], mut rows: Vec<Row>) -> Result<Flight> {
        let is_scored = |row: &Row| row.position + 1 >= requests[row.request].from;
        // Rows with scores come last; the order of rows does not change results.
        rows.sort_by_key(is_scored);
        let scored = rows.iter().filter(|row| is_scored(row)).count();
        let total = filled(rows.len(), self.model.chunk);
        let keys = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        // A step without logits would end with other kernels, whose keys may differ in their last bits.
        let logits = filled(scored, total);

        let idle = total - rows.len();
        let (mut ids, mut positions) = (vec![0; idle], vec![self.idle(); idle]);
        ids.extend(rows.iter().map(|row| requests[row.request].tokens[row.position]));
        positions.extend(rows.iter().map(|row| [row.position as u32, row.slot as u32]));
        let target = |row: &Row| requests[row.request].tokens[row.position + 1];
        let targets: Vec<u32> =
            std::iter::repeat_n(0, idle).chain(rows.iter().map(target)).skip(total - logits).collect();
        self.write_rows(&ids, &positions, &targets);
        let shape = self.shape(total, logits, keys);
        let executor = self.built.step(&self.model, shape, &self.buffers)?;
        let scores = self.buffers.scores.as_ref().expect("a scorer has them");
        let [values, likeliest] = scores.ranges(logits);
        let copy = self.copies.run(&self.model.gpu, executor, 1, &[&values, &likeliest]);
        self.model.gpu.check()?;
        Ok(Flight { copy, logits, rows: rows.split_off(rows.len() - scored) })
    }

    /// Waits for a step and adds its scores.
    fn receive(&self, requests: &[Scoring], flight: &Flight, scores: &mut [Vec<TokenScore>]) -> Result<()> {
        let Flight { copy, logits, rows } = flight;
        if rows.is_empty() {
            return Ok(());
        }
        let bytes = *logits as u64 * ScoreBuffers::ROW_BYTES;
        self.copies.read(&self.model.gpu, copy, bytes, |bytes| {
            for (row, of) in (logits - rows.len()..).zip(rows) {
                let Scoring { tokens, top, .. } = &requests[of.request];
                let target = tokens[of.position + 1];
                let score = ScoreBuffers::of_row(bytes, *logits, row, target, *top).ok_or_else(|| {
                    let (position, request) = (of.position + 1, of.request);
                    Error::Model(format!(
                        "the logits at position {position} of sequence {request} are not finite numbers"
                    ))
                })?;
                scores[of.request].push(score);
            }
            Ok(())
        })?
    }

    /// Rejects a sequence that cannot be scored.
    fn check(&self, index: usize, request: &Scoring) -> Result<()> {
        let Scoring { tokens, from, top } = request;
        let (count, vocab) = (tokens.len(), self.model.config.vocab_size);
        let refuse = |why: String| Err(Error::Input(format!("sequence {index} {why}")));
        if count < 2 || !(1..count).contains(from) {
            return refuse(format!(
                "has {count} tokens and is to be scored from token {from}: nothing comes before"
            ));
        }
        let context = self.context();
        if count - 1 > context {
            let most = context + 1;
            return refuse(format!("has {count} tokens: a context of {context} scores at most {most}"));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!("has token id {id}, which is outside the vocabulary of {vocab}"));
        }
        if *top > MAX_TOP {
            return refuse(format!("requests the {top} likeliest tokens: the most is {MAX_TOP}"));
        }
        Ok(())
    }
}
