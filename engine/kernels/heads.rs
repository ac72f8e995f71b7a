//! The steps from a qkv projection to attention: norm of queries and keys, rotation, and the write to the
//! cache.

use super::cache::{Cache, KvCache};
use super::math::{rms_norm, rotate};
use super::{Memory, Operand};
use crate::tensor::{DType, TensorId, Tensors};

/// A packed qkv projection, with the tensors that turn it into queries, keys and values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QkvProjection {
    /// Query heads, key heads, then value heads, `[T, (H + 2 Hkv) * Dh]` f32.
    pub qkv: TensorId,
    /// Scale of a query head, `[Dh]` f32.
    pub q_weight: TensorId,
    /// Scale of a key head, `[Dh]` f32.
    pub k_weight: TensorId,
    /// Cosines, then sines of every position, `[S, Dh]` f32: see [`table`](super::rope::table).
    pub table: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
}

/// The heads of a projection, and the cache that its keys and values are appended to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heads {
    pub(super) projection: QkvProjection,
    pub(super) cache: Cache,
    pub(super) query_heads: usize,
}

impl Heads {
    /// Returns the heads of a projection with the cache that its keys and values are appended to.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, or `Dh` is none of 8, 16, .., 256.
    pub(super) fn new(tensors: &Tensors, projection: QkvProjection, cache: KvCache) -> Self {
        let QkvProjection { qkv, q_weight, k_weight, table, .. } = projection;
        let &[tokens, columns] = tensors[qkv].shape.dims() else { panic!("a projection is [T, columns]") };
        let cache = Cache::new(tensors, cache, tokens);
        let Cache { kv_heads, capacity, head_dim, .. } = cache;
        assert!(32usize.is_multiple_of(head_dim / 8), "workgroups are shared among heads: Dh {head_dim}");
        let query_heads = columns / head_dim - 2 * kv_heads;
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(table, [capacity, head_dim], DType::F32);
        Self { projection, cache, query_heads }
    }

    /// Returns the number of tokens.
    pub(super) fn tokens(&self) -> usize {
        self.cache.positions.tokens
    }

    /// Returns the operands that the projection is read from, then the position.
    pub(super) fn operands(&self) -> Vec<Operand> {
        let QkvProjection { qkv, q_weight, k_weight, table, .. } = self.projection;
        [qkv, q_weight, k_weight, table, self.cache.of.position].map(Operand::read).into()
    }

    /// Returns the bytes read: q, k and v, a row of the table for each token, both norms and the position.
    pub(super) fn bytes(&self) -> u64 {
        let Cache { kv_heads, head_dim, positions, .. } = self.cache;
        let rows = positions.tokens * (self.query_heads + 2 * kv_heads + 1) + 2;
        4 * (rows * head_dim) as u64 + positions.bytes()
    }

    /// Returns the operations of norm and rotation.
    pub(super) fn flops(&self) -> u64 {
        let Cache { kv_heads, head_dim, positions, .. } = self.cache;
        7 * (positions.tokens * (self.query_heads + kv_heads) * head_dim) as u64
    }

    /// Returns the query of row `t` and head `h`, normalised and rotated.
    pub(super) fn query(&self, memory: &Memory, at: [usize; 2]) -> Vec<f64> {
        self.prepared(memory, at, self.projection.q_weight)
    }

    /// Appends normalised, rotated keys and the values to the cache.
    pub(super) fn append(&self, memory: &mut Memory) {
        let [keys, values] = [self.query_heads, self.query_heads + self.cache.kv_heads];
        let KvCache { k, v, position } = self.cache.of;
        memory.update(k, |memory, k| {
            let key = |[t, h]: [usize; 2]| self.prepared(memory, [t, keys + h], self.projection.k_weight);
            self.cache.append(k, memory.read(position), key);
        });
        memory.update(v, |memory, v| {
            let value = |[t, h]: [usize; 2]| self.head(memory, [t, values + h]).to_vec();
            self.cache.append(v, memory.read(position), value);
        });
    }

    fn head<'a>(&self, memory: &'a Memory, [t, h]: [usize; 2]) -> &'a [f64] {
        let Cache { kv_heads, head_dim, .. } = self.cache;
        &memory.read(self.projection.qkv)[(t * (self.query_heads + 2 * kv_heads) + h) * head_dim..]
            [..head_dim]
    }

    fn prepared(&self, memory: &Memory, [t, h]: [usize; 2], weight: TensorId) -> Vec<f64> {
        let head_dim = self.cache.head_dim;
        let position = self.cache.positions.of(memory.read(self.cache.of.position), t);
        let x = rms_norm(self.head(memory, [t, h]), memory.read(weight), self.projection.eps);
        rotate(&x, &memory.read(self.projection.table)[position * head_dim..][..head_dim])
    }
}
