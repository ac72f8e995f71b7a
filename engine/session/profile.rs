//! The time of every dispatch of a step, and what steps move and compute.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Span};
use crate::graph::fuse::Fusion;
use crate::graph::{Graph, Op};
use crate::kernels::Cost;
use crate::model::shape::{Logits, Sampling, StepShape};
use crate::quant::Format;
use crate::session::model::{Loaded, Model};
use crate::session::options::KvFormat;
use crate::session::sequence::{Held, Session};

/// One dispatch of a step, with what it moves and computes.
#[derive(Clone, Debug)]
pub struct StepOp {
    /// Where in the model it is, `layer.3/attn/qkv`.
    pub label: String,
    /// The kernel.
    pub kernel: &'static str,
    /// Its sizes and formats.
    pub shape: String,
    /// Bytes and operations.
    pub cost: Cost,
}

/// The dispatch counts of a prefill.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Dispatches.
    pub dispatches: usize,
    /// RMSNorms: 4 L + 1 in a step that ends with logits, whatever the fusion rules.
    pub norms: usize,
    /// Dispatches that compute nothing but norms.
    pub norm_dispatches: usize,
}

impl Loaded {
    /// Returns the graph of a step of `tokens` tokens after `position` cached ones.
    fn graph(&self, context: usize, position: usize, tokens: usize, logits: Logits) -> Graph {
        let sampling = (logits == Logits::Last).then_some(Sampling::Greedy);
        self.step(StepShape { logits, sampling, ..self.shape(context, position, tokens) }).graph
    }

    /// Yields the graphs of a prefill of `tokens` tokens after `position` cached ones, one per chunk, each with the
    /// number of tokens before it.
    fn graphs(&self, context: usize, position: usize, tokens: usize) -> impl Iterator<Item = (usize, Graph)> {
        (0..tokens).step_by(self.chunk).map(move |first| {
            let count = self.chunk.min(tokens - first);
            let logits = if first + count == tokens { Logits::Last } else { Logits::None };
            (position + first, self.graph(context, position + first, count, logits))
        })
    }
}

impl Model {
    /// Returns the device.
    pub fn gpu(&self) -> &Gpu {
        &self.loaded().gpu
    }

    /// Returns the format of weight matrices, as requested or else as stored.
    pub fn format(&self) -> Format {
        self.loaded().format
    }

    /// Returns the format of KV caches.
    pub fn kv(&self) -> KvFormat {
        self.loaded().kv
    }

    /// Returns the fusion rules that are on.
    pub fn fusion(&self) -> &Fusion {
        &self.loaded().fusion
    }

    /// Returns what a prefill of `tokens` tokens moves and computes, in a session of `context` tokens of which
    /// `position` are cached.
    pub fn cost(&self, context: usize, position: usize, tokens: usize) -> Cost {
        let mut sum = Cost::default();
        for (first, graph) in self.loaded().graphs(context, position, tokens) {
            graph.ops().iter().for_each(|op| sum += op.kernel.cost(first));
        }
        sum
    }

    /// Returns what a decode step of `sequences` sequences moves and computes, each with at most `context` tokens and
    /// `position` of them cached. A batch computes as many rows as the next power of two.
    ///
    /// # Panics
    /// When there are no sequences, or more than 64.
    pub fn step_cost(&self, context: usize, position: usize, sequences: usize) -> Cost {
        let model = self.loaded();
        let shape = StepShape::greedy(sequences.next_power_of_two(), context, model.kv.dtype());
        let batch = (sequences > 1).then_some(sequences + 1);
        let logits = if sequences > 1 { Logits::All } else { Logits::Last };
        let mut sum = Cost::default();
        let step = model.step(model.paths.apply(StepShape { logits, batch, ..shape }, position + 1));
        step.graph.ops().iter().for_each(|op| sum += op.kernel.cost(position));
        sum
    }

    /// Returns the dispatch counts of a prefill of `tokens` tokens; one token is a decode step.
    pub fn counts(&self, tokens: usize) -> Counts {
        let mut sum = Counts::default();
        for (_, graph) in self.loaded().graphs(tokens, 0, tokens) {
            sum.dispatches += graph.ops().len();
            sum.norms += graph.norms();
            sum.norm_dispatches += graph.norm_ops();
        }
        sum
    }
}

impl Session {
    /// Appends tokens as one step that ends with logits, and returns when each of its dispatches ran.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and when there are more tokens than one step takes.
    pub fn profile(&mut self, ids: &[u32]) -> Result<Vec<(StepOp, Span)>> {
        self.check(ids)?;
        if ids.len() > self.model.chunk {
            return Err(Error::Input(format!(
                "{} tokens are more than one step takes, {}",
                ids.len(),
                self.model.chunk
            )));
        }
        let position = self.position();
        self.held = Held::Unknown;
        let spans = self.state.spans(&self.model, position, ids)?;
        self.history.extend_from_slice(ids);
        let graph = self.model.graph(self.context(), position, ids.len(), Logits::Last);
        let op = |op: &Op| StepOp {
            label: op.label.clone(),
            kernel: op.kernel.name(),
            shape: op.kernel.shape(),
            cost: op.kernel.cost(position),
        };
        Ok(graph.ops().iter().map(op).zip(spans).collect())
    }

    /// Returns the CPU time that this thread has spent on recording and submitting steps, without the time in which a
    /// driver makes a submission wait for the one before.
    pub fn host_time(&self) -> Duration {
        self.host_time
    }
}
