//! The prompts of a batch: a queue, and one sequence that reads them, several per step if they are short.
//!
//! A prompt is read in the same chunks as by a [`Session`], so the tokens after it are bit-identical. Nothing waits for
//! the device between prompts: the results of one are copied away before the next one is read.

use std::collections::VecDeque;

use crate::error::Result;
use crate::gpu::{BufferRange, Readback};
use crate::model::shape::Logits;
use crate::sampler::{Sampler, SamplerOptions};
use crate::session::batch::sequence::{SequenceId, SequenceOptions};
use crate::session::built::powers_of_two;
use crate::session::logprobs::{ScoreBuffers, TokenScore};
use crate::session::model::Loaded;
use crate::session::ring::words;
use crate::session::sequence::Session;

/// Bytes of a record, the result of a prompt: the token after it, and its scores.
const RECORD_BYTES: u64 = 4 + ScoreBuffers::ROW_BYTES;

/// A prompt that is to become a sequence.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) id: SequenceId,
    /// Slot for its keys and values.
    pub(super) slot: usize,
    pub(super) options: SequenceOptions,
    pub(super) tokens: Vec<u32>,
    /// Tokens handed to the reader so far.
    read: usize,
    /// Number of the record with the token after it, once it is fully read.
    record: Option<usize>,
}

/// What follows a prompt.
#[derive(Debug)]
pub(super) struct First {
    pub(super) prompt: Prompt,
    /// [`NONE`](crate::kernels::token::NONE) where logits are not finite.
    pub(super) token: u32,
    /// The score, if requested and the logits are finite.
    pub(super) score: Option<TokenScore>,
}

/// Prompts that wait for the reader, are being read, or whose first tokens are still on the device, the oldest first.
#[derive(Debug)]
pub(super) struct Prompts {
    pub(super) reader: Session,
    waiting: VecDeque<Prompt>,
    /// Results of the prompts read since the last [`finish`](Self::finish), `[capacity]`.
    records: BufferRange,
    recorded: usize,
    readback: Readback,
}

impl Prompts {
    pub(super) fn new(model: &Loaded, reader: Session, capacity: usize) -> Result<Self> {
        let bytes = capacity as u64 * RECORD_BYTES;
        Ok(Self {
            reader,
            waiting: VecDeque::with_capacity(capacity),
            records: model.gpu.storage("first tokens of a batch", bytes)?,
            recorded: 0,
            readback: Readback::new(&model.gpu, bytes),
        })
    }

