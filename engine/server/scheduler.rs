//! The thread that owns the model: it admits prompts to the batch, steps it, and sends tokens.
//!
//! It never blocks on a client: each reply channel holds the whole answer, and disconnected clients are dropped before
//! the next step.
//!
//! An error ends only what it concerns: a broken sequence leaves the batch by itself, and prompts that cannot be scored
//! together are scored one by one. Only a device failure ends everything that runs on the device.

use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::health::Health;
use super::metrics::Metrics;
use super::queue::{Backlog, Event, Job, send};
use super::refusal::Refusal;
use crate::error::Error;
use crate::sampler::Sampler;
use crate::session::{
    BatchSession, Decoded, Model, Scorer, Scoring, SequenceId, SequenceOptions, TokenScore,
};

/// How often a failed device is probed while nothing runs.
const RETRY: Duration = Duration::from_secs(1);

/// A sequence of the batch.
#[derive(Debug)]
struct Running {
    id: SequenceId,
    reply: mpsc::Sender<Event>,
    /// Tokens that may still come.
    left: usize,
    /// When the last token came, or else the request.
    last: Instant,
    begun: bool,
    /// Tokens of its prompt not counted as read yet.
    unread: usize,
}

pub(super) struct Scheduler {
    backlog: Backlog,
    batch: BatchSession,
    scorer: Scorer,
    running: Vec<Running>,
    bos: u32,
    eos: u32,
    metrics: Metrics,
    health: Arc<Health>,
}

impl Scheduler {
    pub(super) fn new(
        model: &Model,
        batch: BatchSession,
        scorer: Scorer,
        backlog: Backlog,
        metrics: Metrics,
        health: Arc<Health>,
    ) -> Self {
        let (bos, eos) = (model.config().bos_token_id, model.config().eos_token_id);
        let running = Vec::with_capacity(batch.capacity());
        Self { backlog, batch, scorer, running, bos, eos, metrics, health }
    }

    /// Runs until no job can arrive and all are done.
    pub(super) fn run(mut self) {
        while self.receive() {
            self.turn();
        }
    }

    fn turn(&mut self) {
        self.forget_who_left();
        // A running sequence's next step shows whether the device works.
        if self.health.is_failing() && self.running.is_empty() {
            self.probe();
        }
        self.score();
        self.admit();
        self.step();
        self.metrics.running.set(self.running.len() as i64);
    }

    /// Takes jobs from the queue, and waits for one if there is nothing to do; returns whether there is, or may be.
    fn receive(&mut self) -> bool {
        let patience = self.health.is_failing().then_some(RETRY);
        self.backlog.receive(!self.running.is_empty(), patience)
    }

    /// Drops the prompts and sequences whose clients disconnected.
    fn forget_who_left(&mut self) {
        self.backlog.forget_who_left();
        let batch = &mut self.batch;
        self.running.retain(|sequence| {
            let gone = sequence.reply.is_closed();
            if gone {
                leave(batch, sequence.id);
            }
            !gone
        });
    }

    /// Scores the oldest prompts together.
    fn score(&mut self) {
        let jobs = self.backlog.take_unscored();
        if !jobs.is_empty() {
            self.score_together(jobs);
        }
    }

    fn score_together(&mut self, jobs: Vec<Job>) {
        // A prompt of one token has nothing to score.
        let (scorings, at): (Vec<Scoring>, Vec<usize>) = (0..jobs.len())
            .map(|at| (jobs[at].scoring(), at))
            .filter(|(scoring, _)| scoring.tokens.len() > 1)
            .unzip();
        match self.scorer.score(&scorings) {
            Ok(scored) => {
                let mut scores = vec![Vec::new(); jobs.len()];
                at.into_iter().zip(scored).for_each(|(at, scored)| scores[at] = scored);
                jobs.into_iter().zip(scores).for_each(|(job, scores)| self.scored(job, scores));
            }
            // One or some of them are at fault.
            Err(error) if jobs.len() > 1 && !is_of_device(&error) => {
                jobs.into_iter().for_each(|job| self.score_together(vec![job]));
            }
            Err(error) => {
                self.note(&error);
                jobs.iter().for_each(|job| send(&job.reply, Event::Failed(Refusal::failed(&error))));
            }
        }
    }

