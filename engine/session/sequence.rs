//! One sequence on a model: prefill, logits, rollback, and the position in the KV cache.

use std::sync::Arc;
use std::time::Duration;

use cpu_time::ThreadTime;

use crate::error::{Error, Result};
use crate::gpu::Readback;
use crate::kernels::token;
use crate::model::shape::Logits;
use crate::sampler::Sampler;
use crate::session::model::{Loaded, Model};
use crate::session::state::SequenceState;

/// One sequence on a model: its KV cache and its position. Several sessions may share one model.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// let model = samara::Model::load("demo", samara::LoadOptions::default())?;
/// let mut session = model.session(None)?;
/// session.prefill(&[1, 51, 87])?;
/// let logits = session.next_logits()?;
/// assert_eq!(logits.len(), model.config().vocab_size);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Session {
    pub(super) model: Arc<Loaded>,
    pub(super) state: SequenceState,
    /// The ids whose keys and values are cached; their number is the position.
    pub(super) history: Vec<u32>,
    pub(super) held: Held,
    logits: Readback,
    pub(super) host_time: Duration,
}

/// Which position the logits buffer on the device belongs to.
#[derive(Clone, Debug)]
pub(super) enum Held {
    /// No known position.
    Unknown,
    /// The end of the history. The argmax is set once it was read back.
    Current(Option<u32>),
    /// A step ran past the end of the history: the last token of the history has to run once more.
    Ahead,
}

impl Model {
    /// Starts a sequence of at most `context` tokens; without a number, as many as the model was trained for.
    ///
    /// # Errors
    /// When `context` is not within 1 to 2^20 or the device lacks memory for the cache.
    pub fn session(&self, context: Option<usize>) -> Result<Session> {
        Session::new(Arc::clone(self.loaded()), context.unwrap_or(self.config().max_context_length))
    }
}

impl Session {
    fn new(model: Arc<Loaded>, context: usize) -> Result<Self> {
        let state = SequenceState::new(&model, context)?;
        let logits = Readback::new(&model.gpu, state.last_logits().bytes());
        let history = Vec::with_capacity(context);
        Ok(Self { model, state, history, held: Held::Unknown, logits, host_time: Duration::ZERO })
    }

    /// Returns the capacity of the KV cache in tokens.
    pub fn context(&self) -> usize {
        self.state.context()
    }

    /// Returns the number of tokens cached.
    pub fn position(&self) -> usize {
        self.history.len()
    }

    /// Returns the ids of the tokens cached.
    pub fn history(&self) -> &[u32] {
        &self.history
    }

    /// Appends tokens to the sequence, in chunks if there are many, and computes the logits after the
    /// last of them.
    ///
    /// # Errors
    /// When `ids` is empty, an id is outside the vocabulary, or the context has no room for all of
    /// them; then nothing was appended. When the device fails.
    pub fn prefill(&mut self, ids: &[u32]) -> Result<()> {
        self.check(ids)?;
        let chunks = ids.chunks(self.model.chunk);
        let last = chunks.len() - 1;
        for (index, chunk) in chunks.enumerate() {
            self.advance(chunk, if index == last { Logits::Last } else { Logits::None }, &[])?;
        }
        Ok(())
    }

    /// Returns the logits after the last token, `[V]`.
    ///
    /// # Errors
    /// When neither [`prefill`](Self::prefill) nor [`generate`](Self::generate) appended a token since the session
    /// began, was rolled back or scored tokens; when a logit is not finite, or the device fails.
    pub fn next_logits(&mut self) -> Result<Vec<f32>> {
        self.require_logits()?;
        let logits: Vec<f32> =
            self.logits.read(&self.model.gpu, self.state.last_logits(), bytemuck::pod_collect_to_vec)?;
        if logits.iter().all(|logit| logit.is_finite()) { Ok(logits) } else { Err(self.not_finite()) }
    }

    /// Returns the id with the largest logit after the last token, the lowest id on ties. The device finds it, and only
    /// the id is read back.
    ///
    /// # Errors
    /// As [`next_logits`](Self::next_logits), but of logits that are not finite only when all of them are NaN.
    pub fn next_greedy(&mut self) -> Result<u32> {
        self.require_logits()?;
        if let Held::Current(Some(id)) = self.held {
            return Ok(id);
        }
        let id = self.state.chosen(&self.model)?;
        if id == token::NONE {
            return Err(self.not_finite());
        }
        self.held = Held::Current(Some(id));
        Ok(id)
    }

