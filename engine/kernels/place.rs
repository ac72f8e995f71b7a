//! Where the rows of a step stand: behind each other in one sequence, or each in a sequence of its own.

use std::fmt;

use super::{CaseBuilder, Fill, Fragment, fragment};
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// The places of a step's rows, as its tensor `position` gives them: `[1]` holds the tokens cached before the
/// step, `[T, 2]` the (position, slot) of each row of a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    pub(super) tokens: usize,
    pub(super) capacity: usize,
    pub(super) batch: bool,
}

impl Places {
    /// Returns the places of `tokens` rows in sequences of at most `capacity` tokens.
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

    /// Returns the fragment that reads `position` (`place`, `slot`, `seen`).
    pub(super) fn fragment(self) -> Fragment {
        if self.batch { fragment!("lib/place_batch.wgsl") } else { fragment!("lib/place_sequence.wgsl") }
    }

    /// Returns the position of row `t`, clamped as the shaders do.
    pub(super) fn place(self, position: &[f64], t: usize) -> usize {
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

/// Sequences of different lengths in slots out of order, one of them empty.
pub(super) const RAGGED: Rows = Rows::Batch(&[[299, 2], [0, 4], [256, 0], [70, 1]], 5);

/// Positions and slots past the end of the cache.
pub(super) const PAST: Rows = Rows::Batch(&[[4_000_000_000, 0], [3, 4_000_000_000]], 2);

/// Where the rows of a case stand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    /// So many tokens of one sequence, behind as many cached ones.
    Sequence(usize, usize),
    /// A (position, slot) for each row of a batch, and the slots of the cache.
    Batch(&'static [[usize; 2]], usize),
}

impl Rows {
    /// Returns the number of rows.
    pub(super) fn tokens(self) -> usize {
        match self {
            Self::Sequence(tokens, _) => tokens,
            Self::Batch(rows, _) => rows.len(),
        }
    }

    /// Adds the tensor `position`.
    pub(super) fn position(self, case: &mut CaseBuilder) -> TensorId {
        let (shape, values): (Shape, Vec<usize>) = match self {
            Self::Sequence(_, position) => ([1].into(), vec![position]),
            Self::Batch(rows, _) => ([rows.len(), 2].into(), rows.concat()),
        };
        let values = values.into_iter().map(|value| value as f64).collect();
        case.tensor("position", shape, DType::U32, Fill::Values(values))
    }

    /// Returns the shape of a cache for them.
    pub(super) fn cache(self, [kv_heads, capacity, head_dim]: [usize; 3]) -> Shape {
        match self {
            Self::Sequence(..) => [kv_heads, capacity, head_dim].into(),
            Self::Batch(_, slots) => [slots, kv_heads, capacity, head_dim].into(),
        }
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequence(tokens, position) => write!(f, "T {tokens} at {position}"),
            Self::Batch(rows, slots) => write!(f, "batch of {} in {slots} slots", rows.len()),
        }
    }
}
