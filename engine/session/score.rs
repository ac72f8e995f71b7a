//! Log-likelihoods of many sequences: rows of several share a step, so that weights are read once for a full chunk.
//!
//! Products are those of tiles whatever the number of rows, and attention goes row by row, so a score depends on the
//! tokens before it alone, bit for bit: not on what it is packed with. Sequences that begin alike take turns in a slot
//! of the cache, which keeps what they share.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::{BufferRange, Executor, Readback, Submission};
use crate::model::openelm::{Logits, StepShape};
use crate::session::load::{Inner, Model};
use crate::session::scores::{MAX_TOP, Scores, TokenScore};
use crate::session::step::{self, Bound};

/// Most sequences that share a step.
const MAX_SLOTS: usize = 64;
/// Rows of the least step, and of logits: fewer take a GPU as long.
const LEAST_ROWS: usize = 16;
/// Tokens from which on it pays to take turns for what two sequences share: they then have a step each, and a step of
/// few rows takes a GPU about as long as one of as many as these.
const SHARED: usize = 32;
/// Steps that are kept before all are built anew.
const KEPT: usize = 16;
/// Steps that are under way at once.
const IN_FLIGHT: usize = 2;

/// A sequence to score. What follows from a whole sequence is told by the likeliest of any token put behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scoring {
    /// Its tokens, at least two.
    pub tokens: Vec<u32>,
    /// Index of the first token that is scored, at least 1: nothing comes before the first one.
    pub from: usize,
    /// The likeliest tokens that are told beside each, at most [`MAX_TOP`].
    pub top: usize,
}

/// Scores sequences; see [`Model::scorer`].
///
/// # Examples
/// ```no_run
/// # fn main() -> samara::Result<()> {
/// use samara::session::Scoring;
///
/// let model = samara::Model::load("demo", samara::LoadOptions::default())?;
/// let mut scorer = model.scorer(16, None)?;
/// let scores = scorer.score(&[Scoring { tokens: vec![1, 51, 87, 40], from: 2, top: 0 }])?;
/// let sum: f32 = scores[0].iter().map(|score| score.logprob).sum();
/// println!("ln p(87, 40 | 1, 51) = {sum}");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Scorer {
    model: Arc<Inner>,
    context: usize,
    /// K and V of each layer, `[slots + 1, Hkv, S, Dh]`; the last slot is for rows without a token.
    caches: Vec<[BufferRange; 2]>,
    rope: BufferRange,
    ids: BufferRange,
    /// Position and slot of each row.
    places: BufferRange,
    logits: BufferRange,
    scores: Scores,
    built: HashMap<Key, Executor>,
    readbacks: Vec<Readback>,
    turn: usize,
    /// The tokens whose keys and values stand in each slot.
    held: Vec<Vec<u32>>,
}

/// What a step is built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    rows: usize,
    /// Rows with logits, the last ones.
    scored: usize,
    /// Workgroups that share keys.
    splits: usize,
}

/// A token of a sequence in a step.
#[derive(Clone, Copy, Debug)]
struct Row {
    request: usize,
    position: usize,
    slot: usize,
}

/// Sequences that take turns in a slot.
#[derive(Debug)]
struct Turns {
    requests: Range<usize>,
    slot: usize,
    /// Position of the next row of the first of them.
    next: usize,
}

/// A step that is under way.
#[derive(Debug)]
struct Flight {
    submission: Submission,
    readback: usize,
    key: Key,
    /// Those with scores, the last of the step.
    rows: Vec<Row>,
}

impl Model {
    /// Returns a scorer that takes at most `slots` sequences into a step, of at most `context` + 1 tokens each, as the
    /// last one is only scored; without a number, as many as the model was trained for.
    ///
    /// # Errors
    /// When `slots` is not within 1 to 64, `context` not within 1 to 2^20, or the device lacks memory or the largest
    /// binding for the caches of `slots` sequences and one more.
    pub fn scorer(&self, slots: usize, context: Option<usize>) -> Result<Scorer> {
        if !(1..=MAX_SLOTS).contains(&slots) {
            return Err(Error::Input(format!("{slots} sequences of a step are not within 1 to {MAX_SLOTS}")));
        }
        Scorer::new(self.shared(), slots, context.unwrap_or(self.config().max_context_length))
    }
}