    /// Builds the steps that read prompts, for every power of two of tokens up to a chunk, and runs each once; does not
    /// wait.
    pub(super) fn prepare(&mut self, model: &Loaded, draws: bool) -> Result<()> {
        let reader = &mut self.reader;
        let chunk = vec![0; model.chunk.min(reader.context())];
        reader.rollback(0)?;
        reader.advance(&chunk, Logits::None, &[])?;
        for tokens in powers_of_two(1, chunk.len()) {
            reader.rollback(0)?;
            reader.advance(&chunk[..tokens], Logits::Last, &[])?;
        }
        if draws {
            reader.draw(&Sampler::new(SamplerOptions { temperature: 1.0, ..SamplerOptions::default() })?)?;
        }
        reader.state.record(model, true, &self.records.slice(0, RECORD_BYTES))?;
        reader.rollback(0)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Prompt> {
        self.waiting.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, id: SequenceId, slot: usize, options: SequenceOptions, tokens: &[u32]) {
        let tokens = tokens.to_vec();
        self.waiting.push_back(Prompt { id, slot, options, tokens, read: 0, record: None });
    }

    /// Removes a prompt and returns whether it was there.
    pub(super) fn remove(&mut self, id: SequenceId) -> bool {
        let index = self.waiting.iter().position(|prompt| prompt.id == id);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Hands the reader the next chunks of the oldest prompts, together at most one chunk of tokens, and does not wait.
    /// Call [`finish`](Self::finish) first: the records are reused. A prompt on which the device fails is removed.
    pub(super) fn read_on(&mut self, model: &Loaded, caches: &[[BufferRange; 2]]) -> Result<()> {
        let (mut room, mut index) = (model.chunk, 0);
        self.recorded = 0;
        while let Some(prompt) = self.waiting.get(index) {
            let tokens = (prompt.tokens.len() - prompt.read).min(model.chunk);
            if tokens > room {
                break;
            }
            room -= tokens;
            if let Err(error) = self.read_chunk(model, caches, index, tokens) {
                self.waiting.remove(index);
                return Err(error);
            }
            // The next prompt follows only once this one is fully read.
            index += usize::from(self.waiting[index].record.is_some());
        }
        Ok(())
    }

    /// Hands the next `tokens` tokens of a prompt to the reader. After the last of them it chooses the first token of
    /// the sequence, and copies what the reader cached to the slot.
    fn read_chunk(
        &mut self,
        model: &Loaded,
        caches: &[[BufferRange; 2]],
        index: usize,
        tokens: usize,
    ) -> Result<()> {
        let Self { reader, waiting, records, recorded, .. } = self;
        let prompt = &mut waiting[index];
        if prompt.read == 0 {
            reader.rollback(0)?;
        }
        let chunk = &prompt.tokens[prompt.read..][..tokens];
        prompt.read += tokens;
        if prompt.read < prompt.tokens.len() {
            return reader.advance(chunk, Logits::None, &[]);
        }
        reader.advance(chunk, Logits::Last, &[])?;
        let SequenceOptions { sampler, logprobs } = &prompt.options;
        if !sampler.is_greedy() {
            reader.draw(sampler)?;
        }
        let record = records.slice(*recorded as u64 * RECORD_BYTES, RECORD_BYTES);
        let first = reader.state.record(model, logprobs.is_some(), &record)?;
        model.gpu.copy(first.into_iter().chain(adopted(model, caches, reader, prompt.slot)));
        prompt.record = Some(*recorded);
        *recorded += 1;
        model.gpu.check()
    }

    /// Removes the fully read prompts and returns what follows each; waits for the last of them. If the device fails
    /// they are lost.
    pub(super) fn finish(&mut self, model: &Loaded) -> Result<Vec<First>> {
        let is_read = |prompt: &Prompt| prompt.record.is_some();
        if !self.waiting.iter().any(is_read) {
            return Ok(Vec::new());
        }
        // Prompts are read in order.
        let read = self.waiting.partition_point(is_read);
        let read: Vec<Prompt> = self.waiting.drain(..read).collect();
        let records = self.records.slice(0, self.recorded as u64 * RECORD_BYTES);
        self.readback.read(&model.gpu, &records, |bytes| {
            read.into_iter().map(|prompt| First::of_records(prompt, bytes)).collect()
        })
    }
}

impl First {
    /// Returns what follows a prompt, from its record.
    fn of_records(prompt: Prompt, bytes: &[u8]) -> Self {
        let record = prompt.record.expect("a prompt that was read whole has a record");
        let (token, scores) = bytes[record * RECORD_BYTES as usize..].split_at(4);
        let token = words(token).sum();
        let scored =
            |wanted| ScoreBuffers::of_row(&scores[..ScoreBuffers::ROW_BYTES as usize], 1, 0, token, wanted);
        Self { token, score: prompt.options.logprobs.and_then(scored), prompt }
    }
}

/// Yields the reader's cached keys and values, each with its destination in a slot of a batch's caches: the first rows
/// of each head of `[heads, S, Dh]` in `[slots, heads, S, Dh]`.
fn adopted(
    model: &Loaded,
    caches: &[[BufferRange; 2]],
    reader: &Session,
    slot: usize,
) -> impl Iterator<Item = (BufferRange, BufferRange)> {
    let (context, cached) = (reader.context(), reader.position());
    let bytes = |rows: usize| model.kv.bytes(rows, model.config.head_dim);
    let layers = model.config.layers.iter().zip(caches.iter().zip(reader.state.caches()));
    layers.flat_map(move |(dims, (to, from))| {
        let heads =
            (0..dims.kv_heads).map(move |head| (head * context, (slot * dims.kv_heads + head) * context));
        to.iter().zip(from).flat_map(move |(to, from)| {
            heads.clone().map(move |(own, row)| {
                (from.slice(bytes(own), bytes(cached)), to.slice(bytes(row), bytes(cached)))
            })
        })
    })
}
