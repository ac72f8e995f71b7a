//! Counters and times for Prometheus.

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// An answer's path and status.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Answer {
    pub(super) path: &'static str,
    pub(super) status: u16,
}

/// Handles of every metric; cloning shares them.
#[derive(Clone, Debug)]
pub(super) struct Metrics {
    pub(super) answers: Family<Answer, Counter>,
    pub(super) connections: Gauge,
    pub(super) queued: Gauge,
    pub(super) running: Gauge,
    pub(super) cancelled: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) generated_tokens: Counter,
    /// Seconds from the arrival of a request to a sequence's first token.
    pub(super) first_token: Histogram,
    /// Seconds between tokens of a sequence.
    pub(super) next_token: Histogram,
    /// Sequences per step.
    pub(super) batch: Histogram,
}

impl Metrics {
    /// Returns the metrics, and the registry that they are part of.
    pub(super) fn new() -> (Self, Registry) {
        // From half a millisecond to half a minute.
        let seconds = || Histogram::new(exponential_buckets(0.0005, 2.0, 17));
        let metrics = Self {
            answers: Family::default(),
            connections: Gauge::default(),
            queued: Gauge::default(),
            running: Gauge::default(),
            cancelled: Counter::default(),
            prompt_tokens: Counter::default(),
            generated_tokens: Counter::default(),
            first_token: seconds(),
            next_token: seconds(),
            batch: Histogram::new(exponential_buckets(1.0, 2.0, 7)),
        };
        (metrics.clone(), metrics.registry())
    }

    fn registry(self) -> Registry {
        let mut all = Registry::with_prefix("samara");
        all.register("requests", "Requests by path and status; 499: the client disconnected", self.answers);
        all.register("connections", "Open connections", self.connections);
        all.register("queue_depth", "Prompts in the queue", self.queued);
        all.register("running_sequences", "Sequences that decode", self.running);
        all.register("cancelled_sequences", "Prompts and sequences whose client left", self.cancelled);
        all.register("prompt_tokens", "Tokens of prompts read", self.prompt_tokens);
        all.register("generated_tokens", "Tokens generated", self.generated_tokens);
        all.register(
            "time_to_first_token_seconds",
            "Time from the arrival of a request to the first token",
            self.first_token,
        );
        all.register("time_per_token_seconds", "Time between tokens of a sequence", self.next_token);
        all.register("batch_size", "Sequences per step", self.batch);
        all
    }
}

/// Content type of [`page`].
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Returns the page that Prometheus reads.
pub(super) fn page(registry: &Registry) -> Result<String, std::fmt::Error> {
    let mut page = String::new();
    prometheus_text::encode(&mut page, registry)?;
    Ok(page)
}