    /// Chooses a token from the logits on the device.
    pub(super) fn choose(&mut self, sampler: &Sampler) -> Result<u32> {
        if sampler.is_greedy() {
            return self.next_greedy();
        }
        self.draw(sampler)?;
        self.state.chosen(&self.model)
    }

    /// Starts to draw a token from the logits; does not wait.
    pub(super) fn draw(&mut self, sampler: &Sampler) -> Result<()> {
        self.require_logits()?;
        let start = ThreadTime::now();
        self.state.draw(&self.model, &self.history, sampler)?;
        self.host_time += start.elapsed();
        // The id on the device is no longer the argmax.
        self.held = Held::Ahead;
        Ok(())
    }

    /// Removes every token from `position` on.
    ///
    /// # Errors
    /// When the session has not reached `position`.
    pub fn rollback(&mut self, position: usize) -> Result<()> {
        if position > self.position() {
            return Err(Error::Input(format!(
                "cannot roll back to position {position}: the session is at {}",
                self.position()
            )));
        }
        if position < self.position() {
            self.history.truncate(position);
            self.held = Held::Unknown;
        }
        Ok(())
    }

    /// Appends tokens and returns the negative log-likelihood, in nats, of each of `ids[1..]` given all tokens before
    /// it.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn nll(&mut self, ids: &[u32]) -> Result<Vec<f64>> {
        self.check(ids)?;
        let mut scores = Vec::with_capacity(ids.len() - 1);
        for (index, chunk) in ids.chunks(self.model.chunk).enumerate() {
            let targets = &ids[index * self.model.chunk + 1..];
            let targets = &targets[..targets.len().min(chunk.len())];
            self.advance(chunk, Logits::All, targets)?;
            for score in self.state.scores(&self.model, chunk.len(), targets)? {
                scores.push(-f64::from(score.ok_or_else(|| self.not_finite())?.logprob));
            }
        }
        Ok(scores)
    }

    /// Runs one step and records what the logits buffer then holds; with all logits it scores `targets`.
    pub(super) fn advance(&mut self, ids: &[u32], logits: Logits, targets: &[u32]) -> Result<()> {
        let known = matches!(self.held, Held::Current(Some(id)) if ids == [id]);
        self.held = Held::Unknown;
        let start = ThreadTime::now();
        self.state.run(&self.model, self.history.len(), ids, known, logits, targets)?;
        self.host_time += start.elapsed();
        self.history.extend_from_slice(ids);
        if logits == Logits::Last {
            self.held = Held::Current(None);
        }
        Ok(())
    }

    pub(super) fn not_finite(&self) -> Error {
        Error::Model(format!("the logits at position {} are not finite numbers", self.position()))
    }

    /// Ensures that the device holds the logits after the history, or fails if there are none.
    fn require_logits(&mut self) -> Result<()> {
        match (&self.held, self.history.pop()) {
            (Held::Current(_), last) => {
                self.history.extend(last);
                Ok(())
            }
            (Held::Ahead, Some(last)) => {
                let replayed = self.advance(&[last], Logits::Last, &[]);
                if replayed.is_err() {
                    self.history.push(last);
                }
                replayed
            }
            (_, last) => {
                self.history.extend(last);
                Err(Error::Input(
                    "there are no logits: nothing was prefilled since the session began, was rolled back or scored \
                     tokens"
                        .into(),
                ))
            }
        }
    }

    /// Rejects ids that cannot be appended.
    pub(super) fn check(&self, ids: &[u32]) -> Result<()> {
        self.check_at(self.position(), ids)
    }

    /// Rejects ids that could not be appended at a position.
    pub(super) fn check_at(&self, position: usize, ids: &[u32]) -> Result<()> {
        let vocab = self.model.config.vocab_size;
        if ids.is_empty() {
            return Err(Error::Input("the prompt is empty: at least one token id is needed".into()));
        }
        if let Some((index, id)) = ids.iter().enumerate().find(|&(_, &id)| id as usize >= vocab) {
            return Err(Error::Input(format!(
                "token id {id} at index {index} is outside the vocabulary of {vocab}"
            )));
        }
        if ids.len() > self.context() - position {
            return Err(Error::Input(format!(
                "{} tokens after the {} already cached need a context of {}, but it holds {}",
                ids.len(),
                position,
                ids.len() + position,
                self.context()
            )));
        }
        Ok(())
    }
}
