//! `k_cache[:, position_of(t), :] = k[t]; v_cache[:, position_of(t), :] = v[t]`: appends a step's keys and
//! values to the cache of their layer.
//!
//! Not fused: `qk_norm_rope` writes the cache as it computes the keys.

use bytemuck::{Pod, Zeroable};

use super::cache::{Cache, KvCache};
use super::heads_case::{CACHES, HeadsCase, PAST, RAGGED, Rows, one};
use super::{Case, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Append of keys and values to the KV cache.
#[derive(Clone, Debug)]
pub struct KvWrite {
    /// Queries and keys, ready for attention, `[T, (H + Hkv) * Dh]` f32.
    pub qk: TensorId,
    /// Packed projection, which holds the values, `[T, (H + 2 Hkv) * Dh]` f32.
    pub qkv: TensorId,
    /// The cache that keys and values are appended to.
    pub kv: KvCache,
    /// Query heads `H`.
    pub query_heads: usize,
    cache: Cache,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    query_heads: u32,
    kv_heads: u32,
    slots: u32,
    capacity: u32,
}

const _: () = assert!(size_of::<Params>() == 20);

impl KvWrite {
    /// Returns the append of the keys of `qk` and the values of `qkv` at `position`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, or `Dh` is no multiple of 8.
    pub fn new(tensors: &Tensors, qk: TensorId, qkv: TensorId, kv: KvCache, query_heads: usize) -> Self {
        let tokens = tensors[qk].shape.dims()[0];
        let cache = Cache::new(tensors, kv, tokens);
        tensors.expect(qk, [tokens, (query_heads + cache.kv_heads) * cache.head_dim], DType::F32);
        tensors.expect(qkv, [tokens, (query_heads + 2 * cache.kv_heads) * cache.head_dim], DType::F32);
        Self { qk, qkv, kv, query_heads, cache }
    }

    /// Copies heads from `x`, which has `heads` heads per token, from number `head` on.
    fn copy(&self, memory: &Memory, x: TensorId, [heads, head]: [usize; 2], out: &mut [f64]) {
        let head_dim = self.cache.head_dim;
        self.cache.append(out, memory.read(self.kv.position), |[t, h]| {
            memory.read(x)[(t * heads + head + h) * head_dim..][..head_dim].to_vec()
        });
    }
}

impl Kernel for KvWrite {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("kv_write.wgsl"), self.cache.fragment(tier), self.cache.positions.fragment()]
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = [self.qk, self.qkv, self.kv.position].map(Operand::read).to_vec();
        operands.extend(self.cache.written());
        operands
    }

    fn shape(&self) -> String {
        format!("T {}, {}", self.cache.positions.tokens, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params {
            tokens: dim(self.cache.positions.tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            slots: dim(self.cache.slots),
            capacity: dim(self.cache.capacity),
        };
        let cols = self.cache.head_dim / 4;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("COLS", cols as f64), self.cache.stride()],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((self.cache.positions.tokens * self.cache.kv_heads * cols).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = (self.cache.positions.tokens * self.cache.kv_heads * self.cache.head_dim) as u64;
        Cost { read: 8 * n + self.cache.positions.bytes(), written: 2 * self.cache.bytes(self.cache.positions.tokens), flops: 0 }
    }

    fn reference(&self, memory: &mut Memory) {
        let heads = self.query_heads + self.cache.kv_heads;
        memory.update(self.kv.k, |m, out| self.copy(m, self.qk, [heads, self.query_heads], out));
        memory.update(self.kv.v, |m, out| {
            self.copy(m, self.qkv, [heads + self.cache.kv_heads, heads], out);
        });
    }
}

/// OpenELM's heads for one token and a prefill, in every cache type, and the ends of the cache.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, at: (Rows, usize), heads @ [h, hkv, _]: [usize; 3], dtype, fill: Fill, bench| {
        let mut case = HeadsCase::new(label, at, heads, dtype, bench);
        let qk = case.of_heads("qk", h + hkv, fill.clone());
        let qkv = case.of_heads("qkv", h + 2 * hkv, fill);
        let kv = case.cache([Fill::Uniform(1.0), Fill::Uniform(1.0)]);
        let kernel = KvWrite::new(&case.case.tensors, qk, qkv, kv, h);
        case.build_writing(kernel, (0.0, "a copy"))
    };
    let mut cases = Vec::new();
    for dtype in CACHES {
        let mut push = |label: &str, at: (Rows, usize), heads: [usize; 3], bench: bool| {
            cases.push(case(label, at, heads, dtype, Fill::Uniform(2.0), bench));
        };
        for heads in [[12, 3, 64], [20, 5, 64], [24, 6, 128]] {
            push("decode", (one(511), 2048), heads, true);
            push("prefill", (Rows::Sequence(33, 0), 64), heads, true);
        }
        push("fable", (Rows::Sequence(5, 3), 37), [6, 3, 32], false);
        push("first position", (one(0), 37), [2, 1, 32], false);
        push("last position", (one(36), 37), [4, 2, 32], false);
        push("chunk of a prefill", (Rows::Sequence(7, 19), 37), [4, 1, 64], false);
        push("the whole cache", (Rows::Sequence(37, 0), 37), [4, 1, 64], false);
        push("position past the cache is clamped", (Rows::Sequence(3, 4_000_000_000), 37), [4, 2, 64], false);
        push("ragged", (RAGGED, 300), [4, 2, 64], false);
        push("past the cache is clamped", (PAST, 37), [4, 2, 64], false);
    }
    let extreme = (Rows::Sequence(3, 5), 37);
    cases.push(case("magnitudes 2^-20 to 2^20", extreme, [4, 2, 64], DType::F32, Fill::Extreme, false));
    cases
}