    /// Sends the scores of a prompt; the job ends with them or goes on to the batch.
    fn scored(&mut self, job: Job, mut scores: Vec<TokenScore>) {
        self.metrics.prompt_tokens.inc_by(job.prompt.len() as u64);
        let next = if job.ends_with_scores() { scores.pop() } else { None };
        send(&job.reply, Event::Prompt(scores));
        let Some(mut next) = next else { return self.backlog.push_scored(job) };
        let &(token, logprob) = next.top().first().expect("one was requested");
        (next.token, next.logprob) = (token, logprob);
        self.metrics.generated_tokens.inc();
        self.metrics.first_token.observe(job.arrived.elapsed().as_secs_f64());
        send(&job.reply, Event::Token(token, Some(next)));
        send(&job.reply, Event::End(if token == self.eos { "stop" } else { "length" }));
    }

    /// Fills the batch from the queue.
    fn admit(&mut self) {
        while self.running.len() < self.batch.capacity() {
            let Some(job) = self.backlog.take_waiting() else { return };
            if job.how.max_tokens == 0 {
                send(&job.reply, Event::End("length"));
                continue;
            }
            let options = Sampler::new(job.how.sampling.clone())
                .map(|sampler| SequenceOptions { sampler, logprobs: job.how.logprobs });
            match options.and_then(|options| self.batch.enqueue(&job.prompt, options)) {
                Ok(id) => {
                    let Job { prompt, how, reply, arrived: last, .. } = job;
                    // The scorer has already counted the prompts that it read.
                    let unread = if how.scores_prompt() { 0 } else { prompt.len() };
                    self.running.push(Running {
                        id,
                        reply,
                        left: how.max_tokens,
                        last,
                        begun: false,
                        unread,
                    });
                }
                Err(error) => {
                    self.note(&error);
                    send(&job.reply, Event::Failed(Refusal::failed(&error)));
                }
            }
        }
    }

    /// Computes and sends a token of every sequence.
    fn step(&mut self) {
        if self.running.is_empty() {
            return;
        }
        let decoded = match self.batch.step() {
            Ok(decoded) => decoded,
            Err(error) => return self.fail(&error),
        };
        self.health.recover();
        if !decoded.is_empty() {
            self.metrics.batch.observe(decoded.len() as f64);
        }
        let (now, metrics, running) = (Instant::now(), &self.metrics, &mut self.running);
        let mut ended = Vec::new();
        for &Decoded { sequence: id, token, logprob } in decoded {
            let Some(sequence) = running.iter_mut().find(|sequence| sequence.id == id) else { continue };
            let gap = if sequence.begun { &metrics.next_token } else { &metrics.first_token };
            gap.observe((now - sequence.last).as_secs_f64());
            metrics.generated_tokens.inc();
            metrics.prompt_tokens.inc_by(mem::take(&mut sequence.unread) as u64);
            (sequence.begun, sequence.last, sequence.left) = (true, now, sequence.left - 1);
            send(&sequence.reply, Event::Token(token, logprob));
            if token == self.eos {
                ended.push((id, "stop"));
            } else if sequence.left == 0 {
                ended.push((id, "length"));
            }
        }
        for (id, reason) in ended {
            self.end(id, reason);
        }
    }

    fn end(&mut self, id: SequenceId, reason: &'static str) {
        leave(&mut self.batch, id);
        if let Some(index) = self.running.iter().position(|sequence| sequence.id == id) {
            send(&self.running.remove(index).reply, Event::End(reason));
        }
    }

    /// Ends the sequences that a step broke: those that have left the batch, or all if none has.
    fn fail(&mut self, error: &Error) {
        self.note(error);
        let batch = &mut self.batch;
        if is_of_device(error) || self.running.iter().all(|sequence| batch.contains(sequence.id)) {
            batch.clear();
        }
        self.running.retain(|sequence| {
            let goes_on = batch.contains(sequence.id);
            if !goes_on {
                send(&sequence.reply, Event::Failed(Refusal::failed(error)));
            }
            goes_on
        });
    }

    /// Records that the device failed.
    fn note(&self, error: &Error) {
        tracing::error!("{error}");
        if is_of_device(error) {
            self.health.set(Some(error.to_string()));
        }
    }