impl Scorer {
    fn new(model: Arc<Inner>, slots: usize, context: usize) -> Result<Self> {
        step::check_context(context)?;
        let (gpu, rows) = (&model.gpu, model.chunk as u64);
        Ok(Self {
            context,
            caches: step::caches(&model, slots + 1, context)?,
            rope: step::rope(&model, context)?,
            ids: gpu.storage("ids of a scorer", rows * 4)?,
            places: gpu.storage("places of a scorer", rows * 8)?,
            logits: gpu.storage("logits of a scorer", rows * model.config.vocab_size as u64 * 4)?,
            scores: Scores::new(gpu, model.chunk)?,
            built: HashMap::new(),
            readbacks: (0..IN_FLIGHT).map(|_| Readback::new(gpu, rows * Scores::ROW_BYTES)).collect(),
            turn: 0,
            held: vec![Vec::with_capacity(context); slots],
            model,
        })
    }

    /// Builds steps of every number of rows that there is, with few keys and with many, and runs each once on rows without a
    /// token, so that no sequence waits later for the driver to compile. Steps with fewer logits than rows need no other
    /// pipelines.
    ///
    /// That takes some seconds at most where the driver has kept what it compiled, on a software adapter without it a minute.
    ///
    /// # Errors
    /// When the device lacks memory or fails.
    pub fn prepare(&mut self) -> Result<()> {
        let (gpu, most) = (Arc::clone(&self.model.gpu), self.model.chunk);
        gpu.write(&self.ids, 0, bytemuck::cast_slice(&vec![0u32; most]));
        gpu.write(&self.places, 0, bytemuck::cast_slice(&vec![[0, self.held.len() as u32]; most]));
        self.scores.aim(&gpu, &vec![0; most]);
        for rows in step::powers_of_two(LEAST_ROWS.min(most), most) {
            for splits in self.model.all_splits(self.context) {
                let key = Key { rows, scored: rows, splits };
                self.ensure(key)?;
                self.built[&key].run(&gpu);
            }
        }
        gpu.wait()?;
        gpu.save_pipelines();
        Ok(())
    }

    /// Returns the most tokens of a sequence but for its last.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Returns for each sequence the scores of its tokens from `from` on, each given all tokens before it.
    ///
    /// # Errors
    /// When a sequence has fewer than two tokens or too many, an id outside the vocabulary, nothing to score, or asks
    /// for too many likeliest tokens: then nothing is scored. When logits are no numbers or the device fails.
    pub fn score(&mut self, requests: &[Scoring]) -> Result<Vec<Vec<TokenScore>>> {
        requests.iter().enumerate().try_for_each(|(index, request)| self.check(index, request))?;
        let scored = self.run(requests);
        if scored.is_err() {
            // What stands in the cache is not known.
            self.held.iter_mut().for_each(Vec::clear);
        }
        scored
    }

    fn run(&mut self, requests: &[Scoring]) -> Result<Vec<Vec<TokenScore>>> {
        let mut scores: Vec<Vec<TokenScore>> =
            requests.iter().map(|request| Vec::with_capacity(request.tokens.len() - request.from)).collect();
        let (mut waiting, mut active) = (chains(requests), Vec::new());
        let mut flights = VecDeque::with_capacity(IN_FLIGHT);
        loop {
            let rows = self.next_rows(requests, &mut waiting, &mut active);
            let done = rows.is_empty();
            if !done {
                flights.push_back(self.submit(requests, rows)?);
            }
            if flights.len() == IN_FLIGHT || done {
                let Some(flight) = flights.pop_front() else { return Ok(scores) };
                self.receive(requests, &flight, &mut scores)?;
            }
        }
    }

