//! The prompts of a batch: they wait, and one sequence reads them one after the other.

use std::collections::VecDeque;

use crate::error::Result;
use crate::gpu::BufferRange;
use crate::kernels::argmax;
use crate::model::openelm::Logits;
use crate::session::Session;
use crate::session::batch::{SequenceId, SequenceOptions};
use crate::session::load::Inner;
use crate::session::scores::TokenScore;

/// A prompt that is to become a sequence.
#[derive(Debug)]
pub(super) struct Prompt {
    pub(super) id: SequenceId,
    /// Where its keys and values go.
    pub(super) slot: usize,
    pub(super) options: SequenceOptions,
    pub(super) tokens: Vec<u32>,
    /// Tokens that were handed to the reader.
    read: usize,
}

/// What follows a prompt.
#[derive(Debug)]
pub(super) struct First {
    pub(super) prompt: Prompt,
    pub(super) token: u32,
    pub(super) score: Option<TokenScore>,
}

/// Prompts that wait for the reader or are being read, the oldest first.
#[derive(Debug)]
pub(super) struct Prompts {
    pub(super) reader: Session,
    waiting: VecDeque<Prompt>,
}

impl Prompts {
    pub(super) fn new(reader: Session, capacity: usize) -> Self {
        Self { reader, waiting: VecDeque::with_capacity(capacity) }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Prompt> {
        self.waiting.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn push(&mut self, id: SequenceId, slot: usize, options: SequenceOptions, tokens: &[u32]) {
        self.waiting.push_back(Prompt { id, slot, options, tokens: tokens.to_vec(), read: 0 });
    }

    /// Forgets a prompt, if it is there, and returns whether it was.
    pub(super) fn remove(&mut self, id: SequenceId) -> bool {
        let index = self.waiting.iter().position(|prompt| prompt.id == id);
        index.and_then(|index| self.waiting.remove(index)).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.waiting.clear();
    }

    /// Hands the next chunk of the oldest prompt to the reader, if there is one, and does not wait. A prompt with which
    /// the device fails is forgotten.
    pub(super) fn read_on(&mut self, model: &Inner) -> Result<()> {
        let Some(prompt) = self.waiting.front_mut() else { return Ok(()) };
        if prompt.read == 0 {
            self.reader.rollback(0)?;
        }
        let rest = &prompt.tokens[prompt.read..];
        let chunk = &rest[..rest.len().min(model.chunk)];
        let logits = if chunk.len() == rest.len() { Logits::Last } else { Logits::None };
        if chunk.is_empty() {
            return Ok(());
        }
        let read = self.reader.advance(chunk, logits, &[]);
        prompt.read += chunk.len();
        if read.is_err() {
            self.waiting.pop_front();
        }
        read
    }

    /// Takes out the oldest prompt, if it was read whole: chooses the token behind it, and moves what the reader cached
    /// to its slot of `caches`. A prompt of which nothing follows is forgotten.
    pub(super) fn finish(&mut self, model: &Inner, caches: &[[BufferRange; 2]]) -> Result<Option<First>> {
        let Some(prompt) = self.waiting.pop_front_if(|prompt| prompt.read == prompt.tokens.len()) else {
            return Ok(None);
        };
        let SequenceOptions { sampler, logprobs } = &prompt.options;
        let token = self.reader.choose(sampler)?;
        if token == argmax::NONE {
            return Err(self.reader.not_finite());
        }
        let score = match logprobs {
            None => None,
            Some(wanted) => {
                let score = self.reader.steps.score_last(model, token, *wanted)?;
                Some(score.ok_or_else(|| self.reader.not_finite())?)
            }
        };
        self.adopt(model, caches, &prompt);
        Ok(Some(First { prompt, token, score }))
    }

    /// Copies what the reader cached of a prompt to its slot.
    fn adopt(&self, model: &Inner, caches: &[[BufferRange; 2]], prompt: &Prompt) {
        let Inner { gpu, config, kv, .. } = model;
        let pairs = config.layers.iter().zip(caches.iter().zip(self.reader.steps.caches()));
        let copies = pairs.flat_map(|(dims, (to, from))| {
            let head = [self.reader.context(), config.head_dim];
            let spans = kv.spans(prompt.tokens.len(), head, dims.kv_heads, prompt.slot);
            to.iter().zip(from).flat_map(move |(to, from)| {
                let range = |buffer: &BufferRange, at, bytes| buffer.slice(at, bytes);
                spans
                    .clone()
                    .map(move |span| (range(from, span.from, span.bytes), range(to, span.to, span.bytes)))
            })
        });
        gpu.copy(copies);
    }
}
