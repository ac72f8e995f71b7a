//! The opened device: opening it, its settings, submissions to it, and waiting for them.

use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::adapter::{AdapterSummary, Backend, MEMORY_PERCENT, choose, enumerate, summary};
use crate::gpu::clock::Clock;
use crate::gpu::compiled::Pipelines;
use crate::gpu::counters::{Counters, Tally};
use crate::gpu::faults::Faults;
use crate::gpu::kept::Kept;
use crate::gpu::tuning::Tuning;
use crate::gpu::usage::Usage;
use crate::kernels::{Shaders, Tier};

/// How an adapter is chosen and opened.
#[derive(Clone, Debug)]
pub struct GpuOptions {
    /// Number or part of the name; without it the first, hardware before software.
    pub adapter: Option<String>,
    /// Graphics API to look in; without it all of the platform's.
    pub backend: Option<Backend>,
    /// Masks features above this tier.
    pub tier: Option<Tier>,
    /// Share of the adapter's memory that may be in use, by anyone, before it counts as full.
    pub memory_percent: u8,
}

impl Default for GpuOptions {
    fn default() -> Self {
        Self { adapter: None, backend: None, tier: None, memory_percent: MEMORY_PERCENT }
    }
}

/// An opened device with its queue and compiled kernels.
#[derive(Debug)]
pub struct Gpu {
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) pipelines: Pipelines,
    pub(super) usage: Arc<Usage>,
    summary: AdapterSummary,
    clock: Clock,
    shaders: Shaders,
    tuning: Tuning,
    tally: Tally,
    faults: Faults,
    /// How the adapter was chosen; `None` for a device that the caller opened.
    options: Option<GpuOptions>,
}

/// A submission to the queue, which can be waited for.
#[derive(Clone, Debug)]
pub struct Submission(wgpu::SubmissionIndex);

