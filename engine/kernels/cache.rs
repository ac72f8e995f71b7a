//! What the kernels that touch a KV cache know of it.

use std::fmt;

use super::{Fragment, Tier, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Sizes and element type of the key and value cache of a layer, each `[Hkv, S, Dh]`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cache {
    pub(super) kv_heads: usize,
    pub(super) capacity: usize,
    pub(super) head_dim: usize,
    dtype: DType,
}

impl Cache {
    /// Returns what both caches have in common.
    ///
    /// # Panics
    /// When they differ, are neither f16 nor f32, hold fewer than `tokens` keys, or `Dh` is no
    /// multiple of 8.
    pub(super) fn new(tensors: &Tensors, k_cache: TensorId, v_cache: TensorId, tokens: usize) -> Self {
        let desc = &tensors[k_cache];
        let &[kv_heads, capacity, head_dim] = desc.shape.dims() else { panic!("a cache is [Hkv, S, Dh]") };
        let dtype = desc.dtype;
        assert!(matches!(dtype, DType::F16 | DType::F32), "a cache holds f16 or f32, not {dtype}");
        assert!(tokens <= capacity, "a step of {tokens} tokens exceeds a cache of {capacity}");
        assert!(head_dim.is_multiple_of(8), "a head is read as pairs of vectors: Dh {head_dim}");
        tensors.expect(v_cache, desc.shape.clone(), dtype);
        Self { kv_heads, capacity, head_dim, dtype }
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

    /// Returns where the first token of a step of `tokens` goes, clamped as the shaders do.
    pub(super) fn first(self, position: &[f64], tokens: usize) -> usize {
        self.clamp(position[0] as usize, tokens)
    }

    /// Returns `position`, or where the last `tokens` of a full cache begin if it lies behind that.
    pub(super) fn clamp(self, position: usize, tokens: usize) -> usize {
        position.min(self.capacity - tokens)
    }
}

impl fmt::Display for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Hkv {}, Dh {}, {}", self.kv_heads, self.head_dim, self.dtype)
    }
}
