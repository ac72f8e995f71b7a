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
pub mod draw;
mod heads;
mod memory;
mod place;
mod rows;
mod source;
pub mod threefry;
mod tiles;
mod window;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

pub use cache::SPLIT_KEYS;
pub use case::{Case, CaseBuilder, Fill};
pub use memory::Memory;
pub use rows::{FEW_TOKENS, MOST_TOKENS};
pub(crate) use source::fragment;
pub use source::{Fragment, Shaders, Source};
pub use window::Window;

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
    attention_merge
    embed
    kv_write
    last_rows
    log_likelihood
    matmul
    matmul_add
    matmul_swiglu
    matrix_multiply_add
    matvec
    matvec_add
    matvec_swiglu
    multiply
    multiply_add
    norm_matmul
    norm_matmul_swiglu
    norm_matvec
    norm_matvec_swiglu
    qk_norm
    qk_norm_rope
    qk_norm_rope_attention
    rms_norm
    rope
    row_mean
    sample
    stream_copy
    swiglu
    unary
}

/// A kernel of the list, with the cases that test and bench it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name: the stem of both files.
    pub name: &'static str,
    /// Builds its cases.
    pub cases: fn() -> Vec<Case>,
}

/// The square matrices that an adapter's matrix units multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MatrixShape {
    /// 8 x 8, as on Metal.
    Eight,
    /// 16 x 16, as on Vulkan.
    Sixteen,
}

/// What an adapter offers beyond plain WebGPU, as far as kernels care.
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
    /// With `f16`, subgroup operations and cooperative matrices of 16 x 16: used only where it is asked for,
    /// and on NVIDIA, where it was measured: rounded factors change results beyond what sums in another order do.
    pub const COOP: Self = Self { coop: Some(MatrixShape::Sixteen), ..Self::SUBGROUP };
    /// The same with matrices of 8 x 8.
    pub const COOP_EIGHT: Self = Self { coop: Some(MatrixShape::Eight), ..Self::SUBGROUP };
    /// With `f16`, subgroup operations and dot products of 8-bit integers: used only where it is asked for,
    /// because rounded activations change results beyond what sums in another order do.
    pub const INT8: Self = Self { int8: true, ..Self::SUBGROUP };
    /// The tiers that tests walk through.
    pub const ALL: [Self; 6] =
        [Self::PLAIN, Self::F16, Self::SUBGROUP, Self::COOP, Self::COOP_EIGHT, Self::INT8];

    /// Tells whether an adapter that offers `offered` runs this tier.
    pub fn within(self, offered: Self) -> bool {
        (offered.f16 || !self.f16)
            && (offered.subgroup || !self.subgroup)
            && (self.coop.is_none() || self.coop == offered.coop)
            && (offered.int8 || !self.int8)
    }

    /// Returns the tier with the matrices that an adapter has, in place of those of another shape: who asks for
    /// matrix units means whichever there are.
    pub fn shaped_as(self, offered: Self) -> Self {
        Self { coop: self.coop.map(|shape| offered.coop.unwrap_or(shape)), ..self }
    }

    /// Returns the workgroup memory that kernels may take: WebGPU's default, and twice as much on matrix units, beside
    /// which every device has it.
    pub fn workgroup_bytes(self) -> u32 {
        if self.coop.is_some() { 32 << 10 } else { 16 << 10 }
    }

    /// Returns the reductions over a workgroup (`Invocation`, `reduce_add`, `reduce_max`): a barrier
    /// tree, or subgroup operations with two barriers. Its `main` calls the kernel's `run(at: Invocation)`.
    pub fn reduce(self) -> Fragment {
        if self.subgroup { fragment!("lib/reduce_subgroup.wgsl") } else { fragment!("lib/reduce_tree.wgsl") }
    }

    /// Returns the sums of a few vectors over a workgroup (`Invocation`, `share`, `settle`, `total`), with
    /// `main` as above.
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

/// A value that decides how fast a dispatch is and not what it computes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// The name of the shader's `override`.
    pub name: &'static str,
    /// The value without any tuning.
    pub default: u32,
    /// Every value that the kernel can run with.
    pub values: Vec<u32>,
}

impl Tunable {
    /// Returns the tunable `WG`, the invocations of a workgroup.
    pub fn workgroup(default: u32) -> Self {
        Self { name: "WG", default, values: vec![32, 64, 128, 256] }
    }
}

/// Values for tunables by name. What is not chosen, or cannot be, keeps its default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice(BTreeMap<String, u32>);

impl Choice {
    /// Returns the value that each tunable has without tuning.
    pub fn defaults(tunables: &[Tunable]) -> Self {
        tunables.iter().map(|tunable| (tunable.name.to_owned(), tunable.default)).collect()
    }

    /// Returns every choice that there is: one value for each tunable.
    pub fn all(tunables: &[Tunable]) -> Vec<Self> {
        let with = |choices: Vec<Self>, tunable: &Tunable| {
            let each = |choice: Self| {
                tunable.values.iter().map(move |&value| {
                    let mut choice = choice.clone();
                    choice.0.insert(tunable.name.to_owned(), value);
                    choice
                })
            };
            choices.into_iter().flat_map(each).collect()
        };
        tunables.iter().fold(vec![Self::default()], with)
    }

    /// Returns the value of a tunable.
    pub fn of(&self, tunable: &Tunable) -> u32 {
        let chosen = self.0.get(tunable.name).filter(|value| tunable.values.contains(value));
        *chosen.unwrap_or(&tunable.default)
    }

