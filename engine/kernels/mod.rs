//! The kernels: each a pair of `shaders/<name>.wgsl` and a file here, plus one word in the list below.
//!
//! A kernel is plain data. It names its tensors, yields its WGSL fragments, its dispatch and its cost,
//! and carries the scalar f64 reference that defines what it computes. It must not know `wgpu`, the
//! graph, or another kernel.
//!
//! Bindings: `@group(0) @binding(0)` is the uniform `Params`; the operands follow in the order of
//! [`Kernel::operands`]. A weight's planes are `@group(1)`, declared by its format's fragment.
//!
#![doc = include_str!("../../shaders/README.md")]

mod cache;
mod case;
pub mod draw;
mod fragment;
mod heads;
mod heads_case;
mod math;
mod memory;
mod position;
mod source;
mod threefry;
mod tier;
pub(crate) mod token;
mod tunable;
mod weight;
mod window;

use std::any::Any;
use std::fmt;
use std::sync::LazyLock;

pub use attention_decode::AttentionDecode;
pub use attention_merge::AttentionMerge;
pub use cache::{KvCache, SPLIT_KEYS};
pub(crate) use case::CaseBuilder;
pub use case::{Case, Fill};
pub use fragment::Fragment;
pub(crate) use fragment::fragment;
pub use heads::QkvProjection;
pub use memory::Memory;
pub use product::{FEW_TOKENS, MOST_TOKENS, NAMES as PRODUCTS, ProductCase};
pub use qk_norm_rope::QkNormRope;
pub use qk_norm_rope_attention::QkNormRopeAttention;
pub use rope::table as rope_table;
pub use sample::{Binds as SampleBinds, Sample, scratch_shape};
pub use source::{Shaders, Source};
pub use threefry::random;
pub use tier::{MatrixShape, Tier};
pub use token::TokenState;
pub use tunable::{Choice, Tunable};
pub(crate) use weight::{integers_fragment, weight_fragment};
pub(crate) use window::Window;

use crate::tensor::TensorId;

/// Declares the kernel modules and lists them: a new kernel adds one word here. A family is one word too; it
/// has a table of its kernels' names, and cases for each.
macro_rules! kernels {
    ($($name:ident)*; families: $($family:ident)*) => {
        $(pub(crate) mod $name;)*
        $(pub(crate) mod $family;)*

        /// Every kernel, in the order of its name.
        pub static LIST: LazyLock<Vec<Entry>> = LazyLock::new(|| {
            let mut list = vec![$(Entry { name: stringify!($name), of_name: |_| $name::cases() }),*];
            $(list.extend($family::NAMES.iter().map(|name| Entry { name, of_name: $family::cases }));)*
            list.sort_unstable_by_key(|entry| entry.name);
            list
        });
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
    matrix_multiply_add
    multiply
    multiply_add
    qk_norm
    qk_norm_rope
    qk_norm_rope_attention
    rms_norm
    rope
    row_mean
    sample
    stream_copy
    swiglu
    unary;
    families: product
}

/// A kernel of the list, with the cases that test and bench it.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Its name.
    pub name: &'static str,
    of_name: fn(&str) -> Vec<Case>,
}

impl Entry {
    /// Builds its cases.
    pub fn cases(&self) -> Vec<Case> {
        (self.of_name)(self.name)
    }

    /// Returns the kernel of a name, if there is one.
    pub fn named(name: &str) -> Option<&'static Self> {
        LIST.iter().find(|entry| entry.name == name)
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
    /// Returns whether the kernel may store to the operand.
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

/// What the device runs: a pure function of the kernel, the tier and the tunables.
#[derive(Clone, Debug, PartialEq)]
pub struct Dispatch {
    /// Values of the shader's `override` declarations, by name.
    pub overrides: Vec<(&'static str, f64)>,
    /// The bytes of the uniform `Params`.
    pub params: Vec<u8>,
    /// Workgroups in x, y and z; at most 65535 each.
    pub grid: [u32; 3],
}

/// The minimum that a kernel must move and compute: the basis of its roofline.
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

    /// Returns whether there is a shader for the tier.
    fn runs_on(&self, _tier: Tier) -> bool {
        true
    }

    /// Returns the WGSL fragments, the kernel's own file first.
    fn source(&self, tier: Tier) -> Vec<Fragment>;

    /// Returns the tensors in the order of their bindings.
    fn operands(&self) -> Vec<Operand>;

    /// Returns the tuning key: the sizes and formats that decide the speed of a call, `1152 x 1280, q8_0`.
    fn shape(&self) -> String;

    /// Returns the tunables of all tiers.
    fn tunables(&self) -> Vec<Tunable> {
        Vec::new()
    }

    /// Returns every combination of tunable values that the kernel runs as chosen. In any other, a tunable or
    /// more keeps its default.
    fn choices(&self, _tier: Tier) -> Vec<Choice> {
        Choice::all(&self.tunables())
    }

    /// Returns the values that replace the defaults, if nothing was tuned, on a device whose subgroups all
    /// have `size` invocations.
    fn suited_to(&self, _size: u32) -> Choice {
        Choice::default()
    }

    /// Returns overrides, parameters and grid, with tunables as chosen.
    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch;

    /// Returns what the tier's rounding of inputs adds to the error of each output, as NMSE; 0 if it does not
    /// round.
    fn rounding(&self, _tier: Tier) -> f64 {
        0.0
    }

    /// Returns the bytes and operations of one call after `position` cached tokens.
    fn cost(&self, position: usize) -> Cost;

    /// Computes the outputs in f64 with plain loops: the specification.
    fn reference(&self, memory: &mut Memory);
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
