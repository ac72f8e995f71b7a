//! One sequence of a batch: its identity, its options, and what it yields.

use std::fmt;

use crate::kernels::draw::Options;
use crate::kernels::token;
use crate::sampler::Sampler;
use crate::session::logprobs::TokenScore;

/// Identity of a sequence in a [`BatchSession`](super::BatchSession). Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SequenceId(pub(super) u64);

impl fmt::Display for SequenceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sequence {}", self.0)
    }
}

/// How the tokens of a sequence are chosen, and whether they are scored. By default the likeliest, without scores.
#[derive(Clone, Debug)]
pub struct SequenceOptions {
    /// Chooses the tokens: the same ones as [`Session::generate`](crate::Session::generate) with this sampler.
    pub sampler: Sampler,
    /// Scores every token, and lists this many of the likeliest tokens beside it, at most
    /// [`MAX_TOP`](crate::session::MAX_TOP).
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
    /// The score of the token, if the options of the sequence request it.
    pub logprob: Option<TokenScore>,
}

/// A sequence whose prompt is read.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SequenceId,
    pub(super) slot: usize,
    /// How its tokens are drawn; `None` takes the likeliest.
    pub(super) draw: Option<Options>,
    pub(super) logprobs: Option<usize>,
    /// Tokens cached.
    pub(super) position: usize,
    /// The token chosen last, which is not cached.
    pub(super) last: u32,
    pub(super) score: Option<TokenScore>,
    /// Its row in the step in flight.
    pub(super) row: Option<usize>,
}

impl Sequence {
    pub(super) fn decoded(&self) -> Decoded {
        Decoded { sequence: self.id, token: self.last, logprob: self.score }
    }

    /// Returns whether no token could be chosen, or the choice could not be scored.
    pub(super) fn is_broken(&self) -> bool {
        self.last == token::NONE || self.logprobs.is_some() && self.score.is_none()
    }
}