impl Gpu {
    /// Opens an adapter by number or part of its name; without a choice the first, hardware before
    /// software.
    ///
    /// `SAMARA_TIER=plain|f16|subgroup` in the environment masks features above that tier; `coop` adds
    /// matrix units of whichever shape the adapter has, `int8` dot products of integers with activations rounded to 8 bits.
    ///
    /// # Errors
    /// When there is no such adapter, or it does not offer the requested tier.
    pub fn open(choice: Option<&str>, backend: Option<Backend>) -> Result<Self> {
        let (adapter, tier) = (choice.map(str::to_owned), asked_tier()?);
        Self::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })
    }

    /// Opens an adapter as the options say.
    ///
    /// # Errors
    /// When there is no such adapter, or it does not offer the requested tier.
    pub fn open_with(options: &GpuOptions) -> Result<Self> {
        let found = enumerate(options.backend, options.memory_percent)?;
        let index = options.adapter.as_deref().map_or(Ok(0), |choice| choose(&found, choice))?;
        let adapter = &found[index];
        let mut summary = summary(index, adapter);
        if let Some(tier) = options.tier.map(|tier| tier.shaped_as(summary.offered())) {
            if !tier.within(summary.offered()) {
                let tiers: Vec<String> = summary.tiers().iter().map(Tier::to_string).collect();
                return Err(Error::Unsupported(format!(
                    "adapter `{}` runs tier {}, not the requested tier {tier}",
                    summary.name,
                    tiers.join(", ")
                )));
            }
            summary.tier = tier;
        }
        let mut required_features = wgpu::Features::empty();
        required_features.set(wgpu::Features::SHADER_F16, summary.tier.f16);
        required_features.set(wgpu::Features::SUBGROUP, summary.tier.subgroup);
        required_features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, summary.tier.coop.is_some());
        required_features |= adapter.features() & (Clock::FEATURES | wgpu::Features::PIPELINE_CACHE);
        // Kernels fit WebGPU's defaults, except for the size of buffers and, on matrix units, workgroup
        // memory.
        let offered = adapter.limits();
        let mut required_limits = wgpu::Limits::default().or_worse_values_from(&offered);
        required_limits.max_storage_buffer_binding_size = offered.max_storage_buffer_binding_size;
        required_limits.max_buffer_size = offered.max_buffer_size;
        required_limits.max_compute_workgroup_storage_size =
            offered.max_compute_workgroup_storage_size.min(Tier::COOP.workgroup_bytes());
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("samara"),
            required_features,
            required_limits,
            experimental_features: if summary.tier.coop.is_some() {
                experimental()
            } else {
                Default::default()
            },
            // Weights are few and large: in blocks of exactly their size nothing is left over.
            memory_hints: wgpu::MemoryHints::Manual {
                suballocated_device_memory_block_size: 4 << 20..8 << 20,
            },
            ..Default::default()
        }));
        let (device, queue) = opened
            .map_err(|e| Error::Unsupported(format!("adapter `{}` cannot be opened: {e}", summary.name)))?;
        let tuning = Tuning::of_user(&summary)?;
        let faults = Faults::watching(&device);
        let adapter = Some(index.to_string());
        let options = Some(GpuOptions { adapter, ..options.clone() });
        Ok(Self { options, ..Self::new(device, queue, summary, tuning, faults) })
    }

    /// Opens the same adapter once more, at another tier.
    ///
    /// # Errors
    /// When the adapter does not offer the tier, or the device is one that the caller opened.
    pub fn at_tier(&self, tier: Tier) -> Result<Self> {
        let options = self.options.as_ref().ok_or_else(|| {
            Error::Unsupported(
                "a device that the caller opened cannot be opened again at another tier".into(),
            )
        })?;
        let mut gpu = Self::open_with(&GpuOptions { tier: Some(tier), ..options.clone() })?;
        gpu.set_shaders(self.shaders.clone());
        Ok(gpu)
    }

    /// Takes a device that the caller opened; its tier follows from the features it was opened with.
    ///
    /// The device's handlers of uncaptured errors and of its loss stay the caller's: what wgpu reports there
    /// is not among the errors that samara returns.
    pub fn from_device(device: wgpu::Device, queue: wgpu::Queue) -> Self {
        let info = device.adapter_info();
        let summary = AdapterSummary::new(0, &info, device.features(), &device.limits(), None);
        // A wrong setting in the environment is no reason to reject a device.
        let tuning = Tuning::of_user(&summary).unwrap_or_default();
        Self::new(device, queue, summary, tuning, Faults::default())
    }

    fn new(
        device: wgpu::Device,
        queue: wgpu::Queue,
        summary: AdapterSummary,
        tuning: Tuning,
        faults: Faults,
    ) -> Self {
        Self {
            clock: Clock::of(device.features()),
            options: None,
            device,
            queue,
            summary,
            tuning,
            faults,
            pipelines: Pipelines::default(),
            usage: Arc::default(),
            shaders: Shaders::default(),
            tally: Tally::default(),
        }
    }

    /// Returns the files that replace built-in shaders.
    pub fn shaders(&self) -> &Shaders {
        &self.shaders
    }

    /// Replaces built-in shaders for every kernel that is built from now on.
    pub fn set_shaders(&mut self, shaders: Shaders) {
        self.shaders = shaders;
    }

    /// Returns the tuned values.
    pub fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// Sets the tuned values of every kernel that is built from now on.
    pub fn set_tuning(&mut self, tuning: Tuning) {
        self.tuning = tuning;
    }

    /// Caches what the driver compiles for a model's steps in a folder, and reuses what was compiled before
    /// ([`pipeline_folder`](super::pipeline_folder) is the user's). Without effect if the backend does not
    /// expose compiled pipelines.
    pub(crate) fn keep_pipelines(&mut self, folder: &Path) {
        self.pipelines.kept = Kept::open(&self.device, &self.summary, folder);
    }

    /// Returns the clock that times the device.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Chooses another clock.
    ///
    /// # Errors
    /// When the device does not have it.
    pub fn set_clock(&mut self, clock: Clock) -> Result<()> {
        let own = Clock::of(self.device.features());
        if clock > own {
            return Err(Error::Unsupported(format!(
                "adapter `{}` does not have {clock}; it has {own}",
                self.summary.name
            )));
        }
        self.clock = clock;
        Ok(())
    }

    /// Returns what was submitted to the device so far.
    pub fn counters(&self) -> Counters {
        self.tally.counters()
    }

    /// Returns the most bytes that samara's buffers took at once; a driver's own memory comes on top.
    pub fn peak_bytes(&self) -> u64 {
        self.usage.peak()
    }

    /// Resets the peak to what exists now.
    pub fn forget_peak(&self) {
        self.usage.forget_peak();
    }

    /// Submits an encoder and counts what it records.
    pub(super) fn submit(&self, encoder: wgpu::CommandEncoder, recorded: Counters) -> Submission {
        let submission = self.queue.submit([encoder.finish()]);
        self.tally.add(recorded);
        Submission(submission)
    }

    /// Returns the description of the adapter, with the tier in use.
    pub fn summary(&self) -> &AdapterSummary {
        &self.summary
    }

    /// Returns the tier in use.
    pub fn tier(&self) -> Tier {
        self.summary.tier
    }

    /// Reports an error that the device raised since the last call; the loss of the device, at every call.
    ///
    /// # Errors
    /// When it raised one: out of memory, lost, or a command it rejected.
    pub fn check(&self) -> Result<()> {
        match self.faults.take() {
            Some(message) => Err(Error::Gpu(format!("adapter `{}`: {message}", self.summary.name))),
            None => Ok(()),
        }
    }

    /// Submits what was written so far and waits until it is done.
    ///
    /// # Errors
    /// When the device was lost or raised an error.
    pub fn flush(&self) -> Result<()> {
        self.queue.submit([]);
        self.tally.add(Counters::submission(0, 0));
        self.wait()
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    /// When the device was lost or raised an error.
    pub fn wait(&self) -> Result<()> {
        self.poll(wgpu::PollType::wait_indefinitely())
    }

    /// Waits until a submission is done; later ones may still run.
    ///
    /// # Errors
    /// When the device was lost or raised an error.
    pub fn wait_for(&self, submission: &Submission) -> Result<()> {
        self.poll(wgpu::PollType::Wait { submission_index: Some(submission.0.clone()), timeout: None })
    }

    fn poll(&self, until: wgpu::PollType) -> Result<()> {
        let polled = self.device.poll(until);
        polled.map_err(|e| Error::Gpu(format!("adapter `{}`: {e}", self.summary.name)))?;
        self.check()
    }
}

/// Returns the tier that `SAMARA_TIER` in the environment requests.
///
/// # Errors
/// When it is no tier.
pub fn asked_tier() -> Result<Option<Tier>> {
    match std::env::var("SAMARA_TIER") {
        Ok(name) => name.parse().map(Some).map_err(|e| Error::Input(format!("SAMARA_TIER: {e}"))),
        Err(_) => Ok(None),
    }
}

/// Enables features that wgpu calls experimental.
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: the one such feature in use is cooperative matrices, and only at a tier with them; every kernel
    // that uses them loads and stores whole tiles within its buffers, as its cases check.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}
