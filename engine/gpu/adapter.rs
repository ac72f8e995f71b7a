//! Adapters: lists them, describes what they offer, and chooses one.

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::kernels::{MatrixShape, Tier};

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

/// The description by which a user chooses an adapter.
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
    /// Whether the adapter is a program on the CPU: results are correct, but timings say nothing about a GPU.
    pub software: bool,
    /// The kernel variants it runs: the requested tier, else all that it offers except integers, and matrix
    /// units only where they were measured to be faster.
    pub tier: Tier,
    /// The matrices that its matrix units multiply, if samara can use them: the tier `coop`.
    pub matrix_units: Option<MatrixShape>,
    /// Whether it multiplies packed 8-bit integers: the tier `int8`. Metal has no instruction for that.
    pub integer_dots: bool,
    /// Largest storage binding, in bytes; larger weights are split.
    pub max_binding_bytes: u64,
    /// Largest buffer, in bytes.
    pub max_buffer_bytes: u64,
    /// Workgroup memory, in bytes.
    pub workgroup_memory_bytes: u32,
    /// Largest number of invocations in a workgroup.
    pub max_invocations: u32,
    /// Smallest and largest subgroup, if subgroups are supported.
    pub subgroup_sizes: Option<(u32, u32)>,
}

/// The vendor whose matrix units run by default. On an H200, prompts of 512 tokens in `q4_0`: the 270M 98 thousand tokens a
/// second against 42 without them, the 1.1B 36 against 13.
const NVIDIA: u32 = 0x10de;

impl AdapterSummary {
    pub(super) fn new(
        index: usize,
        info: &wgpu::AdapterInfo,
        features: wgpu::Features,
        limits: &wgpu::Limits,
        matrix_units: Option<MatrixShape>,
    ) -> Self {
        let kind = match info.device_type {
            wgpu::DeviceType::DiscreteGpu => "discrete GPU",
            wgpu::DeviceType::IntegratedGpu => "integrated GPU",
            wgpu::DeviceType::VirtualGpu => "virtual GPU",
            wgpu::DeviceType::Cpu => "software",
            wgpu::DeviceType::Other => "other",
        };
        let subgroup = features.contains(wgpu::Features::SUBGROUP);
        let f16 = features.contains(wgpu::Features::SHADER_F16);
        Self {
            index,
            name: info.name.clone(),
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            kind: kind.to_owned(),
            software: info.device_type == wgpu::DeviceType::Cpu,
            tier: Tier { f16, subgroup, coop: matrix_units.filter(|_| info.vendor == NVIDIA), ..Tier::PLAIN },
            matrix_units,
            integer_dots: f16 && subgroup && info.backend != wgpu::Backend::Metal,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_buffer_bytes: limits.max_buffer_size,
            workgroup_memory_bytes: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            subgroup_sizes: subgroup.then_some((info.subgroup_min_size, info.subgroup_max_size)),
        }
    }

    /// Returns the tier with everything that the adapter offers.
    pub fn offered(&self) -> Tier {
        Tier { coop: self.matrix_units, int8: self.integer_dots, ..self.tier }
    }

    /// Returns every tier that the adapter runs, its own last if it is none of [`Tier::ALL`].
    pub fn tiers(&self) -> Vec<Tier> {
        let own = Some(self.tier).filter(|tier| !Tier::ALL.contains(tier));
        Tier::ALL.into_iter().filter(|tier| tier.within(self.offered())).chain(own).collect()
    }
}

/// Returns the adapters of a backend, or of all of them.
///
/// # Errors
/// When there is none.
pub fn adapters(backend: Option<Backend>) -> Result<Vec<AdapterSummary>> {
    let found = enumerate(backend, MEMORY_PERCENT)?;
    Ok(found.iter().enumerate().map(|(index, adapter)| summary(index, adapter)).collect())
}

pub(super) fn summary(index: usize, adapter: &wgpu::Adapter) -> AdapterSummary {
    let features = adapter.features();
    let info = adapter.get_info();
    let limits = adapter.limits();
    let matrix_units = matrix_shape(
        &adapter.cooperative_matrix_properties(),
        features,
        info.subgroup_min_size,
        limits.max_compute_workgroup_storage_size,
    );
    AdapterSummary::new(index, &info, features, &limits, matrix_units)
}

/// Returns the largest shape of matrices, of f16 and summed in f32, that both the kernels and the adapter
/// support. `None` if it lacks a feature, or has only other shapes and types.
fn matrix_shape(
    offered: &[wgpu::CooperativeMatrixProperties],
    features: wgpu::Features,
    least_subgroup: u32,
    workgroup_bytes: u32,
) -> Option<MatrixShape> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    let has = |side: u32| {
        let fits = |p: &wgpu::CooperativeMatrixProperties| {
            [p.m_size, p.n_size, p.k_size] == [side; 3] && p.ab_type == F16 && p.cr_type == F32
        };
        let runs = features.contains(needed) && workgroup_bytes >= Tier::COOP.workgroup_bytes();
        runs && offered.iter().any(fits)
    };
    // With smaller subgroups, the workgroup of 32 that measures 16 x 16 matrices would be two subgroups, and attention
    // has rows of up to 16 invocations.
    if has(16) && least_subgroup >= 32 {
        return Some(MatrixShape::Sixteen);
    }
    has(8).then_some(MatrixShape::Eight)
}

