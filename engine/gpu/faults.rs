//! Errors that a device reports.

use std::sync::{Arc, Mutex, PoisonError};

/// The first error that a device's handlers received.
#[derive(Clone, Debug, Default)]
pub(super) struct Faults(Arc<Mutex<Fault>>);

#[derive(Debug, Default)]
struct Fault {
    message: Option<String>,
    lost: bool,
}

impl Faults {
    /// Collects the errors of a device that samara opened.
    pub(super) fn watching(device: &wgpu::Device) -> Self {
        let faults = Self::default();
        let (raised, lost) = (faults.clone(), faults.clone());
        device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| raised.note(error.to_string(), false)));
        device.set_device_lost_callback(move |_, message| {
            lost.note(format!("the device was lost: {message}"), true);
        });
        faults
    }

    fn note(&self, message: String, lost: bool) {
        let mut fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        fault.message.get_or_insert(message);
        fault.lost |= lost;
    }

    /// Returns the message, and clears it unless the device is lost.
    pub(super) fn take(&self) -> Option<String> {
        let mut fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.lost { fault.message.clone() } else { fault.message.take() }
    }
}
