//! Throughput of a model in llama-bench's terms: `pp` (prompt processing) and `tg` (token generation), at a
//! depth of cached tokens, in one sequence or a batch.
//!
//! Generation is greedy through [`Session`] or [`BatchSession`]: tokens are chosen on the device and their ids read
//! back, as for a user; tokenizing is not part of it. The model is checked first ([`verify`](super::verify)).

use std::fmt;
use std::time::Instant;

use super::document::{BenchRow, Ceilings, Environment, Subject};
use super::samples::Samples;
use super::verify::{greedy, greedy_by};
use crate::error::Result;
use crate::gpu::Counters;
use crate::kernels::Cost;
use crate::model::synth;
use crate::session::{BatchSession, Model, SequenceOptions, Session};

/// Tokens that warm generation up.
const WARM_UP: usize = 8;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Test {
    /// Prompt tokens that are prefilled.
    pub prompt: usize,
    /// Tokens that are generated.
    pub generated: usize,
    /// Tokens cached before the test.
    pub depth: usize,
    /// Sequences of the batch; 1 is a single session.
    pub batch: usize,
}

impl Test {
    /// Tokens of all sequences.
    fn tokens(self) -> usize {
        self.batch * (self.prompt + self.generated)
    }

    /// Tokens in the cache of a sequence at the end, with the one that a batch runs ahead.
    fn context(self) -> usize {
        self.depth + self.prompt.max(1) + self.generated
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut name = match (self.prompt, self.generated) {
            (prompt, 0) => format!("pp{prompt}"),
            (0, generated) => format!("tg{generated}"),
            (prompt, generated) => format!("pp{prompt}+tg{generated}"),
        };
        if self.batch > 1 {
            name += &format!(" x {}", self.batch);
        }
        if self.depth > 0 {
            name += &format!(" @ d{}", self.depth);
        }
        f.pad(&name)
    }
}

/// How often a test is repeated.
#[derive(Clone, Copy, Debug)]
pub struct Repetitions {
    /// Runs that are timed, at least 1.
    pub timed: usize,
    /// Whether the shapes of the test run once before.
    pub warm_up: bool,
    /// Tokens per submission; without a number the session chooses. A batch submits step by step.
    pub per_submit: Option<usize>,
}

/// Times one test of a model; calls `done` after every run.
///
/// # Errors
/// When the device fails or lacks memory.
pub fn bench(
    model: &Model,
    environment: &Environment,
    subject: &Subject,
    ceilings: Ceilings,
    test: Test,
    repetitions: Repetitions,
    mut done: impl FnMut(),
) -> Result<BenchRow> {
    model.gpu().forget_peak();
    let mut under_test = UnderTest::new(model, test)?;
    if repetitions.warm_up {
        under_test.run(model, test, test.generated.min(WARM_UP), repetitions.per_submit)?;
        done();
    }
    let mut runs = Vec::with_capacity(repetitions.timed);
    for _ in 0..repetitions.timed {
        runs.push(under_test.run(model, test, test.generated, repetitions.per_submit)?);
        done();
    }
    let cost = cost(model, test);
    let tokens = test.tokens() as f64;
    let of = |value: fn(&Run) -> f64| Samples::new(runs.iter().map(value).collect());
    let tok_s = Samples::new(runs.iter().map(|run| tokens / run.seconds).collect());
    let moved_gb_s = cost.bytes() as f64 / tokens * tok_s.median() * 1e-9;
    Ok(BenchRow {
        environment: environment.clone(),
        subject: subject.clone(),
        ceilings,
        test: test.to_string(),
        prompt: test.prompt,
        generated: test.generated,
        depth: test.depth,
        batch: test.batch,
        first_token_ms: of(|run| run.first_token * 1e3),
        dispatches_per_token: of(|run| run.counters.dispatches as f64).median() / tokens,
        submits_per_token: of(|run| run.counters.submits as f64).median() / tokens,
        host_us_per_token: Samples::new(runs.iter().map(|run| run.host_seconds * 1e6 / tokens).collect()),
        bytes_read_per_token: cost.read as f64 / tokens,
        moved_gb_s,
        bandwidth_share: moved_gb_s / ceilings.copy_gb_s,
        peak_bytes: model.gpu().peak_bytes(),
        tok_s,
    })
}