    /// Returns the same with values of `other` for what is not chosen.
    pub fn or(mut self, other: Self) -> Self {
        other.0.into_iter().for_each(|(name, value)| _ = self.0.entry(name).or_insert(value));
        self
    }

    /// Yields names and values in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, u32)> {
        self.0.iter().map(|(name, &value)| (name.as_str(), value))
    }
}

impl fmt::Display for Choice {
    /// Writes `WG=64 GROUPS=4`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let values: Vec<String> = self.iter().map(|(name, value)| format!("{name}={value}")).collect();
        f.pad(&values.join(" "))
    }
}

impl FromIterator<(String, u32)> for Choice {
    fn from_iter<I: IntoIterator<Item = (String, u32)>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

/// What the device is asked to do: a pure function of the kernel, the tier and the tunables.
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
    /// Bytes read from device memory, each operand once.
    pub read: u64,
    /// Bytes written to device memory.
    pub written: u64,
    /// Floating-point operations; a fused multiply-add counts two.
    pub flops: u64,
}

impl Cost {
    /// Returns the bytes read and written.
    pub fn bytes(self) -> u64 {
        self.read + self.written
    }
}

impl std::ops::AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        self.read += other.read;
        self.written += other.written;
        self.flops += other.flops;
    }
}

/// One operation on tensors, with everything needed to run, check and cost it.
///
/// Shaders run without bounds checks: an implementation asserts in its constructor every shape from which
/// its shader computes an index, and the shader clamps what it computes from device data.
pub trait Kernel: Any + fmt::Debug + Send + Sync {
    /// Returns the kernel's name: the stem of both files.
    fn name(&self) -> &'static str;

    /// Tells whether there is a shader for the tier.
    fn runs_on(&self, _tier: Tier) -> bool {
        true
    }

    /// Returns the WGSL fragments, the kernel's own file first.
    fn source(&self, tier: Tier) -> Vec<Fragment>;

    /// Returns the tensors in the order of their bindings.
    fn operands(&self) -> Vec<Operand>;

    /// Returns the sizes and formats by which calls differ in speed, `1152 x 1280, q8_0`: calls of one
    /// shape are tuned together.
    fn shape(&self) -> String;

    /// Returns what may be tuned, at one tier or another.
    fn tunables(&self) -> Vec<Tunable> {
        Vec::new()
    }

    /// Returns every combination of these values that the kernel runs with; of another one, a tunable or more
    /// keeps its default.
    fn choices(&self, _tier: Tier) -> Vec<Choice> {
        Choice::all(&self.tunables())
    }

    /// Returns the values that take the place of defaults, where nothing was tuned, on a device whose subgroups
    /// all have `size` invocations.
    fn suited_to(&self, _size: u32) -> Choice {
        Choice::default()
    }

    /// Returns overrides, parameters and grid, with tunables as chosen.
    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch;

    /// Returns what the tier's rounding of inputs adds to the error of each output, as NMSE: 0 where they are
    /// taken as they are.
    fn rounding(&self, _tier: Tier) -> f64 {
        0.0
    }

    /// Returns the bytes and operations of one call behind `position` cached tokens.
    fn cost(&self, position: usize) -> Cost;

    /// Computes the outputs in f64 with plain loops: the specification.
    fn reference(&self, memory: &mut Memory);
}

/// Returns the fragment that binds the planes of a format in group 1 and reads 16 values at a time
/// (`Weight16`, `weight16(row, chunk, cols)`), or in pieces of 16 bytes and more (`piece(row, at, cols)`,
/// `part16(piece, part)`): 16 values are one load in q8_0, 32 in q4_0.
pub fn weight_fragment(format: Format) -> Fragment {
    match format {
        Format::F32 => fragment!("quant/f32.wgsl"),
        Format::F16 => fragment!("quant/f16.wgsl"),
        Format::Bf16 => fragment!("quant/bf16.wgsl"),
        Format::Q8_0 => fragment!("quant/q8_0.wgsl"),
        Format::Q4_0 => fragment!("quant/q4_0.wgsl"),
    }
}

/// Returns the fragment that reads the same weights as integers, a block of 32 and its scale at a time (`Piece`,
/// `piece(row, block, cols)`), and packs values of x in their order (`packed`).
///
/// # Panics
/// When the format has no integers.
fn integers_fragment(format: Format) -> Fragment {
    match format {
        Format::Q8_0 => fragment!("quant/q8_0_int8.wgsl"),
        Format::Q4_0 => fragment!("quant/q4_0_int8.wgsl"),
        Format::F32 | Format::F16 | Format::Bf16 => panic!("{format} has no integers"),
    }
}

/// Returns the fragment that reads four of `vocabulary` logits of a row at a time as bits (`Bits`,
/// `bits4(row, vector, vocabulary)`).
pub(crate) fn bits_fragment(vocabulary: usize) -> Fragment {
    if vocabulary.is_multiple_of(4) {
        fragment!("lib/bits_vectors.wgsl")
    } else {
        fragment!("lib/bits_scalars.wgsl")
    }
}

/// Returns a grid of at least `groups` workgroups, in two dimensions when one cannot hold them; the
/// number of a workgroup is `y * width + x`.
pub(crate) fn grid(groups: usize) -> [u32; 3] {
    let width = groups.clamp(1, 65535);
    [dim(width), dim(groups.div_ceil(width)), 1]
}

/// Converts a size to the `u32` of a `Params` field.
///
/// # Panics
/// When it does not fit: no tensor that a binding can hold is that large.
pub(crate) fn dim(size: usize) -> u32 {
    u32::try_from(size).expect("a dimension fits in u32")
}
