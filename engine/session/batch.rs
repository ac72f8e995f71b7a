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
use crate::kernels::{MOST_TOKENS, argmax};
use crate::model::openelm::{Logits, StepShape};
use crate::session::Session;
use crate::session::load::{Inner, Model};
use crate::session::step::{self, Bound};

/// Identity of a sequence in a [`BatchSession`]; never used again when the sequence has left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// Sequences that decode together, each greedily. They join and leave between steps.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// let model = samara::Model::load("demo", samara::LoadOptions::default())?;
/// let mut batch = model.batch(8, None)?;
/// let fox = batch.join(&[1, 51, 87])?;
/// batch.join(&[1, 40, 41])?;
/// for _ in 0..16 {
///     for &(sequence, token) in batch.step()? {
///         println!("{sequence:?}: {token}");
///     }
/// }
/// batch.leave(fox)?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct BatchSession {
    model: Arc<Inner>,
    /// Reads prompts; what it caches is copied to the slot of a sequence.
    reader: Session,
    capacity: usize,
    /// K and V of each layer, `[capacity + 1, Hkv, S, Dh]`; the last slot is for rows without a sequence.
    caches: Vec<[BufferRange; 2]>,
    ids: BufferRange,
    /// Position and slot of each row.
    places: BufferRange,
    logits: BufferRange,
    /// By rows and by the workgroups that share keys.
    built: HashMap<(usize, usize), Executor>,
    readback: Readback,
    sequences: Vec<Sequence>,
    free: Vec<usize>,
    joined: u64,
    flight: Option<Submission>,
    host_time: Duration,
    /// What the last step yielded.
    tokens: Vec<(SequenceId, u32)>,
}

