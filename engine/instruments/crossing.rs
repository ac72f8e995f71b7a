//! Finds up to how many tokens a prompt's products are faster by rows than in tiles: times whole steps both ways.
//!
//! Row kernels read a weight once per 8 tokens. Tiles read it once for all tokens, but compute with less of it at hand.
//! Which is faster depends on the adapter, the tier and the format.

use std::time::Instant;

use super::samples::Samples;
use super::verify::verify;
use super::versions::Comparison;
use crate::error::Result;
use crate::kernels::{FEW_TOKENS, MOST_TOKENS};
use crate::model::shape::Paths;
use crate::model::synth;
use crate::session::{Model, Session};

/// Tokens of the steps that are timed.
const TOKENS: [usize; 10] = [1, 2, 4, 8, 12, 16, 24, 32, 48, 64];

/// Both ways to compute the products of some tokens, in nanoseconds.
#[derive(Clone, Debug)]
pub struct Both {
    /// Tokens of the step.
    pub tokens: usize,
    /// Row by row, then in tiles.
    pub times: Comparison,
}

/// Times steps of 1 to 64 tokens of a model by rows and in tiles, interleaved; calls `done` after each of [`steps`].
///
/// # Errors
/// When the model computes wrongly, the device fails or lacks memory.
pub fn measure(model: &Model, samples: usize, mut done: impl FnMut()) -> Result<Vec<Both>> {
    verify(model)?;
    let ways = [MOST_TOKENS, 0].map(|few| model.with_paths(Paths { few, ..model.paths() }));
    let mut both = Vec::new();
    for tokens in steps(model) {
        let prompt = synth::prompt(model.config().vocab_size, tokens);
        let mut sessions = Vec::new();
        for model in &ways {
            let mut session = model.session(Some(tokens))?;
            time(&mut session, &prompt)?;
            sessions.push(session);
        }
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..samples.max(1) {
            for (session, times) in sessions.iter_mut().zip(&mut times) {
                times.push(time(session, &prompt)?);
            }
        }
        let [first, second] = times.map(Samples::new);
        both.push(Both { tokens, times: Comparison { first, second } });
        done();
    }
    Ok(both)
}

/// Yields the tokens of the steps that are timed: as many as the context and a prefill step hold.
pub fn steps(model: &Model) -> impl Iterator<Item = usize> {
    let most = model.config().max_context_length.min(model.prefill_chunk());
    TOKENS.into_iter().filter(move |&tokens| tokens <= most)
}

/// Returns the most tokens up to which rows are at least as fast as tiles at every step timed, and no fewer than
/// [`FEW_TOKENS`]: draft tokens are always verified by rows.
pub fn few_tokens(both: &[Both]) -> usize {
    let rows = both.iter().filter(|both| both.tokens > FEW_TOKENS);
    rows.take_while(|both| both.times.first.median() <= both.times.second.median())
        .last()
        .map_or(FEW_TOKENS, |both| both.tokens)
}

/// Returns the nanoseconds of one step, until the token that it chooses is on the host.
fn time(session: &mut Session, prompt: &[u32]) -> Result<f64> {
    session.rollback(0)?;
    let start = Instant::now();
    session.prefill(prompt)?;
    session.next_greedy()?;
    Ok(start.elapsed().as_secs_f64() * 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few(times: &[(usize, f64, f64)]) -> usize {
        let both = |&(tokens, rows, tiles): &(usize, f64, f64)| Both {
            tokens,
            times: Comparison { first: Samples::new(vec![rows]), second: Samples::new(vec![tiles]) },
        };
        few_tokens(&times.iter().map(both).collect::<Vec<_>>())
    }

    #[test]
    fn rows_end_before_the_first_step_at_which_tiles_are_faster() {
        assert_eq!(few(&[(8, 2.0, 1.0), (12, 1.0, 2.0), (16, 2.0, 2.0), (24, 3.0, 2.0), (32, 1.0, 2.0)]), 16);
        assert_eq!(few(&[(8, 1.0, 2.0), (12, 3.0, 2.0), (16, 1.0, 2.0)]), FEW_TOKENS);
        assert_eq!(few(&[(12, 1.0, 2.0), (64, 1.0, 2.0)]), 64);
        assert_eq!(few(&[(1, 1.0, 2.0)]), FEW_TOKENS);
    }
}