    /// Returns the rows of the next step, a full one if there are enough, and notes what they leave in the slots.
    fn next_rows(
        &mut self,
        requests: &[Scoring],
        waiting: &mut VecDeque<Range<usize>>,
        active: &mut Vec<Turns>,
    ) -> Vec<Row> {
        let mut rows = Vec::with_capacity(self.model.chunk);
        for turns in active.iter_mut() {
            self.take(requests, turns, &mut rows);
        }
        // Slots that become free in this step are for the next one.
        let mut free: Vec<usize> =
            (0..self.held.len()).filter(|&slot| active.iter().all(|turns| turns.slot != slot)).collect();
        active.retain(|turns| !turns.requests.is_empty());
        while rows.len() < self.model.chunk && !free.is_empty() {
            let Some(chain) = waiting.pop_front() else { break };
            let first = &requests[chain.start];
            // The slot that holds most of its beginning; of equals the one that holds least.
            let best = (0..free.len())
                .max_by_key(|&at| {
                    let held = &self.held[free[at]];
                    (shared(held, &first.tokens), usize::MAX - held.len())
                })
                .unwrap_or(0);
            let slot = free.swap_remove(best);
            let mut turns = Turns { requests: chain, slot, next: self.begin(slot, first) };
            self.take(requests, &mut turns, &mut rows);
            if !turns.requests.is_empty() {
                active.push(turns);
            }
        }
        rows
    }

    /// Takes rows of the sequence whose turn it is, as many as there is room for.
    fn take(&mut self, requests: &[Scoring], turns: &mut Turns, rows: &mut Vec<Row>) {
        let (request, slot) = (turns.requests.start, turns.slot);
        let tokens = &requests[request].tokens;
        let end = (turns.next + self.model.chunk - rows.len()).min(tokens.len() - 1);
        rows.extend((turns.next..end).map(|position| Row { request, position, slot }));
        self.held[slot].extend(&tokens[turns.next..end]);
        turns.next = end;
        if end + 1 == tokens.len() {
            turns.requests.start += 1;
            if let Some(next) = requests.get(turns.requests.start).filter(|_| !turns.requests.is_empty()) {
                turns.next = self.begin(slot, next);
            }
        }
    }

    /// Returns the position at which a sequence goes on behind what a slot holds of it, and forgets the rest.
    fn begin(&mut self, slot: usize, request: &Scoring) -> usize {
        let held = &mut self.held[slot];
        let next = shared(held, &request.tokens).min(request.from - 1);
        held.truncate(next);
        next
    }

    /// Submits a step.
    fn submit(&mut self, requests: &[Scoring], mut rows: Vec<Row>) -> Result<Flight> {
        let is_scored = |row: &Row| row.position + 1 >= requests[row.request].from;
        // Those with logits stand last; a row's place in the step makes no difference to it.
        rows.sort_by_key(is_scored);
        let scored = rows.iter().filter(|row| is_scored(row)).count();
        let filled = size(rows.len(), self.model.chunk);
        let seen = rows.iter().map(|row| row.position + 1).max().unwrap_or(0);
        // A step without logits would end with other kernels, whose keys may differ in their last bits.
        let logits = size(scored, filled);
        let key = Key { rows: filled, scored: logits, splits: self.model.splits(seen) };
        self.ensure(key)?;

        // A row without a token is at the start of a slot that nobody reads.
        let idle = filled - rows.len();
        let (mut ids, mut places) = (vec![0; idle], vec![[0, self.held.len() as u32]; idle]);
        ids.extend(rows.iter().map(|row| requests[row.request].tokens[row.position]));
        places.extend(rows.iter().map(|row| [row.position as u32, row.slot as u32]));
        let target = |row: &Row| requests[row.request].tokens[row.position + 1];
        let targets: Vec<u32> =
            std::iter::repeat_n(0, idle).chain(rows.iter().map(target)).skip(filled - logits).collect();
        let gpu = &self.model.gpu;
        gpu.write(&self.ids, 0, bytemuck::cast_slice(&ids));
        gpu.write(&self.places, 0, bytemuck::cast_slice(&places));
        self.scores.aim(gpu, &targets);
        let [values, likeliest] = self.scores.ranges(logits);
        let (executor, readback) = (&self.built[&key], self.turn);
        self.turn = (self.turn + 1) % IN_FLIGHT;
        let ranges = [&values, &likeliest];
        let submission = executor.run_and_copy(gpu, 1, &ranges, &self.readbacks[readback]);
        gpu.check()?;
        Ok(Flight { submission, readback, key, rows: rows.split_off(rows.len() - scored) })
    }

