//! The case builder of all kernels between the qkv projection and the output projection: rows at their positions,
//! heads, and a cache.

use std::fmt;

use super::cache::KvCache;
use super::heads::QkvProjection;
use super::{Case, CaseBuilder, Fill, Kernel};
use crate::tensor::{DType, Shape, TensorId};

/// Sequences of different lengths in slots out of order, one of them empty.
pub(super) const RAGGED: Rows = Rows::Batch(&[[299, 2], [0, 4], [256, 0], [70, 1]], 5);

/// Positions and slots past the end of the cache.
pub(super) const PAST: Rows = Rows::Batch(&[[4_000_000_000, 0], [3, 4_000_000_000]], 2);

/// The heads of OpenELM's sizes: H, Hkv and Dh.
pub(super) const OPENELM: [[usize; 3]; 5] =
    [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]];

/// The heads of the demo.
pub(super) const FABLE: [[usize; 3]; 3] = [[2, 1, 32], [4, 2, 32], [6, 3, 32]];

/// The element types of a cache.
pub(super) const CACHES: [DType; 3] = [DType::F16, DType::F32, DType::Q8_0Rows];

/// The rows of a case at their positions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows {
    /// The number of tokens of one sequence, and of the cached ones before them.
    Sequence(usize, usize),
    /// A (position, slot) for each row of a batch, and the slots of the cache.
    Batch(&'static [[usize; 2]], usize),
}

/// Returns the row of one token after `position` cached ones.
pub(super) fn one(position: usize) -> Rows {
    Rows::Sequence(1, position)
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
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sequence(tokens, position) => write!(f, "T {tokens} at {position}"),
            Self::Batch(rows, slots) => write!(f, "batch of {} in {slots} slots", rows.len()),
        }
    }
}

/// A case under construction: rows of heads and a cache, whose tensors are added one by one.
pub(super) struct HeadsCase {
    pub(super) case: CaseBuilder,
    rows: Rows,
    capacity: usize,
    heads: [usize; 3],
    dtype: DType,
    splits: usize,
}

impl HeadsCase {
    /// Starts a case of rows in caches of `capacity` tokens, with H, Hkv and Dh in `heads`.
    pub(super) fn new(
        label: &str,
        (rows, capacity): (Rows, usize),
        heads @ [h, hkv, dh]: [usize; 3],
        dtype: DType,
        bench: bool,
    ) -> Self {
        let label = format!("{label}, {rows} of {capacity}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}");
        Self { case: CaseBuilder::new(label).benched(bench), rows, capacity, heads, dtype, splits: 1 }
    }

    /// Lets `splits` workgroups share the keys of a head.
    pub(super) fn split(self, splits: usize) -> Self {
        let case = if splits == 1 { self.case } else { self.case.more(&format!("splits {splits}")) };
        Self { case, splits, ..self }
    }

    /// Adds an f32 tensor of `heads` heads per row.
    pub(super) fn of_heads(&mut self, name: &str, heads: usize, fill: Fill) -> TensorId {
        self.case.tensor(name, [self.rows.tokens(), heads * self.heads[2]], DType::F32, fill)
    }

    /// Adds a packed projection with its norms and table.
    pub(super) fn projection(&mut self, fill: Fill) -> QkvProjection {
        let [h, hkv, dh] = self.heads;
        let qkv = self.of_heads("qkv", h + 2 * hkv, fill);
        let [q_weight, k_weight] =
            ["q_weight", "k_weight"].map(|name| self.case.tensor(name, [dh], DType::F32, Fill::Uniform(1.5)));
        // Any numbers will do for a rotation; different ones reveal a wrong row or column.
        let table = self.case.tensor("table", [self.capacity, dh], DType::F32, Fill::Uniform(1.0));
        QkvProjection { qkv, q_weight, k_weight, table, eps: 1e-6 }
    }

