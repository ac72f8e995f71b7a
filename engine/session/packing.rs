//! Which rows of which sequences share a step of a [`Scorer`](super::Scorer).
//!
//! Sequences with a common prefix reuse one slot of the cache one after another, so the prefix is computed once. This
//! module knows tokens and slots, but no device.

use std::collections::VecDeque;
use std::ops::Range;

/// Fewest rows, and fewest rows of logits, of a step: fewer take a GPU as long.
pub(super) const LEAST_ROWS: usize = 16;
/// Shortest common prefix for which it pays to reuse a slot: the sequences then have a step each, and a step of few
/// rows takes a GPU about as long as one of this many.
const SHARED: usize = 32;

/// A sequence to score. To get the likeliest tokens after the whole sequence, append any token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// Its tokens, at least two.
    pub tokens: Vec<u32>,
    /// Index of the first token to score, at least 1: nothing precedes token 0.
    pub from: usize,
    /// Number of likeliest tokens to list with each, at most [`MAX_TOP`](super::MAX_TOP).
    pub top: usize,
}

/// A token of a sequence in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) request: usize,
    pub(super) position: usize,
    pub(super) slot: usize,
}

/// Sequences that use a slot one after another.
#[derive(Debug)]
struct Chain {
    requests: Range<usize>,
    slot: usize,
    /// Position of the next row of the first of these sequences.
    next: usize,
}

/// What the slots of a cache hold.
#[derive(Debug)]
pub(super) struct Slots {
    /// The tokens whose keys and values each slot holds.
    held: Vec<Vec<u32>>,
    /// Most rows of a step.
    rows: usize,
}

/// Requests that are being assigned to slots.
#[derive(Debug)]
pub(super) struct Packing<'a> {
    requests: &'a [Scoring],
    waiting: VecDeque<Range<usize>>,
    active: Vec<Chain>,
}

impl<'a> Packing<'a> {
    pub(super) fn new(requests: &'a [Scoring]) -> Self {
        Self { requests, waiting: chains(requests), active: Vec::new() }
    }
}

impl Slots {
    /// Returns empty slots for steps of at most `rows` rows.
    pub(super) fn new(slots: usize, context: usize, rows: usize) -> Self {
        Self { held: vec![Vec::with_capacity(context); slots], rows }
    }

    pub(super) fn len(&self) -> usize {
        self.held.len()
    }

    /// Empties all slots.
    pub(super) fn clear(&mut self) {
        self.held.iter_mut().for_each(Vec::clear);
    }

    /// Returns the rows of the next step, a full one if there are enough, and records their tokens in the slots.
    pub(super) fn next_rows(&mut self, packing: &mut Packing<'_>) -> Vec<Row> {
        let Packing { requests, waiting, active } = packing;
        let mut rows = Vec::with_capacity(self.rows);
        for chain in active.iter_mut() {
            self.take(requests, chain, &mut rows);
        }
        // Slots that become free in this step are used from the next one on.
        let mut free: Vec<usize> =
            (0..self.len()).filter(|&slot| active.iter().all(|chain| chain.slot != slot)).collect();
        active.retain(|chain| !chain.requests.is_empty());
        while rows.len() < self.rows && !free.is_empty() {
            let Some(range) = waiting.pop_front() else { break };
            let first = &requests[range.start];
            // The slot that holds the longest prefix of the sequence; among equals, the one that holds the fewest
            // tokens.
            let best = (0..free.len())
                .max_by_key(|&at| {
                    let held = &self.held[free[at]];
                    (shared(held, &first.tokens), usize::MAX - held.len())
                })
                .unwrap_or(0);
            let slot = free.swap_remove(best);
            let mut chain = Chain { requests: range, slot, next: self.begin(slot, first) };
            self.take(requests, &mut chain, &mut rows);
            if !chain.requests.is_empty() {
                active.push(chain);
            }
        }
        rows
    }

