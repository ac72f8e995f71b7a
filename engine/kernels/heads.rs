//! What is done to one head, in f64: said once for the references of all kernels that do it.

use super::Memory;
use super::cache::Cache;
use super::math::{rms_norm, rotate};
use crate::tensor::TensorId;

/// The packed projection of a step, `[T, (H + 2 Hkv) * Dh]`, with all that makes queries, keys and values of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Projection {
    pub(super) qkv: TensorId,
    pub(super) q_weight: TensorId,
    pub(super) k_weight: TensorId,
    pub(super) table: TensorId,
    pub(super) position: TensorId,
    pub(super) eps: f32,
    pub(super) query_heads: usize,
    pub(super) cache: Cache,
}

impl Projection {
    /// Returns the query of row `t` and head `h`, normalised and turned.
    pub(super) fn query(&self, memory: &Memory, at: [usize; 2]) -> Vec<f64> {
        self.prepared(memory, at, self.q_weight)
    }

    /// Appends normalised, turned keys and the values to the cache.
    pub(super) fn append(&self, memory: &mut Memory, k_cache: TensorId, v_cache: TensorId) {
        let [keys, values] = [self.query_heads, self.query_heads + self.cache.kv_heads];
        memory.update(k_cache, |memory, k_cache| {
            let key = |[t, h]: [usize; 2]| self.prepared(memory, [t, keys + h], self.k_weight);
            self.cache.append(k_cache, memory.read(self.position), key);
        });
        memory.update(v_cache, |memory, v_cache| {
            let value = |[t, h]: [usize; 2]| self.head(memory, [t, values + h]).to_vec();
            self.cache.append(v_cache, memory.read(self.position), value);
        });
    }

    fn head<'a>(&self, memory: &'a Memory, [t, h]: [usize; 2]) -> &'a [f64] {
        let Cache { kv_heads, head_dim, .. } = self.cache;
        &memory.read(self.qkv)[(t * (self.query_heads + 2 * kv_heads) + h) * head_dim..][..head_dim]
    }

    fn prepared(&self, memory: &Memory, [t, h]: [usize; 2], weight: TensorId) -> Vec<f64> {
        let head_dim = self.cache.head_dim;
        let place = self.cache.places.place(memory.read(self.position), t);
        let x = rms_norm(self.head(memory, [t, h]), memory.read(weight), self.eps);
        rotate(&x, &memory.read(self.table)[place * head_dim..][..head_dim])
    }
}