    /// Probes whether the device works again, while nothing runs; if not, fails the waiting prompts.
    fn probe(&mut self) {
        debug_assert!(self.running.is_empty());
        self.batch.clear();
        match self
            .batch
            .join(&[self.bos], SequenceOptions::default())
            .and_then(|_| self.batch.step().map(|_| ()))
        {
            Ok(()) => self.health.recover(),
            Err(error) => {
                for job in self.backlog.drain() {
                    send(&job.reply, Event::Failed(Refusal::failed(&error)));
                }
            }
        }
        self.batch.clear();
    }
}

/// Returns whether an error is the device's and not the request's.
fn is_of_device(error: &Error) -> bool {
    matches!(error, Error::Gpu(_))
}

/// Takes a sequence out of the batch.
fn leave(batch: &mut BatchSession, id: SequenceId) {
    // The batch has it: no sequence fills its context, which has room for every requested token.
    let left = batch.leave(id);
    debug_assert!(left.is_ok(), "{left:?}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoadOptions;
    use crate::gpu::adapters;
    use crate::server::queue::Queue;
    use crate::server::request::How;

    /// A scheduler of the demo model; says so when there is no adapter, which is a failure with `REQUIRE_GPU=1`.
    fn scheduler() -> Option<(Scheduler, Queue)> {
        if let Err(error) = adapters(None) {
            assert!(
                std::env::var_os("REQUIRE_GPU").is_none_or(|value| value != "1"),
                "REQUIRE_GPU=1 but {error}"
            );
            eprintln!("skipped: no GPU adapter");
            return None;
        }
        let model = Model::load("demo", LoadOptions::default()).unwrap();
        let (queue, backlog) = Queue::new(4);
        let (batch, scorer) = (model.batch(2, Some(64)).unwrap(), model.scorer(2, Some(64)).unwrap());
        let (metrics, _) = Metrics::new();
        Some((Scheduler::new(&model, batch, scorer, backlog, metrics, Arc::default()), queue))
    }

    fn tokens(events: &mut mpsc::Receiver<Event>) -> usize {
        std::iter::from_fn(|| events.try_recv().ok())
            .filter(|event| matches!(event, Event::Token(..)))
            .count()
    }

    #[test]
    fn what_runs_outlives_an_error_of_something_else() {
        let Some((mut scheduler, queue)) = scheduler() else { return };
        let mut events = queue.push(vec![vec![1, 51, 87]], &How::greedy(8)).unwrap().remove(0);
        assert!(scheduler.receive());
        (0..3).for_each(|_| scheduler.turn());
        // As when there is no memory to score a prompt or to admit another one.
        scheduler.note(&Error::Gpu("made up".to_owned()));
        assert_eq!(scheduler.health.fault().as_deref(), Some("made up"));
        scheduler.turn();
        // Its next step shows that the device works.
        assert_eq!((scheduler.health.fault(), scheduler.running.len()), (None, 1));
        (0..8).for_each(|_| scheduler.turn());
        assert_eq!((tokens(&mut events), scheduler.running.len(), scheduler.batch.len()), (8, 0, 0));
    }

    #[test]
    fn a_device_that_fails_ends_what_runs_and_is_tried_before_more_does() {
        let Some((mut scheduler, queue)) = scheduler() else { return };
        let mut events = queue.push(vec![vec![1, 51, 87], vec![1, 40]], &How::greedy(8)).unwrap();
        assert!(scheduler.receive());
        (0..3).for_each(|_| scheduler.turn());
        scheduler.fail(&Error::Gpu("made up".to_owned()));
        assert_eq!((scheduler.running.len(), scheduler.batch.len()), (0, 0));
        for events in &mut events {
            let last = std::iter::from_fn(|| events.try_recv().ok()).last();
            assert!(matches!(last, Some(Event::Failed(_))), "{last:?}");
        }
        let mut events = queue.push(vec![vec![1, 51, 87]], &How::greedy(2)).unwrap().remove(0);
        assert!(scheduler.receive());
        (0..5).for_each(|_| scheduler.turn());
        assert_eq!((tokens(&mut events), scheduler.health.fault()), (2, None));
    }
}
