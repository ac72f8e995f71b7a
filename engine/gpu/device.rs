//! Adapters, their tier, and the opened device.

use std::fmt;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::gpu::buffer::Usage;
use crate::gpu::pipeline::Pipelines;
use crate::gpu::timing::Clock;
use crate::gpu::tuning::Tuning;
use crate::kernels::{Shaders, Tier};

/// A graphics API that samara runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backend {
    /// Vulkan, on Linux, Windows and Android.
    Vulkan,
    /// Metal, on macOS and iOS.
    Metal,
    /// Direct3D 12, on Windows.
    Dx12,
}

impl Backend {
    const ALL: [Self; 3] = [Self::Vulkan, Self::Metal, Self::Dx12];

    fn bits(self) -> wgpu::Backends {
        match self {
            Self::Vulkan => wgpu::Backends::VULKAN,
            Self::Metal => wgpu::Backends::METAL,
            Self::Dx12 => wgpu::Backends::DX12,
        }
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vulkan => "vulkan",
            Self::Metal => "metal",
            Self::Dx12 => "dx12",
        })
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Self::ALL
            .into_iter()
            .find(|backend| backend.to_string() == name)
            .ok_or_else(|| Error::Input(format!("backend `{name}` is none of vulkan, metal, dx12")))
    }
}

/// What a person chooses an adapter by.
#[derive(Clone, Debug)]
pub struct AdapterSummary {
    /// Position in [`adapters`], the number that selects it.
    pub index: usize,
    /// The adapter's name.
    pub name: String,
    /// The graphics API.
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// `discrete GPU`, `integrated GPU`, `virtual GPU`, `software` or `other`.
    pub kind: String,
    /// Whether the adapter is a program on the CPU: correct, but no measure of any GPU.
    pub software: bool,
    /// The kernel variants it runs: all that it offers but matrix units, unless a tier was asked for.
    pub tier: Tier,
    /// Whether it has matrix units that samara can use: the tier `coop`.
    pub matrix_units: bool,
    /// Largest storage binding, in bytes; larger weights are split.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub workgroup_memory_bytes: u32,
    /// Largest number of invocations in a workgroup.
    pub max_invocations: u32,
    /// Smallest and largest subgroup, where subgroups are supported.
    pub subgroup_sizes: Option<(u32, u32)>,
}

impl AdapterSummary {
    fn new(
        index: usize,
        info: &wgpu::AdapterInfo,
        features: wgpu::Features,
        limits: &wgpu::Limits,
        matrix_units: bool,
    ) -> Self {
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let subgroup = features.contains(wgpu::Features::SUBGROUP);
        Self {
            index,
            name: info.name.clone(),
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            kind: kind.to_owned(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            tier: Tier { f16: features.contains(wgpu::Features::SHADER_F16), subgroup, coop: false },
            matrix_units,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            subgroup_sizes: subgroup.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        }
    }
}

impl AdapterSummary {
    /// Returns the tier with everything that the adapter offers.
    pub fn offered(&self) -> Tier {
        Tier { coop: self.matrix_units, ..self.tier }
    }

    /// Returns every tier that the adapter runs, its own last if it is none of [`Tier::ALL`].
    pub fn tiers(&self) -> Vec<Tier> {
        let own = Some(self.tier).filter(|tier| !Tier::ALL.contains(tier));
        Tier::ALL.into_iter().filter(|tier| tier.within(self.offered())).chain(own).collect()
    }
}

/// Lets a device have features that wgpu calls experimental.
fn experimental() -> wgpu::ExperimentalFeatures {
    // SAFETY: the one such feature in use is cooperative matrices, and only where a tier with them was asked
    // for; every kernel that uses them loads and stores whole tiles within its buffers, as its cases check.
    unsafe { wgpu::ExperimentalFeatures::enabled() }
}

/// Returns the adapters of a backend, or of all of them.
///
/// # Errors
/// When there is none.
pub fn adapters(backend: Option<Backend>) -> Result<Vec<AdapterSummary>> {
    let found = enumerate(backend, MEMORY_PERCENT)?;
    Ok(found.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect())
}

fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let features = adapter.features();
    let matrix_units = has_matrix_units(adapter, features);
    AdapterSummary::new(index, &adapter.get_info(), features, &adapter.limits(), matrix_units)
}

