//! The KV cache as kernels see it: sizes, operands, shader fragments, and the reference of attention over it.

use std::fmt;

use super::math::dot;
use super::position::Positions;
use super::{FEW_TOKENS, Fragment, Memory, Operand, Tier, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Number of keys from which workgroups share the keys of a row and head, if a step allows it: see
/// `attention_decode.wgsl`.
pub const SPLIT_KEYS: usize = 768;

/// The KV cache of a layer, and the positions of a step's rows in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvCache {
    /// Keys, `[Hkv, S, Dh]`, for a batch `[slots, Hkv, S, Dh]`, in f16, f32 or rows of q8_0.
    pub k: TensorId,
    /// Values, like the keys.
    pub v: TensorId,
    /// Tokens cached before the step, `[1]` u32, or (position, slot) of each row of a batch, `[T, 2]` u32; clamped to
    /// the cache.
    pub position: TensorId,
}

/// A cache with its sizes, its element type and the positions of a step's rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cache {
    pub(super) of: KvCache,
    pub(super) positions: Positions,
    pub(super) slots: usize,
    pub(super) kv_heads: usize,
    pub(super) capacity: usize,
    pub(super) head_dim: usize,
    pub(super) dtype: DType,
}

impl Cache {
    /// Returns the cache of keys and values, for a step of `tokens` rows.
    ///
    /// # Panics
    /// When keys and values differ in shape or type, are none of f16, f32 and rows of q8_0, do not fit
    /// `position`, hold fewer than `tokens` keys, or `Dh` is no multiple of 8 (for q8_0, none of 32, 64,
    /// 128).
    pub(super) fn new(tensors: &Tensors, of: KvCache, tokens: usize) -> Self {
        let desc = &tensors[of.k];
        let (slots, [kv_heads, capacity, head_dim]) = match *desc.shape.dims() {
            [kv_heads, capacity, head_dim] => (None, [kv_heads, capacity, head_dim]),
            [slots, kv_heads, capacity, head_dim] => (Some(slots), [kv_heads, capacity, head_dim]),
            _ => panic!("a cache is [Hkv, S, Dh] or [slots, Hkv, S, Dh]"),
        };
        let dtype = desc.dtype;
        let known = matches!(dtype, DType::F16 | DType::F32 | DType::Q8_0Rows);
        assert!(known, "a cache holds f16, f32 or rows of q8_0, not {dtype}");
        let blocks = dtype != DType::Q8_0Rows || matches!(head_dim, 32 | 64 | 128);
        assert!(blocks, "a cache of q8_0 has Dh 32, 64 or 128, not {head_dim}");
        assert!(head_dim.is_multiple_of(8), "a head is read as pairs of vectors: Dh {head_dim}");
        tensors.expect(of.v, desc.shape.clone(), dtype);
        let positions = Positions::new(tensors, of.position, tokens, capacity);
        assert_eq!(
            slots.is_some(),
            positions.batch,
            "a batch has (position, slot) and slots, a sequence neither"
        );
        Self { of, positions, slots: slots.unwrap_or(1), kv_heads, capacity, head_dim, dtype }
    }

    /// Asserts that attention has tiles for these heads.
    ///
    /// # Panics
    /// When `Hkv` does not divide `H`, or `Dh` is none of 32, 64, 128.
    pub(super) fn expect_heads(self, query_heads: usize) {
        let Self { kv_heads, head_dim, .. } = self;
        assert!(matches!(head_dim, 32 | 64 | 128), "attention has no tile for Dh {head_dim}");
        assert!(query_heads.is_multiple_of(kv_heads), "{kv_heads} kv heads serve {query_heads} query heads");
    }

    /// Asserts the same for attention row by row.
    ///
    /// # Panics
    /// As [`expect_heads`](Self::expect_heads), and when a sequence has more than [`FEW_TOKENS`] rows.
    pub(super) fn expect_few_rows(self, query_heads: usize) {
        let Positions { tokens, batch, .. } = self.positions;
        assert!(batch || tokens <= FEW_TOKENS, "{tokens} tokens of a sequence, at most {FEW_TOKENS}");
        self.expect_heads(query_heads);
    }

