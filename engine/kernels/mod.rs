//! The kernels: each a pair of `shaders/<name>.wgsl` and a file here, plus one word in the list below.
//!
//! A kernel is plain data. It names its tensors, yields its WGSL fragments, its dispatch and its cost,
//! and carries the scalar f64 reference that defines what it computes. It must not know `wgpu`, the
//! graph, or another kernel.
//!
//! Bindings: `@group(0) @binding(0)` is the uniform `Params`; the operands follow in the order of
//! [`Kernel::operands`]. A weight's planes are `@group(1)`, declared by its format's fragment.

mod cache;
mod case;
mod memory;

use std::any::Any;
use std::fmt;
use std::str::FromStr;

pub use case::{Case, CaseBuilder, Fill};
pub use memory::Memory;

use crate::error::Error;
use crate::quant::Format;
use crate::tensor::TensorId;

/// Declares the kernel modules and lists them: the one word that a new kernel adds.
macro_rules! kernels {
    ($($name:ident)*) => {
        $(pub mod $name;)*

        /// Every kernel, in the order of its name.
        pub const LIST: &[Entry] = &[$(Entry { name: stringify!($name), cases: $name::cases }),*];
    };
}

kernels! {
    add
    add_rms_norm
    argmax
    attention
    attention_decode
    embed
    kv_write
    matmul
    matmul_swiglu
    matvec
    matvec_swiglu
    qk_norm
    qk_norm_rope
    rms_norm
    rope
    swiglu
}

/// A kernel of the list, with the cases that test and bench it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name: the stem of both files.
    pub name: &'static str,
    /// Builds its cases.
    pub cases: fn() -> Vec<Case>,
}

/// One piece of WGSL text; a kernel's module is its fragments joined with newlines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Path below `shaders/`.
    pub path: &'static str,
    /// The text of the file.
    pub text: &'static str,
}

/// Returns the [`Fragment`] of a file below `shaders/`.
macro_rules! fragment {
    ($path:literal) => {
        $crate::kernels::Fragment {
            path: $path,
            text: include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/shaders/", $path)),
        }
    };
}
pub(crate) use fragment;

/// What an adapter offers beyond plain WebGPU, as far as kernels care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tier {
    /// `f16` arithmetic in shaders.
    pub f16: bool,
    /// Subgroup operations in compute shaders.
    pub subgroup: bool,
}

impl Tier {
    /// WebGPU without optional features.
    pub const PLAIN: Self = Self { f16: false, subgroup: false };
    /// With `f16` in shaders.
    pub const F16: Self = Self { f16: true, subgroup: false };
    /// With `f16` and subgroup operations.
    pub const SUBGROUP: Self = Self { f16: true, subgroup: true };
    /// The tiers that tests walk through.
    pub const ALL: [Self; 3] = [Self::PLAIN, Self::F16, Self::SUBGROUP];

    /// Returns the reductions over a workgroup (`Invocation`, `reduce_add`, `reduce_max`): a barrier
    /// tree, or subgroup operations with two barriers.
    pub fn reduce(self) -> Fragment {
        if self.subgroup { fragment!("lib/reduce_subgroup.wgsl") } else { fragment!("lib/reduce_tree.wgsl") }
    }

    /// Returns the sum of a vector over a workgroup (`Invocation`, `reduce_add4`).
    pub fn reduce4(self) -> Fragment {
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
        Self::ALL
            .into_iter()
            .find(|tier| tier.to_string() == name)
            .ok_or_else(|| Error::Input(format!("tier `{name}` is none of plain, f16, subgroup")))
    }
}

/// How a kernel uses an operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Bound `read` in group 0.
    Read,
    /// Bound `read_write` in group 0, and no value of it is read before this dispatch wrote it.
    Write,
    /// Bound `read_write` in group 0; its earlier values matter.
    ReadWrite,
    /// A weight: its planes are bound `read` in group 1.
    Weight,
}

impl Access {
    /// Tells whether the kernel may store to the operand.
    pub fn writes(self) -> bool {
        matches!(self, Self::Write | Self::ReadWrite)
    }
}

/// A tensor that a kernel binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Which tensor.
    pub tensor: TensorId,
    /// How it is used.
    pub access: Access,
}

