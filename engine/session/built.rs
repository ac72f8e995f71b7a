//! Built steps, cached by shape.

use std::collections::HashMap;

use crate::error::Result;
use crate::gpu::Executor;
use crate::kernels::FEW_TOKENS;
use crate::model::shape::StepShape;
use crate::session::buffers::StepBuffers;
use crate::session::model::Loaded;

/// Steps on the same buffers, ready to run.
#[derive(Debug)]
pub(super) struct Built {
    executors: HashMap<StepShape, Executor>,
    /// Most cached steps of many tokens; one more drops them all. Their activations are large, and prompts have any
    /// length. Steps of few tokens are few and always cached.
    kept: usize,
}

impl Built {
    pub(super) fn new(kept: usize) -> Self {
        Self { executors: HashMap::new(), kept }
    }

    /// Returns the step of a shape, building it if missing. The buffers must already hold what it needs.
    pub(super) fn step(
        &mut self,
        model: &Loaded,
        shape: StepShape,
        buffers: &StepBuffers,
    ) -> Result<&Executor> {
        if !self.executors.contains_key(&shape) {
            let many = |shape: &StepShape| shape.tokens > FEW_TOKENS;
            if many(&shape) && self.executors.keys().filter(|shape| many(shape)).count() >= self.kept {
                self.executors.retain(|shape, _| !many(shape));
            }
            let step = model.step(shape);
            let executor = buffers.bind(model, &step, shape.logits)?.executor(model, &step)?;
            self.executors.insert(shape, executor);
        }
        Ok(&self.executors[&shape])
    }
}

/// Yields `least` and its doubles below `most`, and `most`: the numbers of rows for which steps are built ahead.
pub(super) fn powers_of_two(least: usize, most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(least), |rows| Some(rows * 2))
        .take_while(move |&rows| rows < most)
        .chain([most])
}
