//! A block of values in a wider tensor: some heads of a projection, the last rows of an activation.

use std::ops::Range;

use super::Operand;
use crate::tensor::{DType, TensorId, Tensors};

/// Neighbouring columns in neighbouring rows of an f32 tensor; value number `i`, row by row, is at
/// `first + i / cols * stride + i % cols`.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    /// The tensor, `[T, stride]` f32.
    pub tensor: TensorId,
    /// Rows of the window.
    pub rows: usize,
    /// Columns of the window.
    pub cols: usize,
    pub(super) first: usize,
    pub(super) stride: usize,
    whole: bool,
}

impl Window {
    /// Returns the window of these rows and columns.
    ///
    /// # Panics
    /// When the tensor does not have them, or they are none.
    pub fn new(tensors: &Tensors, tensor: TensorId, rows: Range<usize>, cols: Range<usize>) -> Self {
        let &[height, stride] = tensors[tensor].shape.dims() else { panic!("a window is of [T, columns]") };
        tensors.expect(tensor, [height, stride], DType::F32);
        assert!(
            rows.end <= height && cols.end <= stride,
            "window {rows:?} x {cols:?} of {height} x {stride}"
        );
        assert!(!rows.is_empty() && !cols.is_empty(), "window {rows:?} x {cols:?} is empty");
        let whole = (rows.len(), cols.len()) == (height, stride);
        let first = rows.start * stride + cols.start;
        Self { tensor, rows: rows.len(), cols: cols.len(), first, stride, whole }
    }

    /// Returns the window of all rows and columns.
    pub fn whole(tensors: &Tensors, tensor: TensorId) -> Self {
        let &[height, stride] = tensors[tensor].shape.dims() else { panic!("a window is of [T, columns]") };
        Self::new(tensors, tensor, 0..height, 0..stride)
    }

    /// Returns the number of values.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }

    /// Returns the index of value number `i` in the tensor.
    pub(super) fn at(&self, i: usize) -> usize {
        self.first + i / self.cols * self.stride + i % self.cols
    }

    /// Returns the operand of a kernel that writes every value of the window.
    pub(super) fn written(&self) -> Operand {
        if self.whole { Operand::write(self.tensor) } else { Operand::read_write(self.tensor) }
    }
}
