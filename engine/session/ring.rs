//! Results on their way to the host: copies that are in flight while the next steps run.

use crate::error::Result;
use crate::gpu::{BufferRange, Executor, Gpu, Readback, Submission};

/// Submissions in flight at once: one runs while the next one waits.
pub(super) const IN_FLIGHT: usize = 2;

/// The buffers that submissions copy to, used one after another.
#[derive(Debug)]
pub(super) struct Ring {
    readbacks: [Readback; IN_FLIGHT],
    next: usize,
}

/// A submission whose copy has not been read yet.
#[derive(Debug)]
pub(super) struct InFlight {
    submission: Submission,
    readback: usize,
}

impl Ring {
    /// Allocates buffers for copies of at most `bytes`.
    pub(super) fn new(gpu: &Gpu, bytes: u64) -> Self {
        Self { readbacks: [(); IN_FLIGHT].map(|()| Readback::new(gpu, bytes)), next: 0 }
    }

    /// Submits a step `rounds` times, then a copy of `ranges`, and does not wait. The copy has to be read before
    /// [`IN_FLIGHT`] further submissions.
    pub(super) fn run(
        &mut self,
        gpu: &Gpu,
        executor: &Executor,
        rounds: usize,
        ranges: &[&BufferRange],
    ) -> InFlight {
        let readback = self.next;
        self.next = (readback + 1) % IN_FLIGHT;
        InFlight {
            submission: executor.run_and_copy(gpu, rounds, ranges, &self.readbacks[readback]),
            readback,
        }
    }

    /// Waits for a submission and passes the first `bytes` of its copy to `take`.
    pub(super) fn read<R>(
        &self,
        gpu: &Gpu,
        flight: &InFlight,
        bytes: u64,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        self.readbacks[flight.readback].map(gpu, &flight.submission, bytes, take)
    }
}

/// Yields the ids in bytes that were read back.
pub(super) fn words(bytes: &[u8]) -> impl Iterator<Item = u32> {
    bytes.chunks_exact(4).map(|word| u32::from_le_bytes([word[0], word[1], word[2], word[3]]))
}
