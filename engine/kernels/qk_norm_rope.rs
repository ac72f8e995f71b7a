//! Norm of query and key heads, rotation, and append to the KV cache: all between the qkv projection and
//! attention.
//!
//! Fuses `qk_norm`, `rope` and `kv_write`: saves two launches, and the round trips of `[T, H + Hkv, Dh]` from
//! norm to rotation and of `[T, Hkv, Dh]` from rotation to cache.

use bytemuck::{Pod, Zeroable};

use super::cache::KvCache;
use super::heads::{Heads, QkvProjection};
use super::heads_case::{CACHES, FABLE, HeadsCase, OPENELM, PAST, RAGGED, Rows, one};
use super::{Case, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Norm, rotation and cache append of the heads of a step.
#[derive(Clone, Debug)]
pub struct QkNormRope {
    /// Queries ready for attention, `[T, H * Dh]` f32.
    pub q: TensorId,
    heads: Heads,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    query_heads: u32,
    kv_heads: u32,
    slots: u32,
    capacity: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 24);

impl QkNormRope {
    /// Returns the preparation of a projection for attention: queries into `q`, keys and values into the cache.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, or `Dh` is none of 8, 16, .., 256.
    pub fn new(tensors: &Tensors, projection: QkvProjection, kv: KvCache, q: TensorId) -> Self {
        let heads = Heads::new(tensors, projection, kv);
        tensors.expect(q, [heads.tokens(), heads.query_heads * heads.cache.head_dim], DType::F32);
        Self { q, heads }
    }

    /// Returns the heads of the packed projection.
    fn packed_heads(&self) -> usize {
        self.heads.query_heads + 2 * self.heads.cache.kv_heads
    }
}

impl Kernel for QkNormRope {
    fn name(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        let cache = self.heads.cache;
        vec![
            fragment!("qk_norm_rope.wgsl"),
            fragment!("lib/head_sum.wgsl"),
            cache.fragment(tier),
            cache.positions.fragment(),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = self.heads.operands();
        operands.push(Operand::write(self.q));
        operands.extend(self.heads.cache.written());
        operands
    }

    fn shape(&self) -> String {
        format!("T {}, H {}, {}", self.heads.tokens(), self.heads.query_heads, self.heads.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let (tokens, Heads { cache, query_heads, projection }) = (self.heads.tokens(), self.heads);
        let params = Params {
            tokens: dim(tokens),
            query_heads: dim(query_heads),
            kv_heads: dim(cache.kv_heads),
            slots: dim(cache.slots),
            capacity: dim(cache.capacity),
            eps: projection.eps,
        };
        let lanes = cache.head_dim / 8;
        let overrides = [("WG", f64::from(wg)), ("LANES", lanes as f64), ("COLS", 2.0 * lanes as f64)];
        Dispatch {
            overrides: overrides.into_iter().chain([cache.stride()]).collect(),
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((tokens * self.packed_heads() * lanes).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let Heads { cache, query_heads, .. } = self.heads;
        let queries = (self.heads.tokens() * query_heads * cache.head_dim) as u64;
        let written = 4 * queries + 2 * cache.bytes(self.heads.tokens());
        Cost { read: self.heads.bytes(), written, flops: self.heads.flops() }
    }

    fn reference(&self, memory: &mut Memory) {
        let Heads { cache, query_heads, .. } = self.heads;
        memory.update(self.q, |memory, q| {
            for (row, to) in q.chunks_mut(cache.head_dim).enumerate() {
                to.copy_from_slice(&self.heads.query(memory, [row / query_heads, row % query_heads]));
            }
        });
        self.heads.append(memory);
    }
}

/// OpenELM's heads for one token and a prefill, in every cache type, and the ends of the cache.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, at: (Rows, usize), heads: [usize; 3], dtype, fill: Fill, bench| {
        let mut case = HeadsCase::new(label, at, heads, dtype, bench);
        let projection = case.projection(fill);
        let kv = case.cache([Fill::Uniform(1.0), Fill::Uniform(1.0)]);
        let q = case.of_heads("q", heads[0], Fill::Zero);
        let kernel = QkNormRope::new(&case.case.tensors, projection, kv, q);
        case.build_writing(kernel, (1e-12, "an f32 sum of at most 128 squares, one f32 rsqrt, one rotation"))
    };
    let mut cases = Vec::new();
    for dtype in CACHES {
        let mut push = |label: &str, at: (Rows, usize), heads: [usize; 3], bench: bool| {
            cases.push(case(label, at, heads, dtype, Fill::Uniform(2.0), bench));
        };
        for heads in OPENELM {
            push("decode", (one(511), 2048), heads, true);
            push("prefill", (Rows::Sequence(33, 0), 64), heads, true);
        }
        for heads in FABLE {
            push("fable", (Rows::Sequence(5, 3), 37), heads, false);
        }
        push("first position", (one(0), 37), [2, 1, 32], false);
        push("last position", (one(36), 37), [4, 2, 32], false);
        push("chunk of a prefill", (Rows::Sequence(7, 19), 37), [4, 1, 64], false);
        push("the whole cache", (Rows::Sequence(37, 0), 37), [4, 1, 64], false);
        push("position past the cache is clamped", (Rows::Sequence(3, 4_000_000_000), 37), [4, 2, 64], false);
        push("ragged", (RAGGED, 300), [4, 2, 64], false);
        push("past the cache is clamped", (PAST, 37), [4, 2, 64], false);
    }
    let mut push = |label: &str, fill: Fill| {
        cases.push(case(label, (Rows::Sequence(3, 5), 37), [4, 2, 64], DType::F32, fill, false));
    };
    push("zero heads", Fill::Zero);
    push("mean far below eps", Fill::Uniform(1e-5));
    push("magnitudes 2^-20 to 2^20", Fill::Extreme);
    cases
}