    /// Adds rows of the first sequence of a chain, as many as fit.
    fn take(&mut self, requests: &[Scoring], chain: &mut Chain, rows: &mut Vec<Row>) {
        let (request, slot) = (chain.requests.start, chain.slot);
        let tokens = &requests[request].tokens;
        let end = (chain.next + self.rows - rows.len()).min(tokens.len() - 1);
        rows.extend((chain.next..end).map(|position| Row { request, position, slot }));
        self.held[slot].extend(&tokens[chain.next..end]);
        chain.next = end;
        if end + 1 == tokens.len() {
            chain.requests.start += 1;
            if let Some(next) = requests.get(chain.requests.start).filter(|_| !chain.requests.is_empty()) {
                chain.next = self.begin(slot, next);
            }
        }
    }

    /// Truncates a slot to the prefix that a sequence can reuse, and returns the position from which to compute the
    /// rest.
    fn begin(&mut self, slot: usize, request: &Scoring) -> usize {
        let held = &mut self.held[slot];
        let next = shared(held, &request.tokens).min(request.from - 1);
        held.truncate(next);
        next
    }
}

/// Pads a number of rows to a power of two, at least [`LEAST_ROWS`] and at most `most`.
pub(super) fn filled(rows: usize, most: usize) -> usize {
    rows.next_power_of_two().max(LEAST_ROWS).min(most)
}

/// Returns the length of the common prefix of two sequences.
fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Groups neighbours that reuse one slot, because each saves enough by what the one before left.
fn chains(requests: &[Scoring]) -> VecDeque<Range<usize>> {
    let saves = |index: usize| {
        let [before, own] = [&requests[index - 1], &requests[index]];
        shared(&before.tokens[..before.tokens.len() - 1], &own.tokens).min(own.from - 1) >= SHARED
    };
    let mut chains: VecDeque<Range<usize>> = VecDeque::new();
    for index in 0..requests.len() {
        match chains.back_mut() {
            Some(chain) if saves(index) => chain.end = index + 1,
            _ => chains.push_back(index..index + 1),
        }
    }
    chains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(prefix: usize, own: u32) -> Scoring {
        let tokens: Vec<u32> = (0..prefix as u32).chain([own, own]).collect();
        Scoring { from: prefix, tokens, top: 0 }
    }

    #[test]
    fn neighbours_reuse_a_slot_only_where_they_share_enough() {
        let requests = [
            request(SHARED + 1, 100),
            request(SHARED + 1, 101),
            request(SHARED - 1, 102),
            request(SHARED - 1, 103),
            request(90, 104),
        ];
        assert_eq!(chains(&requests), [0..2, 2..3, 3..4, 4..5]);
        assert!(chains(&[]).is_empty());
    }

    #[test]
    fn a_common_prefix_is_computed_once_and_every_other_row_too() {
        let requests = [request(SHARED + 1, 100), request(SHARED + 1, 101), request(3, 102)];
        let (mut slots, mut packing) = (Slots::new(2, 64, 16), Packing::new(&requests));
        let steps: Vec<Vec<Row>> =
            std::iter::from_fn(|| Some(slots.next_rows(&mut packing)).filter(|rows| !rows.is_empty()))
                .collect();
        assert!(steps.iter().all(|rows| rows.len() <= 16), "{steps:?}");
        let mut rows: Vec<(usize, usize)> =
            steps.iter().flatten().map(|row| (row.request, row.position)).collect();
        rows.sort_unstable();
        // The last token of a sequence is only scored; the second sequence begins before its first scored token.
        let of = |request: usize, from: usize, to: usize| (from..to).map(move |at| (request, at));
        let expected: Vec<(usize, usize)> =
            of(0, 0, SHARED + 2).chain(of(1, SHARED, SHARED + 2)).chain(of(2, 0, 4)).collect();
        assert_eq!(rows, expected);
    }

    #[test]
    fn steps_come_in_few_sizes() {
        assert_eq!([1, 16, 17, 100, 128].map(|rows| filled(rows, 128)), [16, 16, 32, 128, 128]);
        assert_eq!([1, 5, 7].map(|rows| filled(rows, 7)), [7, 7, 7]);
    }
}
