//! The queue: prompts on their way from requests to the scheduler, and the channels on which answers come back.
//!
//! A prompt takes a slot of the queue from its arrival until the batch takes it, or the scorer has done all of it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::refusal::Refusal;
use super::request::How;
use crate::sampler::Sampler;
use crate::session::{Scoring, TokenScore};

/// Tokens scored together while other prompts wait for their next token; one prompt may have more.
const SCORED_TOKENS: usize = 512;

/// An event of a prompt; the last is `End` or `Failed`.
#[derive(Debug)]
pub(super) enum Event {
    /// The scores of all tokens of the prompt but the first.
    Prompt(Vec<TokenScore>),
    Token(u32, Option<TokenScore>),
    /// OpenAI's reason why the text ended.
    End(&'static str),
    Failed(Refusal),
}

/// A prompt on its way through the engine.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) prompt: Vec<u32>,
    pub(super) how: How,
    /// Has room for the whole answer.
    pub(super) reply: mpsc::Sender<Event>,
    pub(super) arrived: Instant,
    /// Released as soon as the batch takes the prompt, or the scorer has done all of it.
    _slot: OwnedSemaphorePermit,
}

impl Job {
    /// Returns whether scoring the prompt also yields all that follows it: the likeliest token.
    pub(super) fn ends_with_scores(&self) -> bool {
        self.how.max_tokens == 1 && is_greedy(&self.how)
    }

    /// Returns what to score: all but the first token and, if that is all, what follows the last.
    pub(super) fn scoring(&self) -> Scoring {
        let mut tokens = self.prompt.clone();
        let wanted = self.how.logprobs.unwrap_or(0);
        if self.ends_with_scores() {
            // Any token will do: the likeliest one is listed with it.
            tokens.push(0);
            return Scoring { tokens, from: 1, top: wanted.max(1) };
        }
        Scoring { tokens, from: 1, top: wanted }
    }
}

fn is_greedy(how: &How) -> bool {
    Sampler::new(how.sampling.clone()).is_ok_and(|sampler| sampler.is_greedy())
}

/// Sends an event; the channel has room for it, and a disconnected client is dropped soon.
pub(super) fn send(reply: &mpsc::Sender<Event>, event: Event) {
    let sent = reply.try_send(event);
    debug_assert!(!matches!(sent, Err(mpsc::error::TrySendError::Full(_))));
}

/// The end of the queue where requests submit prompts.
#[derive(Debug)]
pub(super) struct Queue {
    slots: Arc<Semaphore>,
    capacity: usize,
    jobs: Sender<Job>,
}

impl Queue {
    /// Returns both ends of a queue.
    pub(super) fn new(capacity: usize) -> (Self, Backlog) {
        let (jobs, out) = channel();
        let backlog = Backlog { jobs: out, unscored: VecDeque::new(), waiting: VecDeque::new() };
        (Self { slots: Arc::new(Semaphore::new(capacity)), capacity, jobs }, backlog)
    }

    /// Returns the number of prompts that wait.
    pub(super) fn len(&self) -> usize {
        self.capacity - self.slots.available_permits()
    }

    /// Admits all of some prompts, or none, and returns the channels of their answers.
    pub(super) fn push(
        &self,
        prompts: Vec<Vec<u32>>,
        how: &How,
    ) -> Result<Vec<mpsc::Receiver<Event>>, Refusal> {
        let count = prompts.len();
        let busy = || Refusal::busy(count, self.slots.available_permits(), self.capacity);
        let wanted = u32::try_from(count).map_err(|_| busy())?;
        let mut slots = Arc::clone(&self.slots).try_acquire_many_owned(wanted).map_err(|_| busy())?;
        let arrived = Instant::now();
        let each = prompts.into_iter().map(|prompt| {
            // One event per token, one for the prompt, one for the end.
            let (reply, events) = mpsc::channel(how.max_tokens + 2);
            let slot = slots.split(1).ok_or_else(busy)?;
            let job = Job { prompt, how: how.clone(), reply, arrived, _slot: slot };
            self.jobs.send(job).map_err(|_| Refusal::stopped())?;
            Ok(events)
        });
        each.collect()
    }
}

/// The prompts that left the queue and are not started.
#[derive(Debug)]
pub(super) struct Backlog {
    jobs: Receiver<Job>,
    /// Prompts to score first.
    unscored: VecDeque<Job>,
    /// Prompts that the batch takes next.
    waiting: VecDeque<Job>,
}

