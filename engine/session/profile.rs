//! One step with the time of every dispatch.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Span};
use crate::graph::fuse::Fusion;
use crate::kernels::Cost;
use crate::model::openelm::{Logits, StepShape};
use crate::quant::Format;
use crate::session::Session;
use crate::session::load::{Inner, KvFormat, Model};

/// One dispatch of a step, with what it has to move and compute.
#[derive(Clone, Debug)]
pub struct StepOp {
    /// Where in the model it stands, `layer.3/attn/qkv`.
    pub label: String,
    /// The kernel.
    pub kernel: &'static str,
    /// Its sizes and formats.
    pub shape: String,
    /// Bytes and operations.
    pub cost: Cost,
}

impl Inner {
    /// Returns the dispatches of a step of `tokens` tokens behind `position` cached ones.
    fn ops(&self, context: usize, position: usize, tokens: usize, logits: Logits) -> Vec<StepOp> {
        let step = self.step(StepShape { tokens, context, kv: self.kv.dtype(), logits });
        let op = |op: &crate::graph::Op| StepOp {
            label: op.label.clone(),
            kernel: op.kernel.name(),
            shape: op.kernel.shape(),
            cost: op.kernel.cost(position),
        };
        step.graph.ops().iter().map(op).collect()
    }
}

impl Model {
    /// Returns the device.
    pub fn gpu(&self) -> &Gpu {
        &self.inner().gpu
    }

    /// Returns the format in which weight matrices were asked for, or else are stored.
    pub fn format(&self) -> Format {
        self.inner().format
    }

    /// Returns the format of KV caches.
    pub fn kv(&self) -> KvFormat {
        self.inner().kv
    }

    /// Returns the fusion rules that are on.
    pub fn fusion(&self) -> &Fusion {
        &self.inner().fusion
    }

    /// Returns what a prefill of `tokens` tokens has to move and compute, in a session of `context` tokens of
    /// which `position` are cached.
    pub fn cost(&self, context: usize, position: usize, tokens: usize) -> Cost {
        let (model, mut sum) = (self.inner(), Cost::default());
        for first in (0..tokens).step_by(model.chunk) {
            let count = model.chunk.min(tokens - first);
            let logits = if first + count == tokens { Logits::Last } else { Logits::None };
            let ops = model.ops(context, position + first, count, logits);
            ops.into_iter().for_each(|op| sum += op.cost);
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
        let spans = self.steps.spans(&self.model, position, ids)?;
        self.forget_logits();
        self.history.extend_from_slice(ids);
        let ops = self.model.ops(self.context(), position, ids.len(), Logits::Last);
        Ok(ops.into_iter().zip(spans).collect())
    }

    /// Returns the time spent so far in recording and submitting steps, waiting for the device left out.
    pub fn host_time(&self) -> Duration {
        self.host_time
    }
}