/// Tells whether the adapter multiplies 16x16 tiles of f16 and sums in f32.
fn has_matrix_units(adapter: &wgpu::Adapter, features: wgpu::Features) -> bool {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    let fits = |p: &wgpu::CooperativeMatrixProperties| {
        [p.m_size, p.n_size, p.k_size] == [16; 3] && p.ab_type == F16 && p.cr_type == F32
    };
    // A smaller subgroup would be two in the workgroup of 32 that such kernels take for one.
    let one_subgroup = adapter.get_info().subgroup_min_size >= 32;
    features.contains(needed) && one_subgroup && adapter.cooperative_matrix_properties().iter().any(fits)
}

/// Lists adapters, hardware before software; that there is none is an error.
fn enumerate(backend: Option<Backend>, memory_percent: u8) -> Result<Vec<wgpu::Adapter>> {
    let bits = backend.map_or(wgpu::Backends::PRIMARY, Backend::bits);
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: bits,
        // Where the driver tells its budget, running out of memory is an error instead of swapping.
        memory_budget_thresholds: wgpu::MemoryBudgetThresholds {
            for_resource_creation: Some(memory_percent),
            for_device_loss: None,
        },
        ..wgpu::InstanceDescriptor::new_without_display_handle()
    });
    let mut found = pollster::block_on(instance.enumerate_adapters(bits));
    if found.is_empty() {
        let which = backend.map_or_else(|| "vulkan, metal, dx12".to_owned(), |backend| backend.to_string());
        return Err(Error::Unsupported(format!(
            "no GPU adapter was found (looked for {which}); on Linux install a Vulkan driver"
        )));
    }
    found.sort_by_key(|adapter| match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => 0,
        wgpu::DeviceType::IntegratedGpu => 1,
        wgpu::DeviceType::VirtualGpu | wgpu::DeviceType::Other => 2,
        wgpu::DeviceType::Cpu => 3,
    });
    Ok(found)
}

/// Returns the tier that `SAMARA_TIER` in the environment asks for.
///
/// # Errors
/// When it is no tier.
pub fn asked_tier() -> Result<Option<Tier>> {
    match std::env::var("SAMARA_TIER") {
        Ok(name) => name.parse().map(Some).map_err(|e| Error::Input(format!("SAMARA_TIER: {e}"))),
        Err(_) => Ok(None),
    }
}

/// Share of its memory that an adapter gives away before it counts as full, where its driver tells.
const MEMORY_PERCENT: u8 = 97;

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
    submits: AtomicU64,
    dispatches: AtomicU64,
    faults: Faults,
    /// How the adapter was chosen; `None` for a device of the caller's.
    options: Option<GpuOptions>,
}

/// What a device was asked to do since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Submissions to the queue.
    pub submits: u64,
    /// Dispatches in them.
    pub dispatches: u64,
}

impl Gpu {
    /// Opens an adapter by number or part of its name; without a choice the first, hardware before
    /// software.
    ///
    /// `SAMARA_TIER=plain|f16|subgroup` in the environment masks features above that tier; `coop` adds
    /// matrix units.
    ///
    /// # Errors
    /// When there is no such adapter, or it does not offer the tier that was asked for.
    pub fn open(choice: Option<&str>, backend: Option<Backend>) -> Result<Self> {
        let (adapter, tier) = (choice.map(str::to_owned), asked_tier()?);
        Self::open_with(&GpuOptions { adapter, backend, tier, ..GpuOptions::default() })
    }