impl Backlog {
    /// Takes jobs from the queue. If there is none and nothing else to do (not `busy`), waits for one: for `patience`,
    /// or without limit. Returns whether there is, or may be, something to do.
    pub(super) fn receive(&mut self, busy: bool, patience: Option<Duration>) -> bool {
        if !busy && self.is_empty() {
            let first = match patience {
                Some(patience) => self.jobs.recv_timeout(patience),
                None => self.jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match first {
                Ok(job) => self.take_in(job),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        loop {
            match self.jobs.try_recv() {
                Ok(job) => self.take_in(job),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return busy || !self.is_empty(),
            }
        }
    }

    fn take_in(&mut self, job: Job) {
        let line = if job.how.scores_prompt() { &mut self.unscored } else { &mut self.waiting };
        line.push_back(job);
    }

    fn is_empty(&self) -> bool {
        self.unscored.is_empty() && self.waiting.is_empty()
    }

    /// Drops the prompts whose clients disconnected.
    pub(super) fn forget_who_left(&mut self) {
        self.unscored.retain(|job| !job.reply.is_closed());
        self.waiting.retain(|job| !job.reply.is_closed());
    }

    /// Takes the oldest prompts to score: at most [`SCORED_TOKENS`] tokens, but at least one prompt.
    pub(super) fn take_unscored(&mut self) -> Vec<Job> {
        let (mut jobs, mut tokens) = (Vec::new(), 0);
        while let Some(job) = self.unscored.front() {
            tokens += job.prompt.len();
            if !jobs.is_empty() && tokens > SCORED_TOKENS {
                break;
            }
            jobs.extend(self.unscored.pop_front());
        }
        jobs
    }

    /// Adds a scored prompt to those that wait for the batch.
    pub(super) fn push_scored(&mut self, job: Job) {
        self.waiting.push_back(job);
    }

    /// Takes the next prompt for the batch.
    pub(super) fn take_waiting(&mut self) -> Option<Job> {
        self.waiting.pop_front()
    }

    /// Takes all prompts.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = Job> {
        self.unscored.drain(..).chain(self.waiting.drain(..))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Greedy with this many tokens, and the scores of the prompt.
    fn scored(max_tokens: usize) -> How {
        How { echo: true, logprobs: Some(0), ..How::greedy(max_tokens) }
    }

    fn prompts(lengths: &[usize]) -> Vec<Vec<u32>> {
        lengths.iter().map(|length| vec![1; *length]).collect()
    }

    fn lengths(jobs: &[Job]) -> Vec<usize> {
        jobs.iter().map(|job| job.prompt.len()).collect()
    }

    #[test]
    fn all_prompts_of_a_request_have_slots_until_they_are_begun_or_none_has() {
        let (queue, mut backlog) = Queue::new(3);
        let answers = queue.push(prompts(&[1, 2]), &How::greedy(5)).unwrap();
        assert_eq!((answers.len(), queue.len()), (2, 2));
        assert!(queue.push(prompts(&[3, 4]), &How::greedy(5)).is_err());
        assert_eq!(queue.len(), 2);
        assert!(backlog.receive(false, None));
        assert_eq!(queue.len(), 2);
        let first = backlog.take_waiting().unwrap();
        // One event per token, the prompt and the end.
        assert_eq!((first.prompt.len(), first.reply.max_capacity()), (1, 7));
        drop(first);
        assert_eq!(queue.len(), 1);
        let rest: Vec<Job> = backlog.drain().collect();
        assert_eq!((lengths(&rest), queue.len()), (vec![2], 1));
        drop(rest);
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn prompts_are_scored_in_order_and_as_many_together_as_fit() {
        let (queue, mut backlog) = Queue::new(8);
        let _answers = queue.push(prompts(&[SCORED_TOKENS + 1, 500, 12, 1]), &scored(4)).unwrap();
        let _answer = queue.push(prompts(&[2]), &How::greedy(4)).unwrap();
        assert!(backlog.receive(false, None));
        assert_eq!(lengths(&backlog.take_unscored()), [SCORED_TOKENS + 1]);
        let jobs = backlog.take_unscored();
        assert_eq!(lengths(&jobs), [500, 12]);
        // After those that waited already.
        jobs.into_iter().for_each(|job| backlog.push_scored(job));
        assert_eq!(lengths(&backlog.take_unscored()), [1]);
        let waiting: Vec<Job> = std::iter::from_fn(|| backlog.take_waiting()).collect();
        assert_eq!(lengths(&waiting), [2, 500, 12]);
    }

    #[test]
    fn who_left_is_forgotten_and_without_requests_there_is_an_end() {
        let (queue, mut backlog) = Queue::new(4);
        let gone = queue.push(prompts(&[1]), &How::greedy(1)).unwrap();
        let _waits = queue.push(prompts(&[2]), &How::greedy(1)).unwrap();
        let gone_too = queue.push(prompts(&[3]), &scored(1)).unwrap();
        assert!(backlog.receive(true, None));
        drop((gone, gone_too));
        backlog.forget_who_left();
        assert_eq!((lengths(&backlog.take_unscored()), queue.len()), (vec![], 1));
        drop(queue);
        assert!(backlog.receive(false, None));
        assert_eq!(backlog.take_waiting().unwrap().prompt.len(), 2);
        assert!(backlog.receive(true, None) && !backlog.receive(false, None));
    }

    #[test]
    fn an_empty_queue_is_waited_for_up_to_the_limit_and_a_stopped_one_refuses() {
        let (queue, mut backlog) = Queue::new(1);
        assert!(backlog.receive(false, Some(Duration::ZERO)) && backlog.receive(true, None));
        drop(backlog);
        assert!(queue.push(prompts(&[1]), &How::greedy(1)).is_err());
        assert_eq!(queue.len(), 0);
    }

    #[test]
    fn one_greedy_token_comes_with_the_scores_of_its_prompt() {
        let (queue, mut backlog) = Queue::new(2);
        let _answers = [1, 2].map(|tokens| queue.push(prompts(&[3]), &scored(tokens)).unwrap());
        assert!(backlog.receive(false, None));
        let jobs = backlog.take_unscored();
        let scorings: Vec<Scoring> = jobs.iter().map(Job::scoring).collect();
        assert_eq!(jobs.iter().map(Job::ends_with_scores).collect::<Vec<_>>(), [true, false]);
        assert_eq!(scorings.iter().map(|scoring| scoring.tokens.len()).collect::<Vec<_>>(), [4, 3]);
        assert_eq!(scorings.iter().map(|scoring| scoring.top).collect::<Vec<_>>(), [1, 0]);
    }
}
