//! Many sequences that decode together: a step takes one token of each and reads every weight once for all.
//!
//! A row of a step computes what a step of its own would, bit for bit, so a sequence does not depend on which
//! others it shares steps with. (On an adapter whose subgroups have several sizes a driver may choose one for each
//! pipeline, and the last bits of a sum with it.)

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use cpu_time::ThreadTime;

use crate::error::{Error, Result};
use crate::gpu::{BufferRange, Executor, Readback, Submission};
use crate::kernels::draw::{Options, last_seen};
use crate::kernels::{MOST_TOKENS, token};
use crate::model::openelm::{Logits, Sampling, StepShape};
use crate::sampler::Sampler;
use crate::session::Session;
use crate::session::load::{Inner, Model};
use crate::session::prompts::{First, Prompt, Prompts};
use crate::session::scores::{MAX_TOP, Scores, TokenScore};
use crate::session::step::{self, Bound};

/// Identity of a sequence in a [`BatchSession`]; never used again when the sequence has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// How the tokens of a sequence are chosen, and what is told of them. By default the likeliest, and nothing.
#[derive(Clone, Debug)]
pub struct SequenceOptions {
    /// Chooses the tokens: the same ones as [`Session::generate`] with this sampler.
    pub sampler: Sampler,
    /// Scores every token, and tells as many of the likeliest beside it, at most [`MAX_TOP`].
    pub logprobs: Option<usize>,
}

impl Default for SequenceOptions {
    fn default() -> Self {
        Self { sampler: Sampler::greedy(), logprobs: None }
    }
}

/// A token of a sequence.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decoded {
    /// The sequence.
    pub sequence: SequenceId,
    /// Its next token.
    pub token: u32,
    /// What the model says of the token, where the sequence asks for it.
    pub logprob: Option<TokenScore>,
}

/// Sequences that decode together. They join and leave between steps.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::session::SequenceOptions;
///
/// let model = samara::Model::load("demo", samara::LoadOptions::default())?;
/// let mut batch = model.batch(8, None)?;
/// let fox = batch.join(&[1, 51, 87], SequenceOptions::default())?;
/// batch.join(&[1, 40, 41], SequenceOptions::default())?;
/// for _ in 0..16 {
///     for decoded in batch.step()? {
///         println!("{}: {}", decoded.sequence, decoded.token);
///     }
/// }
/// batch.leave(fox)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BatchSession {
    model: Arc<Inner>,
    capacity: usize,
    /// K and V of each layer, `[capacity + 1, Hkv, S, Dh]`; the last slot is for rows without a sequence.
    caches: Vec<[BufferRange; 2]>,
    ids: BufferRange,
    /// Position and slot of each row.
    places: BufferRange,
    logits: BufferRange,
    /// What each row chose.
    drawn: BufferRange,
    drawing: Option<Drawing>,
    scores: Option<Scores>,
    built: HashMap<Key, Executor>,
    readback: Readback,
    /// Those that are not read yet.
    prompts: Prompts,
    sequences: Vec<Sequence>,
    joined: u64,
    flight: Option<Flight>,
    host_time: Duration,
    /// What the last step yielded.
    decoded: Vec<Decoded>,
}

/// What a step is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    /// Workgroups that share keys.
    splits: usize,
    sampling: Sampling,
    scored: bool,
}

/// A step that is under way.
#[derive(Debug)]
struct Flight {
    submission: Submission,
    key: Key,
}

/// What is needed to draw tokens.
#[derive(Debug)]
struct Drawing {
    /// Those of each row, `[R, 16]`.
    options: BufferRange,
    /// Of each slot, `[capacity + 1, V]`.
    last_seen: BufferRange,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    slot: usize,
    /// How its tokens are drawn; `None` takes the likeliest.
    draw: Option<Options>,
    logprobs: Option<usize>,
    /// Tokens cached.
    position: usize,
    /// The token chosen last, which is not cached.
    last: u32,
    score: Option<TokenScore>,
    /// Its row of the step that is under way.
    row: Option<usize>,
}

