//! Tensor values on the CPU, for references and the graph's oracle: everything as f64.

use half::f16;

use crate::quant::q8_0_rows;
use crate::tensor::{DType, TensorDesc, TensorId, Tensors};

/// The values of every tensor of a table, as `f64` for any element type.
///
/// Values written to an f16 or q8_0 tensor are rounded, as the device stores them; weights hold what their
/// format dequantizes to.
#[derive(Debug)]
pub struct Memory {
    /// Element type and last dimension.
    types: Vec<(DType, usize)>,
    values: Vec<Vec<f64>>,
}

impl Memory {
    /// Returns a memory with every tensor zero, weights (quantized or not) still to be [`set`](Self::set).
    pub fn new(tensors: &Tensors) -> Self {
        Self::holding(tensors, |_| true)
    }

    /// Returns a memory with the tensors that `held` accepts zero, and without values for the others.
    pub(crate) fn holding(tensors: &Tensors, held: impl Fn(TensorId) -> bool) -> Self {
        let zero =
            |(id, desc): (TensorId, &TensorDesc)| vec![0.0; if held(id) { desc.shape.elements() } else { 0 }];
        Self {
            types: tensors.iter().map(|(_, desc)| (desc.dtype, desc.shape.last())).collect(),
            values: tensors.iter().map(zero).collect(),
        }
    }

    /// Returns the values of a tensor.
    pub fn read(&self, id: TensorId) -> &[f64] {
        &self.values[id.0 as usize]
    }

    /// Replaces the values of a tensor.
    ///
    /// # Panics
    /// When the number of values differs from the tensor's.
    pub fn set(&mut self, id: TensorId, values: Vec<f64>) {
        let slot = &mut self.values[id.0 as usize];
        assert_eq!(slot.len(), values.len(), "tensor {} has another number of values", id.0);
        *slot = values;
    }

    /// Lets `compute` change one tensor while it reads the others, then rounds it to its element type.
    pub(crate) fn update(&mut self, id: TensorId, compute: impl FnOnce(&mut Self, &mut [f64])) {
        let index = id.0 as usize;
        let mut values = std::mem::take(&mut self.values[index]);
        compute(self, &mut values);
        match self.types[index] {
            (DType::F16, _) => values.iter_mut().for_each(|value| *value = f16::from_f64(*value).to_f64()),
            (DType::Q8_0Rows, cols) => q8_0_rows::round(&mut values, cols),
            _ => {}
        }
        self.values[index] = values;
    }
}
