//! Counters of what was submitted to a device.

use std::sync::atomic::{AtomicU64, Ordering};

/// What was submitted to a device since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Submissions to the queue.
    pub submits: u64,
    /// Compute passes in them.
    pub passes: u64,
    /// Dispatches in them.
    pub dispatches: u64,
}

impl Counters {
    /// Returns the counts of one submission with this many passes and dispatches.
    pub(super) fn submission(passes: usize, dispatches: usize) -> Self {
        Self { submits: 1, passes: passes as u64, dispatches: dispatches as u64 }
    }
}

impl std::ops::Sub for Counters {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            submits: self.submits - before.submits,
            passes: self.passes - before.passes,
            dispatches: self.dispatches - before.dispatches,
        }
    }
}

/// The counters of a device; any thread may add to them.
#[derive(Debug, Default)]
pub(super) struct Tally {
    submits: AtomicU64,
    passes: AtomicU64,
    dispatches: AtomicU64,
}

impl Tally {
    pub(super) fn add(&self, more: Counters) {
        self.submits.fetch_add(more.submits, Ordering::Relaxed);
        self.passes.fetch_add(more.passes, Ordering::Relaxed);
        self.dispatches.fetch_add(more.dispatches, Ordering::Relaxed);
    }

    pub(super) fn counters(&self) -> Counters {
        Counters {
            submits: self.submits.load(Ordering::Relaxed),
            passes: self.passes.load(Ordering::Relaxed),
            dispatches: self.dispatches.load(Ordering::Relaxed),
        }
    }
}