impl Model {
    /// Starts a batch of at most `capacity` sequences of at most `context` tokens each; without a number, as many
    /// as the model was trained for.
    ///
    /// # Errors
    /// When `capacity` is not within 1 to 64, `context` not within 1 to 2^20, or the device lacks memory or the largest
    /// binding for the caches: those of `capacity` sequences and two more, one to read prompts and one for rows without
    /// a sequence.
    pub fn batch(&self, capacity: usize, context: Option<usize>) -> Result<BatchSession> {
        if !(1..=MOST_TOKENS).contains(&capacity) {
            return Err(Error::Input(format!(
                "a batch of {capacity} sequences is not within 1 to {MOST_TOKENS}"
            )));
        }
        BatchSession::new(self, capacity, self.session(context)?)
    }
}

impl BatchSession {
    fn new(model: &Model, capacity: usize, reader: Session) -> Result<Self> {
        let inner = model.shared();
        let (gpu, config) = (&inner.gpu, &inner.config);
        let rows = capacity.next_power_of_two() as u64;
        Ok(Self {
            caches: step::caches(&inner, capacity + 1, reader.context())?,
            ids: gpu.storage("ids of a batch", rows * 4)?,
            places: gpu.storage("places of a batch", rows * 8)?,
            logits: gpu.storage("logits of a batch", rows * config.vocab_size as u64 * 4)?,
            drawn: gpu.storage("drawn by a batch", rows * 4)?,
            drawing: None,
            scores: None,
            readback: Readback::new(gpu, rows * (4 + Scores::ROW_BYTES)),
            built: HashMap::new(),
            prompts: Prompts::new(&inner, reader, capacity)?,
            sequences: Vec::with_capacity(capacity),
            joined: 0,
            flight: None,
            host_time: Duration::ZERO,
            decoded: Vec::with_capacity(capacity),
            model: inner,
            capacity,
        })
    }

    /// Builds the steps that sequences need, and runs each once on rows of none, so that none waits later for the driver to
    /// compile: of every power of two of rows up to the capacity, with few keys and with many, greedy and drawn (where the
    /// vocabulary can be drawn from), with logprobs and without; and of prompts those of every power of two of tokens up
    /// to a chunk. Prompts of other lengths need no other pipelines.
    ///
    /// That takes some seconds at most where the driver has kept what it compiled, on a software adapter without it a minute.
    ///
    /// # Errors
    /// When there are sequences already, or the device lacks memory or fails.
    pub fn prepare(&mut self) -> Result<()> {
        if !self.is_empty() {
            return Err(Error::Input("a batch is prepared before sequences join it".into()));
        }
        let draws = step::check_vocabulary(&self.model).is_ok();
        if draws {
            self.ensure_drawing()?;
        }
        self.ensure_scores()?;
        let most = self.capacity.next_power_of_two();
        self.write_rows(most, draws);
        let samplings = [Some(Sampling::Greedy), draws.then_some(Sampling::Random)];
        for rows in step::powers_of_two(1, most) {
            for splits in self.model.all_splits(self.context()) {
                for sampling in samplings.into_iter().flatten() {
                    for scored in [false, true] {
                        let key = Key { rows, splits, sampling, scored };
                        self.ensure(key)?;
                        self.built[&key].run(&self.model.gpu);
                    }
                }
            }
        }
        self.prompts.prepare(&self.model, draws)?;
        self.model.gpu.wait()?;
        self.model.gpu.save_pipelines();
        Ok(())
    }

    /// Returns the number of sequences, those included whose prompts are not read yet.
    pub fn len(&self) -> usize {
        self.sequences.len() + self.prompts.len()
    }

    /// Tells whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of sequences whose prompts are not read yet.
    pub fn reading(&self) -> usize {
        self.prompts.len()
    }

    /// Tells whether a sequence has joined and not left, by itself or broken.
    pub fn contains(&self, id: SequenceId) -> bool {
        self.sequences.iter().any(|sequence| sequence.id == id)
            || self.prompts.iter().any(|prompt| prompt.id == id)
    }