impl Operand {
    /// An input.
    pub fn read(tensor: TensorId) -> Self {
        Self { tensor, access: Access::Read }
    }

    /// An output.
    pub fn write(tensor: TensorId) -> Self {
        Self { tensor, access: Access::Write }
    }

    /// A tensor that is changed in place, or of which a part is written.
    pub fn read_write(tensor: TensorId) -> Self {
        Self { tensor, access: Access::ReadWrite }
    }

    /// A weight.
    pub fn weight(tensor: TensorId) -> Self {
        Self { tensor, access: Access::Weight }
    }
}

/// What the device is asked to do: a pure function of the kernel and the tier.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Values of the shader's `override` declarations, by name.
    pub overrides: Vec<(&'static str, f64)>,
    /// The bytes of the uniform `Params`.
    pub params: Vec<u8>,
    /// Workgroups in x, y and z; at most 65535 each.
    pub grid: [u32; 3],
}

/// The least a kernel must move and compute: the ground for its roofline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Bytes read from and written to device memory, each operand once.
    pub bytes: u64,
    /// Floating-point operations; a fused multiply-add counts two.
    pub flops: u64,
}

/// One operation on tensors, with everything needed to run, check and cost it.
///
/// Shaders run without bounds checks: an implementation asserts in its constructor every shape from which
/// its shader computes an index, and the shader clamps what it computes from device data.
pub trait Kernel: Any + fmt::Debug + Send + Sync {
    /// Returns the kernel's name: the stem of both files.
    fn name(&self) -> &'static str;

    /// Returns the WGSL fragments, the kernel's own file first.
    fn source(&self, tier: Tier) -> Vec<Fragment>;

    /// Returns the tensors in the order of their bindings.
    fn operands(&self) -> Vec<Operand>;

    /// Returns overrides, parameters and grid.
    fn dispatch(&self, tier: Tier) -> Dispatch;

    /// Returns the bytes and operations of one call.
    fn cost(&self) -> Cost;

    /// Computes the outputs in f64 with plain loops: the specification.
    fn reference(&self, memory: &mut Memory);
}

/// Returns the fragment that binds the planes of a format in group 1 and reads 16 values at a time
/// (`Weight16`, `weight16(row, chunk, cols)`): in q8_0 those are one 16-byte load.
pub fn weight_fragment(format: Format) -> Fragment {
    match format {
        Format::F32 => fragment!("quant/f32.wgsl"),
        Format::F16 => fragment!("quant/f16.wgsl"),
        Format::Bf16 => fragment!("quant/bf16.wgsl"),
        Format::Q8_0 => fragment!("quant/q8_0.wgsl"),
        Format::Q4_0 => fragment!("quant/q4_0.wgsl"),
    }
}

/// Joins fragments into the text of one WGSL module, `enable` directives first as WGSL demands.
pub fn join(fragments: &[Fragment]) -> String {
    let lines = || fragments.iter().flat_map(|fragment| fragment.text.lines());
    let mut enables: Vec<&str> = lines().filter(|line| line.starts_with("enable ")).collect();
    enables.sort_unstable();
    enables.dedup();
    // A directive leaves an empty line behind, so that error lines stay true but for those hoisted.
    let body = lines().map(|line| if line.starts_with("enable ") { "" } else { line });
    enables.into_iter().chain(body).collect::<Vec<_>>().join("\n")
}

/// Returns a grid of at least `groups` workgroups, in two dimensions when one cannot hold them; the
/// number of a workgroup is `y * width + x`.
pub(crate) fn grid(groups: usize) -> [u32; 3] {
    let width = groups.clamp(1, 65535);
    [dim(width), dim(groups.div_ceil(width)), 1]
}

/// Returns how many groups of 8 tokens a tile of `lib/tile.wgsl` takes: no more than there are, at most 4,
/// or 8 where that leaves 256 workgroups to occupy a large GPU.
pub(crate) fn tile_groups(tokens: usize, row_tiles: usize) -> usize {
    match tokens.div_ceil(8) {
        groups @ 0..=4 => groups.max(1),
        groups if groups.div_ceil(8) * row_tiles < 256 => 4,
        _ => 8,
    }
}

/// Converts a size to the `u32` of a `Params` field.
///
/// # Panics
/// When it does not fit: no tensor that a binding can hold is that large.
pub(crate) fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("a dimension fits in u32")
}