    /// Waits for a step and adds its scores.
    fn receive(&self, requests: &[Scoring], flight: &Flight, scores: &mut [Vec<TokenScore>]) -> Result<()> {
        let Flight { submission, readback, key, rows } = flight;
        if rows.is_empty() {
            return Ok(());
        }
        let bytes = key.scored as u64 * Scores::ROW_BYTES;
        self.readbacks[*readback].map(&self.model.gpu, submission, bytes, |bytes| {
            for (row, of) in (key.scored - rows.len()..).zip(rows) {
                let Scoring { tokens, top, .. } = &requests[of.request];
                let target = tokens[of.position + 1];
                let score = Scores::of_row(bytes, key.scored, row, target, *top).ok_or_else(|| {
                    let (position, request) = (of.position + 1, of.request);
                    Error::Model(format!(
                        "the logits at position {position} of sequence {request} are no numbers"
                    ))
                })?;
                scores[of.request].push(score);
            }
            Ok(())
        })?
    }

    fn ensure(&mut self, key: Key) -> Result<()> {
        if self.built.contains_key(&key) {
            return Ok(());
        }
        if self.built.len() >= KEPT {
            self.built.clear();
        }
        let (model, Key { rows, scored, splits }) = (&self.model, key);
        let shape = StepShape {
            logits: Logits::Rows(scored),
            sampling: None,
            scored: true,
            batch: Some(self.held.len() + 1),
            packed: true,
            splits,
            ..StepShape::greedy(rows, self.context, model.kv.dtype())
        };
        let step = model.step(shape);
        let mut bound = Bound::of_step(model, &step, &self.caches)?;
        bound.set(step.ids, vec![self.ids.slice(0, rows as u64 * 4)]);
        bound.set(step.position, vec![self.places.slice(0, rows as u64 * 8)]);
        bound.set(step.rope, vec![self.rope.clone()]);
        if let Some(logits) = step.logits {
            let bytes = (scored * model.config.vocab_size) as u64 * 4;
            bound.set(logits, vec![self.logits.slice(0, bytes)]);
            self.scores.bind(&mut bound, &step, scored);
        }
        let executor = bound.executor(model, &step)?;
        self.built.insert(key, executor);
        Ok(())
    }

    /// Refuses a sequence that cannot be scored.
    fn check(&self, index: usize, request: &Scoring) -> Result<()> {
        let Scoring { tokens, from, top } = request;
        let (count, vocab) = (tokens.len(), self.model.config.vocab_size);
        let refuse = |why: String| Err(Error::Input(format!("sequence {index} {why}")));
        if count < 2 || !(1..count).contains(from) {
            return refuse(format!(
                "has {count} tokens and is to be scored from token {from}: nothing comes before"
            ));
        }
        if count - 1 > self.context {
            let most = self.context + 1;
            return refuse(format!(
                "has {count} tokens: a context of {} scores at most {most}",
                self.context
            ));
        }
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return refuse(format!("has token id {id}, which is outside the vocabulary of {vocab}"));
        }
        if *top > MAX_TOP {
            return refuse(format!("asks for the {top} likeliest tokens: there are at most {MAX_TOP}"));
        }
        Ok(())
    }
}

/// Returns how many tokens two sequences begin with alike.
fn shared(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Returns the rows that are computed for so many.
fn size(rows: usize, most: usize) -> usize {
    rows.next_power_of_two().max(LEAST_ROWS).min(most)
}

/// Returns which neighbours take turns, as the later one saves enough.
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
    fn neighbours_take_turns_only_where_they_share_enough() {
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
    fn steps_come_in_few_sizes() {
        assert_eq!([1, 16, 17, 100, 128].map(|rows| size(rows, 128)), [16, 16, 32, 128, 128]);
        assert_eq!([1, 5, 7].map(|rows| size(rows, 7)), [7, 7, 7]);
    }
}
