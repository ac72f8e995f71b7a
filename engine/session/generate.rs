//! Generation: decode steps run ahead on the device, and their ids are read back in blocks.
//!
//! The id that a step chooses feeds the next step without the host. The next block is submitted while one runs, so the
//! device does not wait for the host. Tokens computed past the last one taken are dropped, so the block size never
//! changes the tokens.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use cpu_time::ThreadTime;

use crate::error::{Error, Result};
use crate::kernels::{FEW_TOKENS, token};
use crate::sampler::Sampler;
use crate::session::ring::IN_FLIGHT;
use crate::session::sequence::{Held, Session};
use crate::session::speculate::{Acceptance, Drafter};
use crate::session::state::{Block, MAX_TOKENS_PER_SUBMIT};

/// Target time between two blocks of streamed tokens.
const LATENCY: Duration = Duration::from_millis(40);

impl Session {
    /// Yields tokens until the end-of-sequence token, which is not yielded, or a full context.
    ///
    /// When the iterator is dropped, all yielded tokens but the last are part of the sequence; all are, if the
    /// end-of-sequence token ended it. An error ends it too: there were no logits, they are not finite, or the device
    /// failed. Tokens are drawn on the device from vocabularies of up to 65536.
    pub fn generate(&mut self, sampler: Sampler) -> Tokens<'_> {
        Tokens::new(self, sampler)
    }
}

/// The tokens that a session generates; see [`Session::generate`].
#[derive(Debug)]
pub struct Tokens<'a> {
    session: &'a mut Session,
    sampler: Sampler,
    pace: Pace,
    limit: usize,
    through_end: bool,
    /// The token yielded last.
    last: Option<u32>,
    /// Ids that were read back and not yielded yet.
    ready: VecDeque<u32>,
    blocks: VecDeque<Block>,
    yielded: usize,
    /// Steps submitted.
    submitted: usize,
    drafter: Option<Drafter>,
    /// The last token and the draft tokens after it.
    draft: Vec<u32>,
    acceptance: Acceptance,
    done: bool,
}

impl<'a> Tokens<'a> {
    fn new(session: &'a mut Session, sampler: Sampler) -> Self {
        Self {
            session,
            sampler,
            pace: Pace::default(),
            limit: usize::MAX,
            through_end: false,
            last: None,
            ready: VecDeque::with_capacity(MAX_TOKENS_PER_SUBMIT),
            blocks: VecDeque::with_capacity(IN_FLIGHT),
            yielded: 0,
            submitted: 0,
            drafter: None,
            draft: Vec::with_capacity(FEW_TOKENS),
            acceptance: Acceptance::default(),
            done: false,
        }
    }

    /// Ends after `tokens` tokens, and computes none beyond them.
    pub fn limit(mut self, tokens: usize) -> Self {
        self.limit = tokens;
        self
    }

    /// Puts this many tokens into a submission; has no effect with [`speculate`](Self::speculate), which submits step
    /// by step. Two submissions are in flight at once: large submissions of slow tokens may exceed a driver's time-out.
    /// By default the number adapts to about 40 ms of tokens, at most [`MAX_TOKENS_PER_SUBMIT`].
    ///
    /// # Errors
    /// When `tokens` is 0 or more than [`MAX_TOKENS_PER_SUBMIT`].
    pub fn tokens_per_submit(mut self, tokens: usize) -> Result<Self> {
        if !(1..=MAX_TOKENS_PER_SUBMIT).contains(&tokens) {
            return Err(Error::Input(format!(
                "{tokens} tokens per submit are not within 1 to {MAX_TOKENS_PER_SUBMIT}"
            )));
        }
        self.pace = Pace::fixed(tokens);
        Ok(self)
    }

    /// Yields the end-of-sequence token like any other and goes on after it.
    pub fn through_end(mut self) -> Self {
        self.through_end = true;
        self
    }

    /// Decodes speculatively: one step verifies several draft tokens. The tokens stay the same.
    ///
    /// # Errors
    /// When the drafter's model has another vocabulary size, or a token was already computed without the drafter.
    pub fn speculate(mut self, drafter: Drafter) -> Result<Self> {
        if self.submitted > 0 {
            return Err(Error::Input("a drafter has to be set before the first token".to_owned()));
        }
        drafter.check(self.session.model.config.vocab_size)?;
        self.drafter = Some(drafter);
        Ok(self)
    }

    /// Returns how many draft tokens were accepted so far.
    pub fn acceptance(&self) -> Acceptance {
        self.acceptance
    }

