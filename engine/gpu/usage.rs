//! How much memory the buffers of a device take.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of the buffers that exist, and the most there were at once.
#[derive(Debug, Default)]
pub(super) struct Usage {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Usage {
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn forget_peak(&self) {
        self.peak.store(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The share of one buffer in a device's [`Usage`], as long as any range of it exists.
#[derive(Debug)]
pub(super) struct Share {
    usage: Arc<Usage>,
    bytes: u64,
}

impl Share {
    pub(super) fn new(usage: &Arc<Usage>, bytes: u64) -> Arc<Self> {
        let now = usage.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        usage.peak.fetch_max(now, Ordering::Relaxed);
        Arc::new(Self { usage: Arc::clone(usage), bytes })
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.usage.now.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
