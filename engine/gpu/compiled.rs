//! The compiled kernels of a device: one pipeline for each distinct text and set of overrides.

use std::collections::HashMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::gpu::kept::Kept;

/// A compiled kernel with the layouts of its bind groups.
#[derive(Debug)]
pub(super) struct Pipeline {
    pub(super) pipeline: wgpu::ComputePipeline,
    pub(super) layouts: Vec<wgpu::BindGroupLayout>,
}

/// What makes two pipelines the same: the text, the overrides' bits and how many planes the weights have.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct PipelineKey {
    pub(super) text: String,
    pub(super) overrides: Vec<(&'static str, u64)>,
    pub(super) planes: usize,
}

/// A pipeline, once it is compiled; locked during compilation, so that only callers that need it wait.
pub(super) type Slot = Arc<Mutex<Option<Arc<Pipeline>>>>;

/// The pipelines compiled so far.
#[derive(Debug, Default)]
pub(super) struct Pipelines {
    slots: Mutex<HashMap<PipelineKey, Slot>>,
    pub(super) compiled: AtomicUsize,
    /// What the driver keeps between runs.
    pub(super) kept: Option<Kept>,
}

impl Pipelines {
    pub(super) fn slot(&self, key: PipelineKey) -> Slot {
        Arc::clone(locked(&self.slots).entry(key).or_default())
    }
}

pub(super) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