/// Lists adapters, hardware before software; it is an error if there is none.
pub(super) fn enumerate(backend: Option<Backend>, memory_percent: u8) -> Result<Vec<wgpu::Adapter>> {
    let bits = backend.map_or(wgpu::Backends::PRIMARY, Backend::bits);
    let instance = wgpu::Instance::new(wgpu::InstanceDescriptor {
        backends: bits,
        // If the driver reports its budget, running out of memory is an error instead of swapping.
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

/// Share of its memory in use at which an adapter counts as full, if its driver reports it.
pub(super) const MEMORY_PERCENT: u8 = 97;

/// Finds an adapter by its number or a part of its name.
pub(super) fn choose(found: &[wgpu::Adapter], choice: &str) -> Result<usize> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integer_products_are_offered_beside_subgroups_but_not_on_metal_and_never_unasked() {
        let summary = |backend, features| {
            let info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, backend);
            AdapterSummary::new(0, &info, features, &wgpu::Limits::default(), None)
        };
        let both = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
        for backend in [wgpu::Backend::Vulkan, wgpu::Backend::Dx12] {
            let adapter = summary(backend, both);
            assert_eq!(adapter.tier, Tier::SUBGROUP);
            assert_eq!(adapter.tiers(), [Tier::PLAIN, Tier::F16, Tier::SUBGROUP, Tier::INT8]);
            assert!(!summary(backend, wgpu::Features::SHADER_F16).tiers().contains(&Tier::INT8));
        }
        assert_eq!(summary(wgpu::Backend::Metal, both).tiers(), [Tier::PLAIN, Tier::F16, Tier::SUBGROUP]);
    }

    #[test]
    fn the_largest_matrices_of_f16_summed_in_f32_are_chosen_or_none() {
        use wgpu::CooperativeScalarType::{F16, F32, I32};
        let all = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
            | wgpu::Features::SHADER_F16
            | wgpu::Features::SUBGROUP;
        let of = |[m_size, n_size, k_size]: [u32; 3], ab_type, cr_type| wgpu::CooperativeMatrixProperties {
            m_size,
            n_size,
            k_size,
            ab_type,
            cr_type,
            saturating_accumulation: false,
        };
        let metal = [of([8; 3], F32, F32), of([8; 3], F16, F16), of([8; 3], F16, F32)];
        let nvidia = [of([16; 3], F16, F16), of([16; 3], F16, F32), of([16, 8, 16], F16, F32)];
        let intel = [of([8, 16, 16], F16, F32), of([8, 16, 16], F16, F16)];
        let integers = [of([16; 3], I32, I32), of([16; 3], F16, F16), of([8; 3], F32, F32)];
        let matrix_shape = |offered: &[_], features, least| matrix_shape(offered, features, least, 32 << 10);
        assert_eq!(super::matrix_shape(&nvidia, all, 32, 16 << 10), None);
        assert_eq!(matrix_shape(&metal, all, 4), Some(MatrixShape::Eight));
        assert_eq!(matrix_shape(&nvidia, all, 32), Some(MatrixShape::Sixteen));
        assert_eq!(matrix_shape(&[nvidia, metal].concat(), all, 32), Some(MatrixShape::Sixteen));
        assert_eq!(matrix_shape(&[nvidia, metal].concat(), all, 16), Some(MatrixShape::Eight));
        for (offered, least) in [(&intel[..], 32), (&integers, 32), (&nvidia, 16), (&[], 32)] {
            assert_eq!(matrix_shape(offered, all, least), None, "{offered:?}");
        }
        for missing in all.iter() {
            assert_eq!(matrix_shape(&nvidia, all - missing, 32), None, "{missing:?}");
        }
    }

    #[test]
    fn matrix_units_run_unasked_where_they_are_faster_and_have_the_shape_that_there_is() {
        for (shape, tier, name) in
            [(MatrixShape::Sixteen, Tier::COOP, "coop"), (MatrixShape::Eight, Tier::COOP_EIGHT, "coop-8x8")]
        {
            let info = wgpu::AdapterInfo::new(wgpu::DeviceType::DiscreteGpu, wgpu::Backend::Metal);
            let features = wgpu::Features::SHADER_F16 | wgpu::Features::SUBGROUP;
            let adapter = AdapterSummary::new(0, &info, features, &wgpu::Limits::default(), Some(shape));
            assert_eq!(adapter.tier, Tier::SUBGROUP);
            assert_eq!(adapter.tiers(), [Tier::PLAIN, Tier::F16, Tier::SUBGROUP, tier]);
            assert_eq!("coop".parse::<Tier>().unwrap().shaped_as(adapter.offered()), tier);
            assert_eq!(name.parse::<Tier>().unwrap(), tier);
            let nvidia = wgpu::AdapterInfo { vendor: NVIDIA, ..info };
            let adapter = AdapterSummary::new(0, &nvidia, features, &wgpu::Limits::default(), Some(shape));
            assert_eq!((adapter.tier, adapter.offered().coop), (tier, Some(shape)));
            let without = AdapterSummary::new(0, &nvidia, features, &wgpu::Limits::default(), None);
            assert_eq!(without.tier, Tier::SUBGROUP);
        }
        assert!(!Tier::COOP.shaped_as(Tier::SUBGROUP).within(Tier::SUBGROUP));
    }
}