    /// Adds a cache and the position.
    pub(super) fn cache(&mut self, [k, v]: [Fill; 2]) -> KvCache {
        let [_, hkv, dh] = self.heads;
        let shape: Shape = match self.rows {
            Rows::Sequence(..) => [hkv, self.capacity, dh].into(),
            Rows::Batch(_, slots) => [slots, hkv, self.capacity, dh].into(),
        };
        let position = self.rows.position(&mut self.case);
        let k = self.case.tensor("k_cache", shape.clone(), self.dtype, k);
        let v = self.case.tensor("v_cache", shape, self.dtype, v);
        KvCache { k, v, position }
    }

    /// Adds the output of attention: whole, or in as many parts as workgroups share the keys of a head.
    pub(super) fn mix(&mut self) -> TensorId {
        let ([h, _, dh], tokens) = (self.heads, self.rows.tokens());
        let shape: Shape = match self.splits {
            1 => [tokens, h * dh].into(),
            splits => [tokens, h, splits, dh + 4].into(),
        };
        self.case.tensor("out", shape, DType::F32, Fill::Zero)
    }

    /// Finishes the case of a kernel that writes the cache: `exact` is the tolerance for f32, with its
    /// reason.
    pub(super) fn build_writing(self, kernel: impl Kernel, exact: (f64, &'static str)) -> Case {
        let (tolerance, reason) = match self.dtype {
            DType::F16 => (
                5e-7,
                "an adapter may round to f16 toward zero: half of the values are one step of 2^-10 off",
            ),
            DType::Q8_0Rows => (
                1e-6,
                "an adapter may round scales to f16 toward zero, 2^-10 off; few values next to a half go the other way",
            ),
            _ => exact,
        };
        self.case.build(kernel, tolerance, reason)
    }
}

/// Rows, the capacity of their sequences, and the workgroups that share the keys of a head.
pub(super) type AttentionAt = (Rows, usize, usize);

/// Yields the common cases of the two kernels of attention row by row: OpenELM's heads for one row and a few,
/// ends of chunks of keys and of the cache, and batches.
pub(super) fn decode_cases(dtype: DType, mut push: impl FnMut(&str, AttentionAt, [usize; 3], bool)) {
    for heads in OPENELM {
        push("OpenELM", (one(511), 512, 1), heads, true);
    }
    push("full context", (one(2047), 2048, 1), [20, 5, 64], true);
    push("full context", (one(2047), 2048, 8), [20, 5, 64], dtype == DType::F16);
    push("uneven shares", (Rows::Sequence(4, 996), 1000, 7), [4, 2, 64], false);
    push("shares in a batch", (Rows::Batch(&[[999, 1], [70, 0]], 2), 1000, 3), [4, 2, 32], false);
    push("too few to share", (Rows::Sequence(8, 758), 1000, 3), [4, 2, 32], false);
    push("a few", (Rows::Sequence(5, 507), 512, 1), [20, 5, 64], dtype == DType::F16);
    for heads in FABLE {
        push("fable", (one(70), 256, 1), heads, false);
    }
    for head_dim in [32, 64, 128] {
        push("first token", (one(0), 37, 1), [4, 1, head_dim], false);
        push("last position", (one(36), 37, 1), [4, 1, head_dim], false);
        push("one key past a chunk", (one(256), 300, 1), [3, 3, head_dim], false);
        push("one kv head for five", (one(299), 300, 1), [5, 1, head_dim], false);
        push("first tokens", (Rows::Sequence(8, 0), 37, 1), [4, 1, head_dim], false);
        push("across a chunk", (Rows::Sequence(7, 252), 300, 1), [4, 2, head_dim], false);
        push("ragged", (RAGGED, 300, 1), [4, 2, head_dim], false);
    }
    push("position past the cache is clamped", (one(4_000_000_000), 37, 1), [4, 2, 64], false);
    push("step past the cache is clamped", (Rows::Sequence(3, 4_000_000_000), 37, 1), [4, 2, 64], false);
    push("past the cache is clamped", (PAST, 37, 1), [4, 2, 64], false);
}

/// Keys or values of 2 heads and 37 positions; those past the first 21 are NaN, as if never written.
pub(super) fn stale() -> Fill {
    let value = |i: usize| {
        if i / 64 % 37 <= 20 { (i * 131 % 257) as f64 / 128.0 - 1.0 } else { f64::NAN }
    };
    Fill::Values((0..2 * 37 * 64).map(value).collect())
}
