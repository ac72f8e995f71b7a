//! Speculation: draft tokens come from the sequence or a smaller model, and one step verifies all of them.
//!
//! A step of a few rows reads each weight once, like a step of one row. So where decoding is bound by memory, verifying
//! seven draft tokens costs little more than decoding one token. A row is bit-identical to plain decoding at its
//! position, and its choice depends only on the seed and that position: the accepted tokens are the text of plain
//! decoding. (On an adapter whose subgroups have several sizes a driver may choose one for each pipeline, and with it
//! the last bits of a sum.)

use crate::error::{Error, Result};
use crate::kernels::FEW_TOKENS;
use crate::sampler::Sampler;
use crate::session::sequence::Session;

/// Most draft tokens that one step verifies, besides the token that it has to decode anyway.
pub const MAX_DRAFT: usize = FEW_TOKENS - 1;
/// Longest run of tokens that is looked up.
const LONGEST_RUN: usize = 3;

/// Where draft tokens come from.
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::{Drafter, LoadOptions, Model, Sampler};
///
/// let model = Model::load("path/to/OpenELM-3B", LoadOptions::default())?;
/// let small = model.load_beside("path/to/OpenELM-270M", LoadOptions::default())?;
/// let mut session = model.session(None)?;
/// session.prefill(&[1, 51, 87])?;
/// let drafter = Drafter::model(small.session(None)?, 4)?;
/// let mut tokens = session.generate(Sampler::greedy()).limit(64).speculate(drafter)?;
/// for id in tokens.by_ref() {
///     println!("{}", id?);
/// }
/// println!("{:?}", tokens.acceptance());
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Drafter {
    tokens: usize,
    draft: Draft,
}

#[derive(Debug)]
enum Draft {
    /// Earlier occurrences in the sequence itself.
    Lookup,
    /// A smaller model that reads the same sequence.
    Model(Box<Session>),
}

impl Drafter {
    /// Returns a drafter that looks the newest tokens up earlier in the sequence, and drafts the `tokens` tokens that
    /// followed them there (prompt lookup).
    ///
    /// # Errors
    /// When `tokens` is not within 1 to [`MAX_DRAFT`].
    pub fn lookup(tokens: usize) -> Result<Self> {
        Self::new(tokens, Draft::Lookup)
    }

    /// Returns a drafter that lets another model decode `tokens` tokens greedily. It overwrites what that model's
    /// session holds, and drafts nothing beyond its context.
    ///
    /// # Errors
    /// When `tokens` is not within 1 to [`MAX_DRAFT`].
    pub fn model(draft: Session, tokens: usize) -> Result<Self> {
        Self::new(tokens, Draft::Model(Box::new(draft)))
    }

    fn new(tokens: usize, draft: Draft) -> Result<Self> {
        if !(1..=MAX_DRAFT).contains(&tokens) {
            return Err(Error::Input(format!("{tokens} drafted tokens are not within 1 to {MAX_DRAFT}")));
        }
        Ok(Self { tokens, draft })
    }

    /// Rejects a drafter whose model has a vocabulary of another size than `vocab_size`.
    ///
    /// # Errors
    /// When it does.
    pub fn check(&self, vocab_size: usize) -> Result<()> {
        let Draft::Model(draft) = &self.draft else { return Ok(()) };
        let own = draft.model.config.vocab_size;
        if own == vocab_size {
            return Ok(());
        }
        Err(Error::Input(format!(
            "the draft model knows {own} tokens, the model {vocab_size}: they have to agree"
        )))
    }

    /// Appends at most `most` draft tokens that may follow `history` and `last` to `draft`.
    pub(super) fn draft(
        &mut self,
        history: &[u32],
        last: u32,
        most: usize,
        draft: &mut Vec<u32>,
    ) -> Result<()> {
        let most = most.min(self.tokens);
        match &mut self.draft {
            Draft::Lookup => draft.extend_from_slice(looked_up(history, last, most)),
            Draft::Model(session) => follow(session, history, last, most, draft)?,
        }
        Ok(())
    }
}

/// Returns what followed the newest earlier occurrence of the longest run that `history` and `last` end with.
fn looked_up(history: &[u32], last: u32, most: usize) -> &[u32] {
    for run in (1..=LONGEST_RUN.min(history.len())).rev() {
        let (before, known) = (run - 1, history.len());
        // The run ends at `end - 1`, and a token follows it.
        let matches = |end: &usize| {
            history[end - 1] == last && history[end - run..end - 1] == history[known - before..]
        };
        if let Some(end) = (run..known).rev().find(matches) {
            return &history[end..known.min(end + most)];
        }
    }
    &[]
}

/// Decodes greedily what follows `history` and `last`.
fn follow(
    session: &mut Session,
    history: &[u32],
    last: u32,
    most: usize,
    draft: &mut Vec<u32>,
) -> Result<()> {
    let most = most.min(session.context().saturating_sub(history.len() + 1));
    if most == 0 {
        return Ok(());
    }
    let common = session.history().iter().zip(history).take_while(|(a, b)| a == b).count();
    session.rollback(common)?;
    session.prefill(&[&history[common..], &[last]].concat())?;
    let tokens = session.generate(Sampler::greedy()).through_end().limit(most).tokens_per_submit(most)?;
    for id in tokens {
        draft.push(id?);
    }
    Ok(())
}

/// How many draft tokens were accepted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acceptance {
    /// Draft tokens verified.
    pub drafted: usize,
    /// Draft tokens accepted: those before the first wrong one of each step.
    pub accepted: usize,
    /// Steps of the model that verified them.
    pub steps: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_occurrence_of_the_longest_run_is_taken() {
        let history = [7, 1, 2, 3, 9, 2, 3, 8, 3, 6, 2];
        // `2 3` occurs at 2 and at 5, after a 1 and a 9; the newest token of the history is the 2.
        assert_eq!(looked_up(&history, 3, 4), [8, 3, 6, 2]);
        assert_eq!(looked_up(&history, 3, 1), [8]);
        // A run of three beats a newer one of two.
        assert_eq!(looked_up(&[1, 2, 3, 4, 5, 2, 3, 6, 1, 2], 3, 2), [4, 5]);
        // One token alone, and none.
        assert_eq!(looked_up(&[5, 6, 7], 5, 3), [6, 7]);
        assert!(looked_up(&[5, 6, 7], 8, 3).is_empty());
        assert!(looked_up(&[], 8, 3).is_empty());
        // Repetitions of one token overlap with themselves.
        assert_eq!(looked_up(&[4, 4, 4], 4, 2), [4]);
    }

    #[test]
    fn drafts_out_of_range_are_refused() {
        for tokens in [0, MAX_DRAFT + 1] {
            let message = Drafter::lookup(tokens).unwrap_err().to_string();
            assert!(message.contains(&tokens.to_string()) && message.contains('7'), "{message}");
        }
        Drafter::lookup(MAX_DRAFT).unwrap();
    }
}