    /// Returns the most sequences that there may be at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the most tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.prompts.reader.context()
    }

    /// Reads a prompt, and those before it that are not read yet; from the next step on its continuation is part of the
    /// batch.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue), or when the logits behind a prompt are no numbers or the device fails; then the
    /// prompt that failed is no part of the batch, nor is this one.
    pub fn join(&mut self, prompt: &[u32], options: SequenceOptions) -> Result<SequenceId> {
        let id = self.enqueue(prompt, options)?;
        let read = self.read_all();
        if read.is_err() {
            // It may have been this one's prompt that failed.
            let _ = self.leave(id);
        }
        read.map(|()| id)
    }

    /// Reads every prompt.
    fn read_all(&mut self) -> Result<()> {
        loop {
            self.finish_reading()?;
            self.refuse_broken()?;
            if self.reading() == 0 {
                return Ok(());
            }
            self.prompts.read_on(&self.model, &self.caches)?;
        }
    }

    /// Makes room for a sequence whose prompt the following steps read, in the order in which prompts came. A step reads
    /// as many as together have no more tokens than a chunk ([`LoadOptions::prefill_chunk`](crate::LoadOptions)), or a
    /// chunk of a longer one, so that no other sequence waits for more than that. Its tokens begin when it is read.
    ///
    /// # Errors
    /// When the batch is full, the prompt is refused as by [`Session::prefill`], more logprobs are wanted than
    /// [`MAX_TOP`], or the vocabulary is too large to be drawn from on the device; then the batch is as it was.
    pub fn enqueue(&mut self, prompt: &[u32], options: SequenceOptions) -> Result<SequenceId> {
        let taken = |slot: &usize| {
            self.sequences.iter().any(|sequence| sequence.slot == *slot)
                || self.prompts.iter().any(|prompt| prompt.slot == *slot)
        };
        let Some(slot) = (0..self.capacity).find(|slot| !taken(slot)) else {
            return Err(Error::Input(format!("the batch is full: it holds {} sequences", self.capacity)));
        };
        self.prompts.reader.check_behind(0, prompt)?;
        if let Some(wanted) = options.logprobs.filter(|&wanted| wanted > MAX_TOP) {
            return Err(Error::Input(format!(
                "{wanted} logprobs are more than {MAX_TOP}, the most there are"
            )));
        }
        if options.logprobs.is_some() {
            self.ensure_scores()?;
        }
        if !options.sampler.is_greedy() {
            self.ensure_drawing()?;
        }
        self.joined += 1;
        let id = SequenceId(self.joined);
        self.prompts.push(id, slot, options, prompt);
        Ok(id)
    }

    /// Takes a sequence out of the batch and makes room for another.
    ///
    /// # Errors
    /// When it has left already, by itself too, as its context was full or its logits were no numbers.
    pub fn leave(&mut self, id: SequenceId) -> Result<()> {
        if let Some(index) = self.sequences.iter().position(|sequence| sequence.id == id) {
            self.sequences.remove(index);
        } else if !self.prompts.remove(id) {
            return Err(Error::Input(format!("{id} is not part of the batch")));
        }
        Ok(())
    }

    /// Takes every sequence out of the batch.
    pub fn clear(&mut self) {
        self.sequences.clear();
        self.prompts.clear();
    }

    /// Returns the processor time spent so far in recording and submitting steps.
    pub fn host_time(&self) -> Duration {
        self.host_time + self.prompts.reader.host_time()
    }

    /// Returns the next token of every sequence whose prompt is read, in the order in which they joined, and has the
    /// ones after them computed meanwhile, and the oldest prompts read that are not. The end-of-sequence token is one like
    /// the others; a sequence leaves by itself only behind the token that its context has no room for.
    ///
    /// # Errors
    /// When logits of a sequence are no numbers: it has left then ([`contains`](Self::contains)), and the next call
    /// gives the others the tokens that this one did not. When the device fails: the tokens of this step are lost.
    pub fn step(&mut self) -> Result<&[Decoded]> {
        self.receive()?;
        self.finish_reading()?;
        self.refuse_broken()?;
        self.decoded.clear();
        self.decoded.extend(self.sequences.iter().map(Sequence::decoded));
        let context = self.context();
        self.sequences.retain(|sequence| sequence.position < context);
        self.submit()?;
        self.prompts.read_on(&self.model, &self.caches)?;
        Ok(&self.decoded)
    }

    /// Makes the prompts that were read whole sequences that decode.
    fn finish_reading(&mut self) -> Result<()> {
        for First { prompt, token: last, score } in self.prompts.finish(&self.model)? {
            let Prompt { id, slot, options: SequenceOptions { sampler, logprobs }, tokens, .. } = prompt;
            let (vocabulary, position) = (self.model.config.vocab_size, tokens.len());
            let draw = (!sampler.is_greedy()).then(|| sampler.options().packed());
            if let Some(drawing) = self.drawing.as_ref().filter(|_| draw.is_some()) {
                let mut seen = last_seen(&tokens, vocabulary);
                if last != token::NONE {
                    seen[last as usize] = position as u32 + 1;
                }
                let row = slot as u64 * vocabulary as u64 * 4;
                self.model.gpu.write(&drawing.last_seen, row, bytemuck::cast_slice(&seen));
            }
            self.sequences.push(Sequence { id, slot, draw, logprobs, position, last, score, row: None });
        }
        self.model.gpu.check()
    }

    /// Takes out a sequence that nothing can be chosen for, if there is one.
    fn refuse_broken(&mut self) -> Result<()> {
        let Some(index) = self.sequences.iter().position(Sequence::is_broken) else { return Ok(()) };
        let Sequence { position, id, .. } = self.sequences.remove(index);
        Err(Error::Model(format!("the logits at position {position} of {id} are no numbers")))
    }

    /// Takes in what the step that is under way chose.
    fn receive(&mut self) -> Result<()> {
        let Some(Flight { submission, key }) = self.flight.take() else { return Ok(()) };
        if self.sequences.iter().all(|sequence| sequence.row.is_none()) {
            return Ok(());
        }
        let (ids, sequences) = (key.rows * 4, &mut self.sequences);
        let bytes = ids as u64 + if key.scored { key.rows as u64 * Scores::ROW_BYTES } else { 0 };
        self.readback.map(&self.model.gpu, &submission, bytes, |bytes| {
            let (ids, scores) = bytes.split_at(ids);
            for (row, id) in step::words(ids).enumerate() {
                let Some(sequence) = sequences.iter_mut().find(|sequence| sequence.row == Some(row)) else {
                    continue;
                };
                sequence.last = id;
                sequence.score =
                    sequence.logprobs.and_then(|wanted| Scores::of_row(scores, key.rows, row, id, wanted));
                sequence.position += 1;
                sequence.row = None;
            }
        })
    }

    /// Submits a step of every sequence.
    fn submit(&mut self) -> Result<()> {
        if self.sequences.is_empty() {
            return Ok(());
        }
        let rows = self.sequences.len().next_power_of_two();
        let seen = self.sequences.iter().map(|sequence| sequence.position + 1).max();
        let random = self.sequences.iter().any(|sequence| sequence.draw.is_some());
        let key = Key {
            rows,
            splits: self.model.splits(seen.unwrap_or(0)),
            sampling: if random { Sampling::Random } else { Sampling::Greedy },
            scored: self.sequences.iter().any(|sequence| sequence.logprobs.is_some()),
        };
        self.ensure(key)?;
        let start = ThreadTime::now();
        self.write_rows(rows, random);
        let (gpu, chosen) = (&self.model.gpu, self.drawn.slice(0, rows as u64 * 4));
        let executor = &self.built[&key];
        let submission = match self.scores.as_ref().filter(|_| key.scored) {
            None => executor.run_and_copy(gpu, 1, &[&chosen], &self.readback),
            Some(scores) => {
                let [values, likeliest] = scores.ranges(rows);
                executor.run_and_copy(gpu, 1, &[&chosen, &values, &likeliest], &self.readback)
            }
        };
        self.flight = Some(Flight { submission, key });
        self.host_time += start.elapsed();
        gpu.check()
    }

    /// Tells the device of the sequence of each row, and how it draws if any does. A row without one is at the start of a
    /// slot that nobody reads, and takes the likeliest.
    fn write_rows(&mut self, rows: usize, random: bool) {
        let (mut ids, mut places) = ([0u32; MOST_TOKENS], [[0, self.capacity as u32]; MOST_TOKENS]);
        let mut options = [Sampler::greedy().options().packed(); MOST_TOKENS];
        for (row, sequence) in self.sequences.iter_mut().enumerate() {
            ids[row] = sequence.last;
            places[row] = [sequence.position as u32, sequence.slot as u32];
            options[row] = sequence.draw.unwrap_or(options[row]);
            sequence.row = Some(row);
        }
        let gpu = &self.model.gpu;
        gpu.write(&self.ids, 0, bytemuck::cast_slice(&ids[..rows]));
        gpu.write(&self.places, 0, bytemuck::cast_slice(&places[..rows]));
        if let Some(drawing) = self.drawing.as_ref().filter(|_| random) {
            gpu.write(&drawing.options, 0, bytemuck::cast_slice(&options[..rows]));
        }
    }

    /// Builds a step if it is not there.
    fn ensure(&mut self, key: Key) -> Result<()> {
        if !self.built.contains_key(&key) {
            let executor = self.build(key)?;
            self.built.insert(key, executor);
        }
        Ok(())
    }

    fn build(&self, key: Key) -> Result<Executor> {
        let (model, Key { rows, splits, sampling, scored }) = (&self.model, key);
        let shape = StepShape {
            logits: Logits::All,
            sampling: Some(sampling),
            scored,
            batch: Some(self.capacity + 1),
            splits,
            ..StepShape::greedy(rows, self.context(), model.kv.dtype())
        };
        let step = model.step(shape);
        let mut bound = Bound::of_step(model, &step, &self.caches)?;
        let words = rows as u64 * 4;
        bound.set(step.ids, vec![self.ids.slice(0, words)]);
        bound.set(step.position, vec![self.places.slice(0, 2 * words)]);
        bound.set(step.drawn, vec![self.drawn.slice(0, words)]);
        bound.set(step.rope, vec![self.prompts.reader.steps.rope().clone()]);
        if let Some(logits) = step.logits {
            let bytes = words * model.config.vocab_size as u64;
            bound.set(logits, vec![self.logits.slice(0, bytes)]);
        }
        if let Some(drawing) = &self.drawing {
            bound.set(step.options, vec![drawing.options.slice(0, words * Options::WORDS as u64)]);
            bound.set(step.last_seen, vec![drawing.last_seen.clone()]);
        }
        if let Some(scores) = self.scores.as_ref().filter(|_| scored) {
            scores.bind(&mut bound, &step, rows);
        }
        bound.executor(model, &step)
    }

    fn ensure_scores(&mut self) -> Result<()> {
        if self.scores.is_none() {
            self.scores = Some(Scores::new(&self.model.gpu, self.capacity.next_power_of_two())?);
        }
        Ok(())
    }

    fn ensure_drawing(&mut self) -> Result<()> {
        step::check_vocabulary(&self.model)?;
        if self.drawing.is_none() {
            let (gpu, rows) = (&self.model.gpu, self.capacity.next_power_of_two() as u64);
            let seen = (self.capacity as u64 + 1) * self.model.config.vocab_size as u64;
            self.drawing = Some(Drawing {
                options: gpu.storage("options of a batch", rows * 4 * Options::WORDS as u64)?,
                last_seen: gpu.storage("last_seen of a batch", seen * 4)?,
            });
        }
        Ok(())
    }
}

impl Sequence {
    fn decoded(&self) -> Decoded {
        Decoded { sequence: self.id, token: self.last, logprob: self.score }
    }

    /// Tells whether nothing could be chosen, or the choice not be scored.
    fn is_broken(&self) -> bool {
        self.last == token::NONE || self.logprobs.is_some() && self.score.is_none()
    }
}