    /// Returns the factor of scores. It includes log2(e), because shaders compute powers of two.
    pub(super) fn score_scale(self) -> f32 {
        std::f32::consts::LOG2_E / (self.head_dim as f32).sqrt()
    }

    /// Returns the operands of a kernel that reads the cache, then the position.
    pub(super) fn read(self) -> [Operand; 3] {
        [self.of.k, self.of.v, self.of.position].map(Operand::read)
    }

    /// Returns the operands of a kernel that appends to the cache.
    pub(super) fn written(self) -> [Operand; 2] {
        [self.of.k, self.of.v].map(Operand::read_write)
    }

    /// Returns the fragment that loads four values (`Kv4`, `k_load`, `v_load`, `kv_load`) and encodes them
    /// for storing (`kv_note`, `kv_word`, `kv_scales`).
    pub(super) fn fragment(self, tier: Tier) -> Fragment {
        match self.dtype {
            DType::F16 if tier.f16 => fragment!("lib/kv_f16_native.wgsl"),
            DType::F16 => fragment!("lib/kv_f16.wgsl"),
            DType::Q8_0Rows => fragment!("lib/kv_q8_0.wgsl"),
            _ => fragment!("lib/kv_f32.wgsl"),
        }
    }

    /// Returns the fragment that loads four values for matrix units (`Kv4`, `k_half`, `v_half`); none for
    /// f32, whose precision f16 would lose.
    pub(super) fn half_fragment(self) -> Option<Fragment> {
        match self.dtype {
            DType::F16 => Some(fragment!("lib/kv_half_f16.wgsl")),
            DType::Q8_0Rows => Some(fragment!("lib/kv_half_q8_0.wgsl")),
            _ => None,
        }
    }

    /// Returns the override `STRIDE`: the `Kv4`s of a row.
    pub(super) fn stride(self) -> (&'static str, f64) {
        let size = if self.dtype == DType::Q8_0Rows { 4 } else { 4 * self.dtype.size() };
        ("STRIDE", (self.dtype.row_bytes(self.head_dim) / size) as f64)
    }

    /// Returns the bytes of `rows` keys, or values, of every head.
    pub(super) fn bytes(self, rows: usize) -> u64 {
        (self.kv_heads * rows * self.dtype.row_bytes(self.head_dim)) as u64
    }

    /// Returns how many different keys of a head a step reads, after `position` tokens in every sequence.
    pub(super) fn keys_read(self, position: usize) -> usize {
        let Positions { tokens, capacity, batch } = self.positions;
        if batch {
            tokens * (position.min(capacity - 1) + 1)
        } else {
            position.min(capacity - tokens) + tokens
        }
    }

    /// Returns how many pairs of a row and a key that it sees a step has, after `position` tokens.
    pub(super) fn pairs(self, position: usize) -> usize {
        let position = [position as f64].repeat(2 * self.positions.tokens);
        (0..self.positions.tokens).map(|t| self.positions.of(&position, t) + 1).sum()
    }

    /// Returns the cache row in which the keys of row `t`'s sequence begin.
    fn first_row(self, position: &[f64], t: usize, head: usize) -> usize {
        let slot = if self.positions.batch { (position[2 * t + 1] as usize).min(self.slots - 1) } else { 0 };
        (slot * self.kv_heads + head) * self.capacity
    }