    fn step(&mut self) -> Result<Option<u32>> {
        if self.yielded >= self.limit {
            return Ok(None);
        }
        let id = match self.last {
            None => self.session.choose(&self.sampler)?,
            Some(last) => {
                let Some(id) = self.following()? else { return Ok(None) };
                self.session.history.push(last);
                id
            }
        };
        if id == token::NONE {
            return Err(self.session.not_finite());
        }
        self.last = Some(id);
        self.yielded += 1;
        Ok((self.through_end || id != self.session.model.config.eos_token_id).then_some(id))
    }

    /// Returns the id that follows the last one; `None` if the context is full.
    fn following(&mut self) -> Result<Option<u32>> {
        if self.ready.is_empty() && self.drafter.is_some() {
            self.verify()?;
        } else if self.ready.is_empty() {
            self.submit()?;
            let Some(block) = self.blocks.pop_front() else { return Ok(None) };
            let (state, ready) = (&self.session.state, &mut self.ready);
            state.ids(&self.session.model, &block, |ids| ready.extend(ids))?;
            self.pace.observe(block.count);
        }
        Ok(self.ready.pop_front())
    }

    /// Drafts what follows the last token; keeps the accepted draft tokens and the token that the step chooses after
    /// them.
    fn verify(&mut self) -> Result<()> {
        let (Some(drafter), Some(last)) = (&mut self.drafter, self.last) else { return Ok(()) };
        let Session { model, state, history, host_time, held, .. } = &mut *self.session;
        let room = state.context() - history.len();
        if room == 0 {
            return Ok(());
        }
        self.draft.clear();
        self.draft.push(last);
        let most = (self.limit - self.yielded).min(room) - 1;
        drafter.draft(history, last, most, &mut self.draft)?;
        let begun = ThreadTime::now();
        *held = Held::Ahead;
        let verified = state.verify(model, history.len(), &self.draft, &self.sampler)?;
        *host_time += begun.elapsed();
        let drafted = &self.draft[1..];
        let before = history.len();
        let ready = &mut self.ready;
        let accepted = state.ids(model, &verified, |chosen| {
            let mut drafted = drafted.iter();
            for id in chosen {
                ready.push_back(id);
                if drafted.next() != Some(&id) {
                    break;
                }
            }
            ready.len() - 1
        })?;
        if !self.sampler.is_greedy() {
            // The last token was recorded when it was chosen.
            let chosen = self.ready.iter().copied().filter(|id| *id != token::NONE);
            state.note_seen(model, before + 1, chosen);
        }
        self.acceptance.drafted += drafted.len();
        self.acceptance.accepted += accepted;
        self.acceptance.steps += 1;
        Ok(())
    }

    /// Submits blocks until enough are in flight or no more steps are needed.
    fn submit(&mut self) -> Result<()> {
        let start = self.session.history.len() + 1 - self.yielded;
        let wanted = (self.limit - 1).min(self.session.context() - start);
        while self.blocks.len() < IN_FLIGHT && self.submitted < wanted {
            let count = self.pace.tokens().min(wanted - self.submitted);
            let begun = ThreadTime::now();
            let position = start + self.submitted;
            self.session.held = Held::Ahead;
            let block = self.session.state.decode(&self.session.model, position, count, &self.sampler)?;
            self.session.host_time += begun.elapsed();
            self.submitted += block.count;
            self.blocks.push_back(block);
        }
        Ok(())
    }
}

impl Iterator for Tokens<'_> {
    type Item = Result<u32>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let item = self.step().transpose();
        self.done = !matches!(item, Some(Ok(_)));
        item
    }
}

impl Drop for Tokens<'_> {
    fn drop(&mut self) {
        let all_taken = self.submitted > 0 && self.submitted + 1 == self.yielded;
        if all_taken && self.sampler.is_greedy() {
            self.session.held = Held::Current(self.last);
        }
    }
}

/// The number of tokens per submission.
#[derive(Debug)]
struct Pace {
    tokens: usize,
    /// Whether the number adapts to the time since the block that came back `before`.
    adapt: bool,
    before: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { tokens: 1, adapt: true, before: None }
    }
}

impl Pace {
    fn fixed(tokens: usize) -> Self {
        Self { tokens, adapt: false, before: None }
    }

    fn tokens(&self) -> usize {
        self.tokens
    }

    /// Adapts to a block that came back: the next may take as long as [`LATENCY`], but holds at most twice the tokens,
    /// because the first blocks are slower than later ones.
    fn observe(&mut self, count: usize) {
        let now = Instant::now();
        if let Some(before) = self.before.replace(now).filter(|_| self.adapt) {
            let each = (now - before).as_secs_f64() / count as f64;
            let fit = (LATENCY.as_secs_f64() / each.max(1e-9)) as usize;
            self.tokens = fit.clamp(1, (2 * self.tokens).min(MAX_TOKENS_PER_SUBMIT));
        }
    }
}
