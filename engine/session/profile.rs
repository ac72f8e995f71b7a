//! One step with the time of every dispatch.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::{Gpu, Span};
use crate::kernels::Cost;
use crate::model::openelm::{Logits, StepShape};
use crate::session::Session;
use crate::session::load::{Inner, Model};

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

    /// Returns what [`prefill`](Self::prefill) of `tokens` tokens would move and compute from here.
    pub fn cost(&self, tokens: usize) -> Cost {
        let mut sum = Cost::default();
        for first in (0..tokens).step_by(self.model.chunk) {
            let count = self.model.chunk.min(tokens - first);
            let logits = if first + count == tokens { Logits::Last } else { Logits::None };
            let ops = self.model.ops(self.context(), self.position() + first, count, logits);
            ops.into_iter().for_each(|op| sum += op.cost);
        }
        sum
    }

    /// Returns the time spent so far in recording and submitting steps, waiting for the device left out.
    pub fn host_time(&self) -> Duration {
        self.host_time
    }
}
