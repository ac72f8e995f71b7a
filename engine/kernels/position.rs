//! The positions of a step's rows: consecutive in one sequence, or each in another sequence.

use super::{Fragment, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// The layout of a step's tensor `position`: `[1]`, the tokens cached before the step, or `[T, 2]`, the
/// (position, slot) of each row of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Positions {
    pub(super) tokens: usize,
    pub(super) capacity: usize,
    pub(super) batch: bool,
}

impl Positions {
    /// Returns the positions of `tokens` rows in sequences of at most `capacity` tokens.
    ///
    /// # Panics
    /// When `position` is neither `[1]` nor `[T, 2]` u32, or a sequence cannot hold the step.
    pub(super) fn new(tensors: &Tensors, position: TensorId, tokens: usize, capacity: usize) -> Self {
        let batch = tensors[position].shape.dims().len() == 2;
        if batch {
            tensors.expect(position, [tokens, 2], DType::U32);
        } else {
            tensors.expect(position, [1], DType::U32);
            assert!(tokens <= capacity, "a step of {tokens} tokens exceeds a sequence of {capacity}");
        }
        Self { tokens, capacity, batch }
    }

    /// Returns the fragment that reads `position` (`position_of`, `slot`, `seen`).
    pub(super) fn fragment(self) -> Fragment {
        if self.batch {
            fragment!("lib/position_batch.wgsl")
        } else {
            fragment!("lib/position_sequence.wgsl")
        }
    }

    /// Returns the position of row `t`, clamped as the shaders do.
    pub(super) fn of(self, position: &[f64], t: usize) -> usize {
        if self.batch {
            (position[2 * t] as usize).min(self.capacity - 1)
        } else {
            (position[0] as usize).min(self.capacity - self.tokens) + t
        }
    }

    /// Returns the bytes of `position`.
    pub(super) fn bytes(self) -> u64 {
        if self.batch { 8 * self.tokens as u64 } else { 4 }
    }
}
