//! Many sequences that decode together: a step takes one token of each and reads every weight once for all.
//!
//! A row is bit-identical to a step of one row, so a sequence does not depend on the others in its steps. (On an
//! adapter whose subgroups have several sizes a driver may choose one for each pipeline, and with it the last bits of a
//! sum.)

mod prompts;
mod sequence;

use std::sync::Arc;
use std::time::Duration;

use cpu_time::ThreadTime;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Readback, Submission};
use crate::kernels::draw::last_seen;
use crate::kernels::{MOST_TOKENS, token};
use crate::model::shape::{Logits, Sampling, StepShape};
use crate::sampler::Sampler;
use crate::session::buffers::{Sizes, StepBuffers, check_vocabulary};
use crate::session::built::{Built, powers_of_two};
use crate::session::logprobs::{MAX_TOP, ScoreBuffers};
use crate::session::model::{Loaded, Model};
use crate::session::ring::words;
use crate::session::sequence::Session;
use prompts::{First, Prompt, Prompts};
use sequence::Sequence;
pub use sequence::{Decoded, SequenceId, SequenceOptions};

/// Sequences that decode together. They join and leave between steps.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::{LoadOptions, Model, SequenceOptions};
///
/// let model = Model::load("demo", LoadOptions::default())?;
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
    model: Arc<Loaded>,
    capacity: usize,
    /// One more slot than sequences: padding rows use the last.
    buffers: StepBuffers,
    built: Built,
    readback: Readback,
    /// Prompts that are not read yet.
    prompts: Prompts,
    sequences: Vec<Sequence>,
    joined: u64,
    flight: Option<Flight>,
    host_time: Duration,
    /// What the last step yielded.
    decoded: Vec<Decoded>,
}

/// A step in flight.
#[derive(Debug)]
struct Flight {
    submission: Submission,
    rows: usize,
    scored: bool,
}

