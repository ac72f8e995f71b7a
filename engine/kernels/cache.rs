//! What the kernels that touch a KV cache know of it.

use std::fmt;

use super::place::Places;
use super::{Fragment, Memory, Tier, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Sizes and element type of the key and value cache of a layer, each `[Hkv, S, Dh]`, or `[slots, Hkv, S, Dh]`
/// for a batch, and where a step's rows stand in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cache {
    pub(super) places: Places,
    pub(super) slots: usize,
    pub(super) kv_heads: usize,
    pub(super) capacity: usize,
    pub(super) head_dim: usize,
    dtype: DType,
}

impl Cache {
    /// Returns what both caches have in common, for a step of `tokens` rows.
    ///
    /// # Panics
    /// When they differ, are neither f16 nor f32, do not fit `position`, hold fewer than `tokens` keys, or
    /// `Dh` is no multiple of 8.
    pub(super) fn new(
        tensors: &Tensors,
        [k_cache, v_cache]: [TensorId; 2],
        position: TensorId,
        tokens: usize,
    ) -> Self {
        let desc = &tensors[k_cache];
        let (slots, [kv_heads, capacity, head_dim]) = match *desc.shape.dims() {
            [kv_heads, capacity, head_dim] => (None, [kv_heads, capacity, head_dim]),
            [slots, kv_heads, capacity, head_dim] => (Some(slots), [kv_heads, capacity, head_dim]),
            _ => panic!("a cache is [Hkv, S, Dh] or [slots, Hkv, S, Dh]"),
        };
        let dtype = desc.dtype;
        assert!(matches!(dtype, DType::F16 | DType::F32), "a cache holds f16 or f32, not {dtype}");
        assert!(head_dim.is_multiple_of(8), "a head is read as pairs of vectors: Dh {head_dim}");
        tensors.expect(v_cache, desc.shape.clone(), dtype);
        let places = Places::new(tensors, position, tokens, capacity);
        assert_eq!(
            slots.is_some(),
            places.batch,
            "a batch has (position, slot) and slots, a sequence neither"
        );
        Self { places, slots: slots.unwrap_or(1), kv_heads, capacity, head_dim, dtype }
    }

    /// Returns the fragment that loads and stores four values (`Kv4`, `kv_load`, `kv_store`).
    pub(super) fn fragment(self, tier: Tier) -> Fragment {
        match self.dtype {
            DType::F16 if tier.f16 => fragment!("lib/kv_f16_native.wgsl"),
            DType::F16 => fragment!("lib/kv_f16.wgsl"),
            _ => fragment!("lib/kv_f32.wgsl"),
        }
    }

    /// Returns the bytes of `rows` keys, or values, of every head.
    pub(super) fn bytes(self, rows: usize) -> u64 {
        (self.dtype.size() * self.kv_heads * rows * self.head_dim) as u64
    }

    /// Returns the keys of a head that a step behind `position` tokens, in every sequence, reads once each.
    pub(super) fn keys_read(self, position: usize) -> usize {
        let Places { tokens, capacity, batch } = self.places;
        if batch {
            tokens * (position.min(capacity - 1) + 1)
        } else {
            position.min(capacity - tokens) + tokens
        }
    }

    /// Returns the pairs of a row and a key that it sees, in a step behind `position` tokens.
    pub(super) fn pairs(self, position: usize) -> usize {
        let position = [position as f64].repeat(2 * self.places.tokens);
        (0..self.places.tokens).map(|t| self.places.place(&position, t) + 1).sum()
    }

    /// Returns the cache row in which the keys of row `t`'s sequence begin.
    fn first_row(self, position: &[f64], t: usize, head: usize) -> usize {
        let slot = if self.places.batch { (position[2 * t + 1] as usize).min(self.slots - 1) } else { 0 };
        (slot * self.kv_heads + head) * self.capacity
    }

    /// Returns what row `t` sees of a cached head: the rows up to its own.
    fn history<'a>(self, cached: &'a [f64], position: &[f64], [t, head]: [usize; 2]) -> &'a [f64] {
        let first = self.first_row(position, t, head);
        &cached[first * self.head_dim..][..(self.places.place(position, t) + 1) * self.head_dim]
    }

    /// Puts the `[Dh]` values that `of` returns for each row and head where the row stands.
    pub(super) fn append(self, cached: &mut [f64], position: &[f64], of: impl Fn([usize; 2]) -> Vec<f64>) {
        for t in 0..self.places.tokens {
            for head in 0..self.kv_heads {
                let row = self.first_row(position, t, head) + self.places.place(position, t);
                cached[row * self.head_dim..][..self.head_dim].copy_from_slice(&of([t, head]));
            }
        }
    }

    /// Computes attention over the cache: `out` is `[T, H, Dh]`, and `query` returns that of a row and head.
    pub(super) fn attend(
        self,
        memory: &Memory,
        [k_cache, v_cache, position]: [TensorId; 3],
        query_heads: usize,
        out: &mut [f64],
        query: impl Fn([usize; 2]) -> Vec<f64>,
    ) {
        let members = query_heads / self.kv_heads;
        for (row, out) in out.chunks_mut(self.head_dim).enumerate() {
            let (t, h) = (row / query_heads, row % query_heads);
            let seen = |cache| self.history(memory.read(cache), memory.read(position), [t, h / members]);
            out.copy_from_slice(&mixed(&query([t, h]), seen(k_cache), seen(v_cache)));
        }
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hkv {}, Dh {}, {}", self.kv_heads, self.head_dim, self.dtype)?;
        if self.places.batch { write!(f, ", batch") } else { Ok(()) }
    }
}

/// Returns the weighted mean of `values`, `[keys, Dh]` like `keys`: attention of one query to all of them.
fn mixed(q: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
    let dot = |key: &[f64]| -> f64 { q.iter().zip(key).map(|(q, k)| q * k).sum() };
    let scores: Vec<f64> = keys.chunks(q.len()).map(|key| dot(key) / (q.len() as f64).sqrt()).collect();
    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
    let total: f64 = weights.iter().sum();
    let mut out = vec![0.0; q.len()];
    for (weight, value) in weights.iter().zip(values.chunks(q.len())) {
        out.iter_mut().zip(value).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}
