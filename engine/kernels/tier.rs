//! Tiers: what an adapter offers beyond plain WebGPU, as far as kernels care.

use std::fmt;
use std::str::FromStr;

use super::{Fragment, fragment};
use crate::error::Error;

/// Upper bound of what rounding activations to 8 bits adds to the expected NMSE of products at tier `int8`.
/// With `m` the largest magnitude of a block of 32, errors are uniform in steps of `m / 127`: their squares
/// add up to `32 / 12 (m / 127)^2` = 1.65e-4 `m^2`, those of the values to at least `m^2`. Uniform values
/// have 1.5e-5. Tests check separately that the integers are exact.
pub(super) const INT8_ERROR: f64 = 2e-4;

/// Upper bound of what rounding a factor to the 11 bits of f16 adds to the NMSE of products at tier `coop`. A
/// value may be off by 2^-10 of itself, because devices need not round to nearest; if all err in one
/// direction, so do sums. Rounded to nearest, uniform values have 5e-8.
pub(super) const F16_ERROR: f64 = 9.6e-7;

/// The square matrices that an adapter's matrix units multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixShape {
    /// 8 x 8, as on Metal.
    Eight,
    /// 16 x 16, as on Vulkan.
    Sixteen,
}

/// The optional features that kernels use beyond plain WebGPU.
///
/// Three tiers compute the same up to the order of sums, and an adapter runs the best of them that it offers:
/// [`PLAIN`](Self::PLAIN) within WebGPU's default limits, [`F16`](Self::F16) and [`SUBGROUP`](Self::SUBGROUP). Two more
/// change results a little:
///
/// - [`COOP`](Self::COOP) multiplies prompts on matrix units: `f16`, `q8_0` and `q4_0` weights in f16 with sums in f32,
///   on 16x16 matrices (Vulkan) or 8x8 ones (Metal, [`COOP_EIGHT`](Self::COOP_EIGHT)). Attention runs on 16x16 ones
///   too. It is the default on NVIDIA, where it was measured, and opt-in elsewhere. The 8x8 kernels were validated and
///   emulated, but never run on a GPU. On an H200 the logits after 300 tokens of the 270M differ from those of 300
///   single steps by an NMSE of 1.2e-6 with `COOP` and 7e-9 with `SUBGROUP`.
/// - [`INT8`](Self::INT8) multiplies `q8_0` and `q4_0` weights as integers, with activations rounded to 8 bits. It is
///   always opt-in, and not available on Metal.
///
/// `--tier NAME` or `SAMARA_TIER` masks the features above a tier, or adds one of these two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tier {
    /// `f16` arithmetic in shaders.
    pub f16: bool,
    /// Subgroup operations in compute shaders.
    pub subgroup: bool,
    /// Matrix units through cooperative matrices of f16, summed in f32.
    pub coop: Option<MatrixShape>,
    /// Dot products of packed 8-bit integers, for which products round activations to 8 bits.
    pub int8: bool,
}

impl Tier {
    /// WebGPU without optional features.
    pub const PLAIN: Self = Self { f16: false, subgroup: false, coop: None, int8: false };
    /// With `f16` in shaders.
    pub const F16: Self = Self { f16: true, ..Self::PLAIN };
    /// With `f16` and subgroup operations.
    pub const SUBGROUP: Self = Self { subgroup: true, ..Self::F16 };
    /// With `f16`, subgroup operations and cooperative matrices of 16 x 16, whose factors are rounded to f16.
    pub const COOP: Self = Self { coop: Some(MatrixShape::Sixteen), ..Self::SUBGROUP };
    /// The same with matrices of 8 x 8.
    pub const COOP_EIGHT: Self = Self { coop: Some(MatrixShape::Eight), ..Self::SUBGROUP };
    /// With `f16`, subgroup operations and dot products of 8-bit integers, for which activations are rounded.
    pub const INT8: Self = Self { int8: true, ..Self::SUBGROUP };
    /// The tiers that tests walk through.
    pub const ALL: [Self; 6] =
        [Self::PLAIN, Self::F16, Self::SUBGROUP, Self::COOP, Self::COOP_EIGHT, Self::INT8];

    /// Returns whether an adapter that offers `offered` runs this tier.
    pub fn within(self, offered: Self) -> bool {
        (offered.f16 || !self.f16)
            && (offered.subgroup || !self.subgroup)
            && (self.coop.is_none() || self.coop == offered.coop)
            && (offered.int8 || !self.int8)
    }

    /// Returns the tier with the matrix shape of an adapter: a request for matrix units means whichever it
    /// has.
    pub fn shaped_as(self, offered: Self) -> Self {
        Self { coop: self.coop.map(|shape| offered.coop.unwrap_or(shape)), ..self }
    }

    /// Returns the workgroup memory that kernels may use: WebGPU's default, or twice as much with matrix
    /// units, whose devices all have it.
    pub fn workgroup_bytes(self) -> u32 {
        if self.coop.is_some() { 32 << 10 } else { 16 << 10 }
    }

    /// Returns the reductions over a workgroup (`Invocation`, `reduce_add`, `reduce_max`): a barrier tree, or
    /// subgroup operations with two barriers. Its `main` calls the kernel's `run(group, at: Invocation)`.
    pub(crate) fn reduce(self) -> Fragment {
        if self.subgroup { fragment!("lib/reduce_subgroup.wgsl") } else { fragment!("lib/reduce_tree.wgsl") }
    }

    /// Returns the sums of a few vectors over a workgroup (`Invocation`, `share`, `settle`, `total`). Its
    /// `main` calls the kernel's `run(at: Invocation)`.
    pub(crate) fn reduce4(self) -> Fragment {
        if self.subgroup {
            fragment!("lib/reduce4_subgroup.wgsl")
        } else {
            fragment!("lib/reduce4_tree.wgsl")
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match (self.f16, self.subgroup) {
            _ if self.coop == Some(MatrixShape::Sixteen) => "coop",
            _ if self.coop == Some(MatrixShape::Eight) => "coop-8x8",
            _ if self.int8 => "int8",
            (false, false) => "plain",
            (true, false) => "f16",
            (true, true) => "subgroup",
            (false, true) => "subgroup without f16",
        })
    }
}

impl FromStr for Tier {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL.into_iter().find(|tier| tier.to_string() == name).ok_or_else(|| {
            let names: Vec<String> = Self::ALL.iter().map(Self::to_string).collect();
            Error::Input(format!("tier `{name}` is none of {}", names.join(", ")))
        })
    }
}