impl Model {
    /// Starts a batch of at most `capacity` sequences of at most `context` tokens each; without a number, as many
    /// as the model was trained for.
    ///
    /// # Errors
    /// When `capacity` is not within 1 to 64, `context` not within 1 to 2^20, or the device lacks memory or the largest
    /// binding for the caches: those of `capacity` sequences and two more, one to read prompts and one for padding
    /// rows.
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
        let model = Arc::clone(model.loaded());
        let rows = capacity.next_power_of_two();
        let sizes = Sizes { context: reader.context(), rows, slots: Some(capacity + 1) };
        let mut batch = Self {
            buffers: StepBuffers::new(&model, sizes, reader.state.rope().clone())?,
            // Row counts are powers of two: there are few.
            built: Built::new(usize::MAX),
            readback: Readback::new(&model.gpu, rows as u64 * (4 + ScoreBuffers::ROW_BYTES)),
            prompts: Prompts::new(&model, reader, capacity)?,
            sequences: Vec::with_capacity(capacity),
            joined: 0,
            flight: None,
            host_time: Duration::ZERO,
            decoded: Vec::with_capacity(capacity),
            model,
            capacity,
        };
        batch.buffers.allocate(&batch.model, &batch.shape(rows, 1, Sampling::Greedy, false))?;
        Ok(batch)
    }

    /// Returns the shape of a step of `rows` rows with at most `keys` keys each.
    fn shape(&self, rows: usize, keys: usize, sampling: Sampling, scored: bool) -> StepShape {
        let shape = StepShape {
            logits: Logits::All,
            sampling: Some(sampling),
            scored,
            batch: Some(self.capacity + 1),
            ..StepShape::greedy(rows, self.context(), self.model.kv.dtype())
        };
        self.model.paths.apply(shape, keys)
    }

    /// Builds the steps that sequences need and runs each once on padding rows, so that no sequence waits for the
    /// driver to compile: for every power of two of rows up to the capacity, with few keys and with many, greedy and
    /// drawn (if the vocabulary can be drawn from), with and without logprobs. Also builds the steps that read prompts,
    /// for every power of two of tokens up to a chunk; prompts of other lengths need no other pipelines.
    ///
    /// This takes at most a few seconds if the driver has cached the pipelines, and a minute on a software adapter if
    /// not.
    ///
    /// # Errors
    /// When there are sequences already, or the device lacks memory or fails.
    pub fn prepare(&mut self) -> Result<()> {
        if !self.is_empty() {
            return Err(Error::Input("a batch is prepared before sequences join it".into()));
        }
        let draws = check_vocabulary(&self.model).is_ok();
        if draws {
            self.buffers.allocate_drawing(&self.model)?;
        }
        self.buffers.allocate_scores(&self.model)?;
        let most = self.capacity.next_power_of_two();
        write_rows(&self.model.gpu, &self.buffers, &mut [], most, draws);
        let samplings = [Some(Sampling::Greedy), draws.then_some(Sampling::Random)];
        for rows in powers_of_two(1, most) {
            for keys in self.model.paths.key_counts(self.context()) {
                for sampling in samplings.into_iter().flatten() {
                    for scored in [false, true] {
                        let shape = self.shape(rows, keys, sampling, scored);
                        self.built.step(&self.model, shape, &self.buffers)?.run(&self.model.gpu);
                    }
                }
            }
        }
        self.prompts.prepare(&self.model, draws)?;
        self.model.gpu.wait()?;
        self.model.gpu.save_pipelines();
        Ok(())
    }

    /// Returns the number of sequences, including those whose prompts are not read yet.
    pub fn len(&self) -> usize {
        self.sequences.len() + self.prompts.len()
    }

    /// Returns whether there is no sequence.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of sequences whose prompts are not read yet.
    pub fn reading(&self) -> usize {
        self.prompts.len()
    }

    /// Returns whether a sequence has joined and is still part of the batch.
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

    /// Reads a prompt and all queued before it. The next step continues them.
    ///
    /// # Errors
    /// As [`enqueue`](Self::enqueue), and when the logits after a prompt are not finite or the device fails: then neither
    /// the prompt that failed nor this one is part of the batch.
    pub fn join(&mut self, prompt: &[u32], options: SequenceOptions) -> Result<SequenceId> {
        let id = self.enqueue(prompt, options)?;
        let read = self.read_all();
        if read.is_err() {
            // The prompt that failed may be this one.
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
            self.prompts.read_on(&self.model, &self.buffers.caches)?;
        }
    }

    /// Queues a sequence; the following steps read its prompt, in the order of arrival. A step reads prompts of
    /// together at most one chunk of tokens ([`LoadOptions::prefill_chunk`](crate::LoadOptions)), or one chunk of a
    /// longer prompt, so that no sequence waits for more than that. The sequence yields tokens once its prompt is read.
    ///
    /// # Errors
    /// When the batch is full, the prompt is refused as by [`Session::prefill`], more logprobs are requested than
    /// [`MAX_TOP`], or the vocabulary is too large to be drawn from on the device. The batch is then unchanged.
    pub fn enqueue(&mut self, prompt: &[u32], options: SequenceOptions) -> Result<SequenceId> {
        let taken = |slot: &usize| {
            self.sequences.iter().any(|sequence| sequence.slot == *slot)
                || self.prompts.iter().any(|prompt| prompt.slot == *slot)
        };
        let Some(slot) = (0..self.capacity).find(|slot| !taken(slot)) else {
            return Err(Error::Input(format!("the batch is full: it holds {} sequences", self.capacity)));
        };
        self.prompts.reader.check_at(0, prompt)?;
        if let Some(wanted) = options.logprobs.filter(|&wanted| wanted > MAX_TOP) {
            return Err(Error::Input(format!(
                "{wanted} logprobs are more than {MAX_TOP}, the most there are"
            )));
        }
        if options.logprobs.is_some() {
            self.buffers.allocate_scores(&self.model)?;
        }
        if !options.sampler.is_greedy() {
            check_vocabulary(&self.model)?;
            self.buffers.allocate_drawing(&self.model)?;
        }
        self.joined += 1;
        let id = SequenceId(self.joined);
        self.prompts.push(id, slot, options, prompt);
        Ok(id)
    }

    /// Takes a sequence out of the batch and makes room for another.
    ///
    /// # Errors
    /// When it has left already. A sequence also leaves when its context is full or its logits are not finite.
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

    /// Returns the CPU time spent so far on recording and submitting steps.
    pub fn host_time(&self) -> Duration {
        self.host_time + self.prompts.reader.host_time()
    }

    /// Returns the next token of every sequence whose prompt is read, in the order of joining. Submits the next step
    /// and the oldest unread prompts, and does not wait for them. The end-of-sequence token is a token like any other;
    /// a sequence leaves by itself only after the first token that its context has no room for.
    ///
    /// # Errors
    /// When the logits of a sequence are not finite: it has then left ([`contains`](Self::contains)), and the next call
    /// returns the tokens of the others. When the device fails: the tokens of this step are lost.
    pub fn step(&mut self) -> Result<&[Decoded]> {
        self.receive()?;
        self.finish_reading()?;
        self.refuse_broken()?;
        self.decoded.clear();
        self.decoded.extend(self.sequences.iter().map(Sequence::decoded));
        let context = self.context();
        self.sequences.retain(|sequence| sequence.position < context);
        self.submit()?;
        self.prompts.read_on(&self.model, &self.buffers.caches)?;
        Ok(&self.decoded)
    }

    /// Turns fully read prompts into sequences that decode.
    fn finish_reading(&mut self) -> Result<()> {
        for First { prompt, token: last, score } in self.prompts.finish(&self.model)? {
            let Prompt { id, slot, options: SequenceOptions { sampler, logprobs }, tokens, .. } = prompt;
            let (vocabulary, position) = (self.model.config.vocab_size, tokens.len());
            let draw = (!sampler.is_greedy()).then(|| sampler.options().packed());
            if let Some(drawing) = self.buffers.drawing.as_ref().filter(|_| draw.is_some()) {
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

    /// Removes a sequence for which no token can be chosen, if there is one.
    fn refuse_broken(&mut self) -> Result<()> {
        let Some(index) = self.sequences.iter().position(Sequence::is_broken) else { return Ok(()) };
        let Sequence { position, id, .. } = self.sequences.remove(index);
        Err(Error::Model(format!("the logits at position {position} of {id} are not finite numbers")))
    }

    /// Reads back what the step in flight chose.
    fn receive(&mut self) -> Result<()> {
        let Some(Flight { submission, rows, scored }) = self.flight.take() else { return Ok(()) };
        if self.sequences.iter().all(|sequence| sequence.row.is_none()) {
            return Ok(());
        }
        let (ids, sequences) = (rows * 4, &mut self.sequences);
        let bytes = ids as u64 + if scored { rows as u64 * ScoreBuffers::ROW_BYTES } else { 0 };
        self.readback.map(&self.model.gpu, &submission, bytes, |bytes| {
            let (ids, scores) = bytes.split_at(ids);
            for (row, id) in words(ids).enumerate() {
                let Some(sequence) = sequences.iter_mut().find(|sequence| sequence.row == Some(row)) else {
                    continue;
                };
                sequence.last = id;
                sequence.score =
                    sequence.logprobs.and_then(|wanted| ScoreBuffers::of_row(scores, rows, row, id, wanted));
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
        let keys = self.sequences.iter().map(|sequence| sequence.position + 1).max().unwrap_or(0);
        let random = self.sequences.iter().any(|sequence| sequence.draw.is_some());
        let sampling = if random { Sampling::Random } else { Sampling::Greedy };
        let scored = self.sequences.iter().any(|sequence| sequence.logprobs.is_some());
        let shape = self.shape(rows, keys, sampling, scored);
        self.buffers.allocate(&self.model, &shape)?;
        let (gpu, buffers) = (&self.model.gpu, &self.buffers);
        let executor = self.built.step(&self.model, shape, buffers)?;
        // Building a step does not count as host time.
        let start = ThreadTime::now();
        write_rows(gpu, buffers, &mut self.sequences, rows, random);
        let drawn = buffers.drawn.as_ref().expect("a batch chooses by every row").slice(0, rows as u64 * 4);
        let submission = match buffers.scores.as_ref().filter(|_| scored) {
            None => executor.run_and_copy(gpu, 1, &[&drawn], &self.readback),
            Some(scores) => {
                let [values, likeliest] = scores.ranges(rows);
                executor.run_and_copy(gpu, 1, &[&drawn, &values, &likeliest], &self.readback)
            }
        };
        self.flight = Some(Flight { submission, rows, scored });
        self.host_time += start.elapsed();
        gpu.check()
    }
}

/// Writes the token, position and slot of each row, and its options if any row draws. A padding row is at the start
/// of the last slot, which nothing reads, and is greedy.
fn write_rows(gpu: &Gpu, buffers: &StepBuffers, sequences: &mut [Sequence], rows: usize, random: bool) {
    let idle = buffers.sizes().slots.map_or(0, |slots| slots as u32 - 1);
    let (mut ids, mut positions) = ([0u32; MOST_TOKENS], [[0, idle]; MOST_TOKENS]);
    let mut options = [Sampler::greedy().options().packed(); MOST_TOKENS];
    for (row, sequence) in sequences.iter_mut().enumerate() {
        ids[row] = sequence.last;
        positions[row] = [sequence.position as u32, sequence.slot as u32];
        options[row] = sequence.draw.unwrap_or(options[row]);
        sequence.row = Some(row);
    }
    gpu.write(&buffers.ids, 0, bytemuck::cast_slice(&ids[..rows]));
    gpu.write(&buffers.position, 0, bytemuck::cast_slice(&positions[..rows]));
    if let Some(drawing) = buffers.drawing.as_ref().filter(|_| random) {
        gpu.write(&drawing.options, 0, bytemuck::cast_slice(&options[..rows]));
    }
}
