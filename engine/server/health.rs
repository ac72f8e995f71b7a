//! Whether the device works: the scheduler finds out, and `/health` reports it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

/// The device's error, if it fails.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Option<String>>, AtomicBool);

impl Health {
    pub(super) fn fault(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set(&self, fault: Option<String>) {
        self.1.store(fault.is_some(), Ordering::Relaxed);
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }

    /// Records that the device works again.
    pub(super) fn recover(&self) {
        if self.is_failing() {
            self.set(None);
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.1.load(Ordering::Relaxed)
    }
}
