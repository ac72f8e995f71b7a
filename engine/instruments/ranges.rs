//! Buffers of the tensors that an instrument binds.

use crate::error::Result;
use crate::gpu::{Bindings, BufferRange, Gpu, pack_values};
use crate::kernels::{Case, Memory};
use crate::tensor::{TensorId, Tensors};

/// The bytes of each tensor's planes; none for a tensor that is not bound.
pub(super) type Planes = Vec<Vec<Vec<u8>>>;

/// Converts the inputs of a case to their bytes on the device.
pub(super) fn pack(case: &Case, inputs: &Memory) -> Planes {
    let planes = case.tensors.iter().map(|(id, desc)| match case.access(id) {
        Some(_) => pack_values(desc, inputs.read(id)),
        None => Vec::new(),
    });
    planes.collect()
}

/// The ranges that hold each tensor; none for a tensor that is not bound.
#[derive(Debug)]
pub(super) struct Ranges(Vec<Vec<BufferRange>>);

impl Ranges {
    /// Gives each tensor the ranges that `of` returns for it.
    pub(super) fn new(
        tensors: &Tensors,
        of: impl FnMut(TensorId) -> Result<Vec<BufferRange>>,
    ) -> Result<Self> {
        Ok(Self(tensors.iter().map(|(id, _)| id).map(of).collect::<Result<_>>()?))
    }

    /// Gives each plane a buffer that holds it.
    pub(super) fn upload(gpu: &Gpu, tensors: &Tensors, planes: &Planes) -> Result<Self> {
        Self::new(tensors, |id| upload(gpu, tensors, planes, id))
    }

    /// Returns the same with every range changed by `part`.
    pub(super) fn map(&self, part: impl Fn(&BufferRange) -> BufferRange) -> Self {
        Self(self.0.iter().map(|ranges| ranges.iter().map(&part).collect()).collect())
    }
}

/// Uploads the planes of one tensor.
pub(super) fn upload(
    gpu: &Gpu,
    tensors: &Tensors,
    planes: &Planes,
    tensor: TensorId,
) -> Result<Vec<BufferRange>> {
    let plane = |plane: &Vec<u8>| {
        let range = gpu.storage(&tensors[tensor].name, plane.len() as u64)?;
        gpu.write(&range, 0, plane);
        Ok(range)
    };
    planes[tensor.0 as usize].iter().map(plane).collect()
}

impl Bindings for Ranges {
    fn ranges(&self, tensor: TensorId) -> &[BufferRange] {
        &self.0[tensor.0 as usize]
    }
}