#[derive(Debug)]
struct Sequence {
    id: SequenceId,
    slot: usize,
    /// Tokens cached.
    position: usize,
    /// The token chosen last, which is not cached.
    last: u32,
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
            readback: Readback::new(gpu, rows * 4),
            built: HashMap::new(),
            sequences: Vec::with_capacity(capacity),
            free: (0..capacity).rev().collect(),
            joined: 0,
            flight: None,
            host_time: Duration::ZERO,
            tokens: Vec::with_capacity(capacity),
            model: inner,
            reader,
            capacity,
        })
    }

    /// Returns the number of sequences.
    pub fn len(&self) -> usize {
        self.sequences.len()
    }

    /// Tells whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.sequences.is_empty()
    }

    /// Returns the most sequences that there may be at once.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns the most tokens that a sequence may have.
    pub fn context(&self) -> usize {
        self.reader.context()
    }

    /// Reads a prompt; from the next step on its continuation is part of the batch.
    ///
    /// # Errors
    /// When the batch is full, the prompt is refused as by [`Session::prefill`], or the device fails; then the
    /// batch is as it was.
    pub fn join(&mut self, prompt: &[u32]) -> Result<SequenceId> {
        let Some(&slot) = self.free.last() else {
            return Err(Error::Input(format!("the batch is full: it holds {} sequences", self.capacity)));
        };
        self.reader.rollback(0)?;
        self.reader.prefill(prompt)?;
        let last = self.reader.next_greedy()?;
        self.adopt(slot, prompt.len());
        self.model.gpu.check()?;
        self.free.pop();
        self.joined += 1;
        let id = SequenceId(self.joined);
        self.sequences.push(Sequence { id, slot, position: prompt.len(), last, row: None });
        Ok(id)
    }

    /// Takes a sequence out of the batch and makes room for another.
    ///
    /// # Errors
    /// When it has left already, by itself too, as its context was full.
    pub fn leave(&mut self, id: SequenceId) -> Result<()> {
        let Some(index) = self.sequences.iter().position(|sequence| sequence.id == id) else {
            return Err(Error::Input(format!("{id} is not part of the batch")));
        };
        let sequence = self.sequences.remove(index);
        self.free.push(sequence.slot);
        Ok(())
    }

    /// Takes every sequence out of the batch.
    pub fn clear(&mut self) {
        self.free.extend(self.sequences.drain(..).map(|sequence| sequence.slot));
    }

    /// Returns the processor time spent so far in recording and submitting steps.
    pub fn host_time(&self) -> Duration {
        self.host_time + self.reader.host_time()
    }

    /// Returns the next token of every sequence, in the order in which they joined, and has the ones after them
    /// computed meanwhile. The end-of-sequence token is one like the others; a sequence leaves by itself only behind
    /// the token that its context has no room for.
    ///
    /// # Errors
    /// When all logits of a sequence are NaN: the others go on once it has left. When the device fails: the tokens
    /// of this step are lost.
    pub fn step(&mut self) -> Result<&[(SequenceId, u32)]> {
        self.receive()?;
        if let Some(sequence) = self.sequences.iter().find(|sequence| sequence.last == argmax::NONE) {
            let Sequence { position, id, .. } = sequence;
            return Err(Error::Model(format!("the logits at position {position} of {id} are no numbers")));
        }
        self.tokens.clear();
        self.tokens.extend(self.sequences.iter().map(|sequence| (sequence.id, sequence.last)));
        let context = self.context();
        let free = &mut self.free;
        self.sequences.retain(|sequence| {
            let goes_on = sequence.position < context;
            if !goes_on {
                free.push(sequence.slot);
            }
            goes_on
        });
        self.submit()?;
        Ok(&self.tokens)
    }

    /// Copies what the reader cached, the first `tokens` of every head, to a slot.
    fn adopt(&self, slot: usize, tokens: usize) {
        let Inner { gpu, config, kv, .. } = &*self.model;
        let pairs = config.layers.iter().zip(self.caches.iter().zip(self.reader.steps.caches()));
        let copies = pairs.flat_map(|(dims, (to, from))| {
            let head = [self.context(), config.head_dim];
            let spans = kv.spans(tokens, head, dims.kv_heads, slot);
            to.iter().zip(from).flat_map(move |(to, from)| {
                let range = |buffer: &BufferRange, at, bytes| buffer.slice(at, bytes);
                spans
                    .clone()
                    .map(move |span| (range(from, span.from, span.bytes), range(to, span.to, span.bytes)))
            })
        });
        gpu.copy(copies);
    }

    /// Takes in what the step that is under way chose.
    fn receive(&mut self) -> Result<()> {
        let Some(submission) = self.flight.take() else { return Ok(()) };
        let rows = self.sequences.iter().filter_map(|sequence| sequence.row).max().map_or(0, |row| row + 1);
        if rows == 0 {
            return Ok(());
        }
        let sequences = &mut self.sequences;
        self.readback.map(&self.model.gpu, &submission, rows as u64 * 4, |bytes| {
            for (row, id) in step::words(bytes).enumerate() {
                if let Some(sequence) = sequences.iter_mut().find(|sequence| sequence.row == Some(row)) {
                    sequence.last = id;
                    sequence.position += 1;
                    sequence.row = None;
                }
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
        let key = (rows, self.model.splits(seen.unwrap_or(0)));
        if !self.built.contains_key(&key) {
            let executor = self.build(key)?;
            self.built.insert(key, executor);
        }
        // A row without a sequence is at the start of a slot that nobody reads.
        let (mut ids, mut places) = ([0u32; MOST_TOKENS], [[0, self.capacity as u32]; MOST_TOKENS]);
        for (row, sequence) in self.sequences.iter_mut().enumerate() {
            ids[row] = sequence.last;
            places[row] = [sequence.position as u32, sequence.slot as u32];
            sequence.row = Some(row);
        }
        let (gpu, start) = (&self.model.gpu, ThreadTime::now());
        gpu.write(&self.ids, 0, bytemuck::cast_slice(&ids[..rows]));
        gpu.write(&self.places, 0, bytemuck::cast_slice(&places[..rows]));
        let chosen = self.ids.slice(0, rows as u64 * 4);
        self.flight = Some(self.built[&key].run_and_copy(gpu, 1, &chosen, &self.readback));
        self.host_time += start.elapsed();
        gpu.check()
    }

    fn build(&self, (rows, splits): (usize, usize)) -> Result<Executor> {
        let model = &self.model;
        let shape = StepShape {
            logits: Logits::All,
            batch: Some(self.capacity + 1),
            splits,
            ..StepShape::greedy(rows, self.context(), model.kv.dtype())
        };
        let step = model.step(shape);
        let mut bound = Bound::of_step(model, &step, &self.caches)?;
        bound.set(step.ids, vec![self.ids.slice(0, rows as u64 * 4)]);
        bound.set(step.position, vec![self.places.slice(0, rows as u64 * 8)]);
        bound.set(step.rope, vec![self.reader.steps.rope().clone()]);
        if let Some(logits) = step.logits {
            let bytes = rows as u64 * model.config.vocab_size as u64 * 4;
            bound.set(logits, vec![self.logits.slice(0, bytes)]);
        }
        bound.executor(model, &step)
    }
}
