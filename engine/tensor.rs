//! Descriptions of tensors: shape, element type, identity. Storage is owned elsewhere.
//!
//! Everything is row-major with the last dimension contiguous.

use std::fmt;
use std::ops::Index;

/// Element type of a tensor on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float, two to a `u32` word.
    F16,
    /// The upper half of an [`DType::F32`], two to a `u32` word.
    Bf16,
    /// 32-bit unsigned integer.
    U32,
    /// 8-bit integers in blocks of 32 that share an f16 scale.
    Q8_0,
    /// 4-bit integers in blocks of 32 that share an f16 scale.
    Q4_0,
    /// Like [`DType::Q8_0`] with the scales of a row after its integers, in one buffer: a KV cache.
    Q8_0Rows,
}

impl DType {
    /// Returns the bytes of one value.
    ///
    /// # Panics
    /// For the quantized types, whose values share scales.
    pub fn size(self) -> usize {
        match self {
            Self::F32 | Self::U32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::Q8_0 | Self::Q4_0 | Self::Q8_0Rows => panic!("a single {self} value has no size"),
        }
    }

    /// Returns the bytes of a row of `cols` values in one buffer.
    ///
    /// # Panics
    /// For the quantized types of weights, which take several.
    pub(crate) fn row_bytes(self, cols: usize) -> usize {
        match self {
            // Scales are f16, two to a word; an odd last block leaves half a word unused.
            Self::Q8_0Rows => cols + 4 * cols.div_ceil(64),
            _ => cols * self.size(),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::U32 => "u32",
            Self::Q8_0 | Self::Q8_0Rows => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}

/// The sizes of a tensor, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// Returns the number of elements.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// Returns the sizes, outermost first.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Returns the size of the last, contiguous dimension.
    pub fn last(&self) -> usize {
        *self.0.last().expect("a shape has at least one dimension")
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        assert!(N > 0, "a shape has at least one dimension");
        Self(dims.to_vec())
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dims: Vec<String> = self.0.iter().map(usize::to_string).collect();
        f.pad(&format!("[{}]", dims.join(", ")))
    }
}

/// Identity of a tensor within one [`Tensors`] table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub u32);

/// The description of a tensor, without its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorDesc {
    /// Label: a published weight name, or a path such as `layer.3/attn/qkv`.
    pub name: String,
    /// Sizes, outermost first.
    pub shape: Shape,
    /// Element type on the device.
    pub dtype: DType,
}

/// A table of tensor descriptions, addressed by [`TensorId`].
#[derive(Clone, Debug, Default)]
pub struct Tensors(Vec<TensorDesc>);

impl Tensors {
    /// Appends a description and returns its identity.
    pub fn add(&mut self, name: impl Into<String>, shape: impl Into<Shape>, dtype: DType) -> TensorId {
        let id = TensorId(u32::try_from(self.0.len()).expect("fewer than 2^32 tensors"));
        self.0.push(TensorDesc { name: name.into(), shape: shape.into(), dtype });
        id
    }

    /// Yields every tensor with its identity, in the order of creation.
    pub fn iter(&self) -> impl Iterator<Item = (TensorId, &TensorDesc)> {
        (0u32..).map(TensorId).zip(&self.0)
    }

    /// Returns the number of tensors.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns whether the table has no tensor.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Asserts that a tensor has the shape and element type that an operation needs.
    ///
    /// # Panics
    /// When it does not: the graph was built wrongly.
    pub fn expect(&self, id: TensorId, shape: impl Into<Shape>, dtype: DType) {
        let (found, shape) = (&self[id], shape.into());
        assert!(
            found.shape == shape && found.dtype == dtype,
            "tensor `{}`: expected {shape} {dtype}, found {} {}",
            found.name,
            found.shape,
            found.dtype
        );
    }
}

impl Index<TensorId> for Tensors {
    type Output = TensorDesc;

    fn index(&self, id: TensorId) -> &TensorDesc {
        &self.0[id.0 as usize]
    }
}