    /// Opens an adapter as the options say.
    ///
    /// # Errors
    /// When there is no such adapter, or it does not offer the tier that was asked for.
    pub fn open_with(options: &GpuOptions) -> Result<Self> {
        let found = enumerate(options.backend, options.memory_percent)?;
        let index = options.adapter.as_deref().map_or(Ok(0), |choice| choose(&found, choice))?;
        let adapter = &found[index];
        let mut summary = summary(index, adapter);
        if let Some(tier) = options.tier {
            if !tier.within(summary.offered()) {
                return Err(Error::Unsupported(format!(
                    "adapter `{}` runs tier {}, not the tier {tier} that was asked for",
                    summary.name,
                    summary.offered()
                )));
            }
            summary.tier = tier;
        }
        let mut required_features = wgpu::Features::empty();
        required_features.set(wgpu::Features::SHADER_F16, summary.tier.f16);
        required_features.set(wgpu::Features::SUBGROUP, summary.tier.subgroup);
        required_features.set(wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, summary.tier.coop);
        required_features |= adapter.features() & Clock::FEATURES;
        // Only how large a buffer may be is raised above WebGPU's defaults; kernels fit the defaults.
        let offered = adapter.limits();
        let mut required_limits = wgpu::Limits::default().or_worse_values_from(&offered);
        required_limits.max_storage_buffer_binding_size = offered.max_storage_buffer_binding_size;
        required_limits.max_buffer_size = offered.max_buffer_size;
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("samara"),
            required_features,
            required_limits,
            experimental_features: if summary.tier.coop { experimental() } else { Default::default() },
            // Weights are few and large: in blocks of their own size nothing is left over.
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
        let summary = AdapterSummary::new(0, &info, device.features(), &device.limits(), false);
        // What the environment asks for in vain is no reason to refuse a device.
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
            submits: AtomicU64::new(0),
            dispatches: AtomicU64::new(0),
        }
    }

    /// Returns the files that stand in for built-in shaders.
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

    /// Returns how the device's time is taken.
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

    /// Returns what the device was asked to do so far.
    pub fn counters(&self) -> Counters {
        Counters {
            submits: self.submits.load(Ordering::Relaxed),
            dispatches: self.dispatches.load(Ordering::Relaxed),
        }
    }

    /// Returns the most bytes that samara's buffers took at once; a driver's own memory comes on top.
    pub fn peak_bytes(&self) -> u64 {
        self.usage.peak()
    }

    /// Forgets the peak: what exists now is the most from now on.
    pub fn forget_peak(&self) {
        self.usage.forget_peak();
    }

    /// Submits an encoder that records `dispatches` dispatches.
    pub(super) fn submit(&self, encoder: wgpu::CommandEncoder, dispatches: usize) {
        self.queue.submit([encoder.finish()]);
        self.submits.fetch_add(1, Ordering::Relaxed);
        self.dispatches.fetch_add(dispatches as u64, Ordering::Relaxed);
    }

    /// Returns what is known of the adapter, with the tier in use.
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
    /// When it raised one: out of memory, lost, or a command it refused.
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
        self.submits.fetch_add(1, Ordering::Relaxed);
        self.wait()
    }

    /// Waits until everything submitted so far is done.
    ///
    /// # Errors
    /// When the device was lost or raised an error.
    pub fn wait(&self) -> Result<()> {
        let polled = self.device.poll(wgpu::PollType::wait_indefinitely());
        polled.map_err(|e| Error::Gpu(format!("adapter `{}`: {e}", self.summary.name)))?;
        self.check()
    }
}

/// What a device's handlers heard, the first first.
#[derive(Clone, Debug, Default)]
struct Faults(Arc<Mutex<Fault>>);

#[derive(Debug, Default)]
struct Fault {
    message: Option<String>,
    lost: bool,
}

impl Faults {
    /// Keeps what the handlers of a device of our own hear of.
    fn watching(device: &wgpu::Device) -> Self {
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

    /// Returns the message, and forgets it unless the device is lost.
    fn take(&self) -> Option<String> {
        let mut fault = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if fault.lost { fault.message.clone() } else { fault.message.take() }
    }
}

/// Finds the adapter that a number or a part of a name stands for.
fn choose(found: &[wgpu::Adapter], choice: &str) -> Result<usize> {
    let names: Vec<String> = found.iter().map(|adapter| adapter.get_info().name).collect();
    let index = match choice.parse::<usize>() {
        Ok(index) => (index < names.len()).then_some(index),
        Err(_) => names.iter().position(|name| name.to_lowercase().contains(&choice.to_lowercase())),
    };
    index.ok_or_else(|| {
        Error::Input(format!(
            "--adapter {choice} matches none of the {} adapters: {}",
            names.len(),
            names.join("; ")
        ))
    })
}
