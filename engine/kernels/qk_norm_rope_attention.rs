//! Norm of query and key heads, rotation, append to the KV cache, and attention of a few rows over it: all
//! between the qkv projection and the output projection of a decode step.
//!
//! Fuses `qk_norm_rope` and `attention_decode`: saves a launch, and the round trip of `[T, H, Dh]` between
//! them. Every workgroup computes the few keys of this step that it needs, because it cannot read what
//! another one appends to the cache.

use bytemuck::{Pod, Zeroable};

use super::cache::{Cache, KvCache};
use super::heads::{Heads, QkvProjection};
use super::heads_case::{
    AttentionAt, CACHES, HeadsCase, Rows, decode_cases,
};
use super::{Case, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Norm, rotation, cache append and attention of a few rows.
#[derive(Clone, Debug)]
pub struct QkNormRopeAttention {
    /// Weighted values, `[T, H * Dh]` f32; or, if several workgroups share the keys of a head, parts for
    /// `attention_merge`, `[T, H, splits, Dh + 4]` f32.
    pub out: TensorId,
    heads: Heads,
    splits: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    query_heads: u32,
    kv_heads: u32,
    slots: u32,
    capacity: u32,
    scale: f32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 28);

impl QkNormRopeAttention {
    /// Returns the append of a projection's keys and values to the cache, and the attention over it into
    /// `out`.
    ///
    /// # Panics
    /// When shapes do not fit, a sequence has more than [`FEW_TOKENS`](super::FEW_TOKENS) rows, `Hkv` does
    /// not divide `H`, or `Dh` is none of 32, 64, 128.
    pub fn new(tensors: &Tensors, projection: QkvProjection, kv: KvCache, out: TensorId) -> Self {
        let heads = Heads::new(tensors, projection, kv);
        let Heads { cache, query_heads, .. } = heads;
        cache.expect_few_rows(query_heads);
        Self { out, heads, splits: cache.splits(tensors, out, query_heads) }
    }
}

impl Kernel for QkNormRopeAttention {
    fn name(&self) -> &'static str {
        "qk_norm_rope_attention"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![
            fragment!("qk_norm_rope_attention.wgsl"),
            fragment!("lib/attend.wgsl"),
            fragment!("lib/head_sum.wgsl"),
            tier.reduce(),
            self.heads.cache.fragment(tier),
            self.heads.cache.positions.fragment(),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = self.heads.operands();
        operands.extend(self.heads.cache.written());
        operands.push(Operand::write(self.out));
        operands
    }

    fn shape(&self) -> String {
        // Without the row count: tuned values change the order of sums, and a row's bits must not depend on
        // others.
        format!("H {}, {}", self.heads.query_heads, self.heads.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let Heads { cache, query_heads, projection } = self.heads;
        let (tokens, Cache { head_dim, .. }) = (self.heads.tokens(), cache);
        let params = Params {
            tokens: dim(tokens),
            query_heads: dim(query_heads),
            kv_heads: dim(cache.kv_heads),
            slots: dim(cache.slots),
            capacity: dim(cache.capacity),
            scale: cache.score_scale(),
            eps: projection.eps,
        };
        let wg = f64::from(choice.of(&self.tunables()[0]));
        let (lanes, cols) = (head_dim as f64 / 8.0, head_dim as f64 / 4.0);
        let overrides = [("WG", wg), ("LANES", lanes), ("COLS", cols), ("SPLITS", self.splits as f64)];
        Dispatch {
            overrides: overrides.into_iter().chain([cache.stride()]).collect(),
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(query_heads), dim(tokens), dim(self.splits)],
        }
    }

    fn cost(&self, position: usize) -> Cost {
        let Heads { cache, query_heads, .. } = self.heads;
        let appended = cache.bytes(self.heads.tokens());
        let pairs = (cache.pairs(position) * query_heads * cache.head_dim) as u64;
        Cost {
            // The projection, and what was cached before.
            read: self.heads.bytes() + 2 * (cache.bytes(cache.keys_read(position)) - appended),
            written: cache.output_bytes(query_heads, self.splits) + 2 * appended,
            flops: self.heads.flops() + 4 * pairs,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let Heads { cache, query_heads, .. } = self.heads;
        self.heads.append(memory);
        memory.update(self.out, |memory, out| {
            cache.attend(memory, [query_heads, self.splits], out, |at| self.heads.query(memory, at));
        });
    }
}

/// OpenELM's heads, in every cache type, for one row and a few, at the ends of chunks of keys and of the
/// cache, and in batches.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s, splits): AttentionAt, heads: [usize; 3], dtype, fill: Fill, bench| {
        let mut case = HeadsCase::new(label, (rows, s), heads, dtype, bench).split(splits);
        let projection = case.projection(fill);
        let kv = case.cache([Fill::Uniform(1.0), Fill::Uniform(1.0)]);
        let out = case.mix();
        let kernel = QkNormRopeAttention::new(&case.case.tensors, projection, kv, out);
        case.build_writing(kernel, (1e-12, "as qk_norm_rope, then scores near 1 within f32's 2^-20"))
    };
    let mut cases = Vec::new();
    for dtype in CACHES {
        decode_cases(dtype, |label, at, heads, bench| {
            cases.push(case(label, at, heads, dtype, Fill::Uniform(2.0), bench));
        });
        for head_dim in [32, 64, 128] {
            let whole = (Rows::Sequence(8, 0), 8, 1);
            cases.push(case("the whole cache", whole, [4, 2, head_dim], dtype, Fill::Uniform(2.0), false));
        }
    }
    let mut push = |label: &str, fill: Fill| {
        let at = (Rows::Sequence(3, 5), 37, 1);
        cases.push(case(label, at, [4, 2, 64], DType::F32, fill, false));
    };
    push("zero heads", Fill::Zero);
    push("mean far below eps", Fill::Uniform(1e-5));
    push("magnitudes 2^-20 to 2^20", Fill::Extreme);
    cases
}
