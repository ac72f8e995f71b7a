//! Joins model and device: loading, prefill, decoding, the position in the KV cache.
//!
//! A [`Model`] is loaded once and shared. A [`Session`] is one sequence on it, a [`BatchSession`] many that decode
//! together, a [`Scorer`] many that are only scored.

mod batch;
mod bound;
mod buffers;
mod built;
mod generate;
mod inspect;
mod logprobs;
mod model;
mod options;
mod packing;
mod profile;
mod ring;
mod scorer;
mod sequence;
mod speculate;
mod state;
mod upload;

pub use batch::{BatchSession, Decoded, SequenceId, SequenceOptions};
pub use generate::Tokens;
pub use inspect::{DispatchReport, Inspection, WeightReport};
pub use logprobs::{MAX_TOP, TokenScore};
pub use model::Model;
pub use options::{KvFormat, LoadOptions, LoadTimes, Progress};
pub use packing::Scoring;
pub use profile::{Counts, StepOp};
pub use scorer::Scorer;
pub use sequence::Session;
pub use speculate::{Acceptance, Drafter, MAX_DRAFT};
pub use state::MAX_TOKENS_PER_SUBMIT;