/// The times and counts of one run of a test.
struct Run {
    seconds: f64,
    first_token: f64,
    host_seconds: f64,
    counters: Counters,
}

/// What generates, with its prompt.
enum UnderTest {
    Alone(Box<Session>, Vec<u32>),
    Together(Box<BatchSession>, Vec<u32>),
}

impl UnderTest {
    fn new(model: &Model, test: Test) -> Result<Self> {
        let ids = synth::prompt(model.config().vocab_size, test.depth + test.prompt.max(1));
        if test.batch > 1 {
            let batch = model.batch(test.batch, Some(test.context()))?;
            return Ok(Self::Together(Box::new(batch), ids));
        }
        let mut session = model.session(Some(test.context()))?;
        if test.depth > 0 {
            session.prefill(&ids[..test.depth])?;
            session.next_greedy()?;
        }
        Ok(Self::Alone(Box::new(session), ids[test.depth..].to_vec()))
    }

    fn run(&mut self, model: &Model, test: Test, generated: usize, per_submit: Option<usize>) -> Result<Run> {
        match self {
            Self::Alone(session, prompt) => alone(session, model, test, prompt, generated, per_submit),
            Self::Together(batch, prompt) => together(batch, model, test, prompt, generated),
        }
    }
}

/// Runs a test after the first `test.depth` tokens of a session.
fn alone(
    session: &mut Session,
    model: &Model,
    test: Test,
    prompt: &[u32],
    generated: usize,
    per_submit: Option<usize>,
) -> Result<Run> {
    session.rollback(test.depth)?;
    model.gpu().wait()?;
    let (host, before, start) = (session.host_time(), model.gpu().counters(), Instant::now());
    // Without a prompt the first token is fed, so that each generated one is a step.
    let first = greedy(session, prompt, 1)?[0];
    let first_token = start.elapsed().as_secs_f64();
    let rest = if test.prompt == 0 { generated - 1 } else { generated };
    if rest > 0 {
        greedy_by(session, &[first], rest, per_submit)?;
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), model.gpu().counters());
    let host_seconds = (session.host_time() - host).as_secs_f64();
    Ok(Run { seconds, first_token, host_seconds, counters: after - before })
}

/// Runs a test in a batch. Every sequence has the same prompt, which is timed only if the test has one.
fn together(
    batch: &mut BatchSession,
    model: &Model,
    test: Test,
    prompt: &[u32],
    generated: usize,
) -> Result<Run> {
    batch.clear();
    if test.prompt == 0 {
        (0..test.batch).try_for_each(|_| batch.join(prompt, SequenceOptions::default()).map(drop))?;
    }
    model.gpu().wait()?;
    let (host, before, start) = (batch.host_time(), model.gpu().counters(), Instant::now());
    if test.prompt > 0 {
        (0..test.batch).try_for_each(|_| batch.join(prompt, SequenceOptions::default()).map(drop))?;
    }
    // First the tokens that the prompts chose, then those of each step, without waiting for the step ahead.
    batch.step()?;
    let mut first_token = start.elapsed().as_secs_f64();
    for step in 0..generated {
        batch.step()?;
        if step == 0 && test.prompt == 0 {
            first_token = start.elapsed().as_secs_f64();
        }
    }
    let (seconds, after) = (start.elapsed().as_secs_f64(), model.gpu().counters());
    let host_seconds = (batch.host_time() - host).as_secs_f64();
    Ok(Run { seconds, first_token, host_seconds, counters: after - before })
}

/// Returns what a test has to move and compute.
fn cost(model: &Model, test: Test) -> Cost {
    let context = test.context();
    let mut sum = Cost::default();
    if test.prompt > 0 {
        (0..test.batch).for_each(|_| sum += model.cost(context, test.depth, test.prompt));
    }
    let first = test.depth + if test.batch > 1 { test.prompt.max(1) } else { test.prompt };
    (first..first + test.generated)
        .for_each(|position| sum += model.step_cost(context, position, test.batch));
    sum
}
