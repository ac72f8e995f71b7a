//! What is done to one head, in f64: said once for the references of all kernels that do it.

use super::Memory;
use super::cache::Cache;
use super::rows::normed;
use crate::tensor::TensorId;

/// Returns the head turned by a row of the RoPE table: cosines, then sines.
pub(super) fn turned(x: &[f64], table: &[f64]) -> Vec<f64> {
    let half = x.len() / 2;
    let mut out = vec![0.0; x.len()];
    for j in 0..half {
        let (cos, sin) = (table[j], table[half + j]);
        out[j] = x[j] * cos - x[half + j] * sin;
        out[half + j] = x[half + j] * cos + x[j] * sin;
    }
    out
}

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
        let x = normed(self.head(memory, [t, h]), memory.read(weight), self.eps);
        turned(&x, &memory.read(self.table)[place * head_dim..][..head_dim])
    }
}