    /// Returns what row `t` sees of a cached head: the rows up to its own.
    fn history<'a>(self, cached: &'a [f64], position: &[f64], [t, head]: [usize; 2]) -> &'a [f64] {
        let first = self.first_row(position, t, head);
        &cached[first * self.head_dim..][..(self.positions.of(position, t) + 1) * self.head_dim]
    }

    /// Writes the `[Dh]` values that `of` returns for each row and head at the row's position.
    pub(super) fn append(self, cached: &mut [f64], position: &[f64], of: impl Fn([usize; 2]) -> Vec<f64>) {
        for t in 0..self.positions.tokens {
            for head in 0..self.kv_heads {
                let row = self.first_row(position, t, head) + self.positions.of(position, t);
                cached[row * self.head_dim..][..self.head_dim].copy_from_slice(&of([t, head]));
            }
        }
    }

    /// Returns how many workgroups share the keys of a row and head: 1 if `out` is `[T, H * Dh]`; as many as it
    /// has parts if it is `[T, H, splits, Dh + 4]`.
    ///
    /// # Panics
    /// When it is neither.
    pub(super) fn splits(self, tensors: &Tensors, out: TensorId, query_heads: usize) -> usize {
        let tokens = self.positions.tokens;
        if let &[_, _, splits, _] = tensors[out].shape.dims() {
            tensors.expect(out, [tokens, query_heads, splits, self.head_dim + 4], DType::F32);
            return splits;
        }
        tensors.expect(out, [tokens, query_heads * self.head_dim], DType::F32);
        1
    }

    /// Returns the bytes of the output of attention, whole or in parts.
    pub(super) fn output_bytes(self, query_heads: usize, splits: usize) -> u64 {
        let part = if splits == 1 { self.head_dim } else { splits * (self.head_dim + 4) };
        4 * (self.positions.tokens * query_heads * part) as u64
    }

    /// Computes attention over the cache, whole or in parts; `query` returns the query of a row and head.
    pub(super) fn attend(
        self,
        memory: &Memory,
        [query_heads, splits]: [usize; 2],
        out: &mut [f64],
        query: impl Fn([usize; 2]) -> Vec<f64>,
    ) {
        let (members, KvCache { k, v, position }) = (query_heads / self.kv_heads, self.of);
        let width = out.len() / (self.positions.tokens * query_heads);
        for (row, out) in out.chunks_mut(width).enumerate() {
            let at @ [t, h] = [row / query_heads, row % query_heads];
            let seen = |cache| self.history(memory.read(cache), memory.read(position), [t, h / members]);
            let (q, keys, values) = (query(at), seen(k), seen(v));
            if splits == 1 {
                let mix = Mix::new(&q, keys, values);
                out.iter_mut().zip(&mix.sum).for_each(|(out, sum)| *out = sum / mix.total);
                continue;
            }
            let seen = keys.len() / q.len();
            let share = if seen < SPLIT_KEYS { seen } else { seen.div_ceil(splits) } * q.len();
            let parts = out.chunks_mut(width / splits);
            for (i, part) in parts.enumerate() {
                let range = (i * share).min(keys.len())..((i + 1) * share).min(keys.len());
                part.copy_from_slice(&Mix::new(&q, &keys[range.clone()], &values[range]).part());
            }
        }
    }
}

/// Weighted values; weights are relative to the largest score.
struct Mix {
    top: f64,
    total: f64,
    sum: Vec<f64>,
}

impl Mix {
    /// Mixes `values`, `[keys, Dh]` like `keys`, by the scores of `q`.
    fn new(q: &[f64], keys: &[f64], values: &[f64]) -> Self {
        let scale = 1.0 / (q.len() as f64).sqrt();
        let scores: Vec<f64> = keys.chunks(q.len()).map(|key| dot(q, key) * scale).collect();
        let top = scores.iter().copied().fold(LOWEST, f64::max);
        let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
        let mut sum = vec![0.0; q.len()];
        for (weight, value) in weights.iter().zip(values.chunks(q.len())) {
            sum.iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * v);
        }
        Self { top, total: weights.iter().sum(), sum }
    }

    /// Returns the part that a workgroup stores for its share; the score is an exponent of two, as in the
    /// shaders.
    fn part(self) -> Vec<f64> {
        let top = (self.top * std::f64::consts::LOG2_E).max(LOWEST);
        [self.sum, vec![top, self.total, 0.0, 0.0]].concat()
    }
}

/// The largest score without keys: `LOWEST` of the shaders.
const LOWEST: f64 = -3e38;

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hkv {}, Dh {}, {}", self.kv_heads, self.head_dim, self.dtype)
    }
}
