//! `out[t, h] = sum over s <= position_of(t) of softmax(q[t, h] . k[s] / sqrt(Dh)) * v[s]`: grouped-query attention
//! of a few rows over the KV cache.
//!
//! Fuses scores, softmax and weighted sum: no `[T, H, S]` is stored. `attention` handles more tokens, in
//! tiles that a few would leave nearly empty.

use bytemuck::{Pod, Zeroable};

use super::cache::{Cache, KvCache};
use super::heads_case::{AttentionAt, CACHES, HeadsCase, Rows, decode_cases, one, stale};
use super::{Case, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Attention of a few rows over the KV cache.
#[derive(Clone, Debug)]
pub struct AttentionDecode {
    /// Queries: the first `H` heads of each row of `[T, stride]` f32.
    pub q: TensorId,
    /// The cache, keys and values of this step included.
    pub kv: KvCache,
    /// Weighted values, `[T, H * Dh]` f32; or, if several workgroups share the keys of a head, parts for
    /// `attention_merge`, `[T, H, splits, Dh + 4]` f32.
    pub out: TensorId,
    /// Query heads `H`.
    pub query_heads: usize,
    /// Whether rows of a batch may see each other's keys, which the cache then has to hold before this runs.
    pub packed: bool,
    stride: usize,
    cache: Cache,
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
    stride: u32,
    scale: f32,
}

const _: () = assert!(size_of::<Params>() == 28);

impl AttentionDecode {
    /// Returns the attention of `q` over the cache into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, a sequence has more than [`FEW_TOKENS`](super::FEW_TOKENS) rows, `Hkv` does
    /// not divide `H`, or `Dh` is none of 32, 64, 128.
    pub fn new(tensors: &Tensors, q: TensorId, kv: KvCache, out: TensorId, query_heads: usize) -> Self {
        let &[tokens, stride] = tensors[q].shape.dims() else { panic!("attention_decode takes [T, stride]") };
        let cache = Cache::new(tensors, kv, tokens);
        cache.expect_few_rows(query_heads);
        let head_dim = cache.head_dim;
        assert!(query_heads * head_dim <= stride && stride.is_multiple_of(4), "a row of q is {stride} values");
        tensors.expect(q, [tokens, stride], DType::F32);
        let splits = cache.splits(tensors, out, query_heads);
        Self { q, kv, out, query_heads, packed: false, stride, cache, splits }
    }

    /// Returns the same attention for other queries.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn by(&self, tensors: &Tensors, q: TensorId) -> Self {
        Self::new(tensors, q, self.kv, self.out, self.query_heads).with_packed(self.packed)
    }

    /// Sets whether rows of a batch may see each other's keys.
    pub(crate) fn with_packed(self, packed: bool) -> Self {
        Self { packed, ..self }
    }
}

impl Kernel for AttentionDecode {
    fn name(&self) -> &'static str {
        "attention_decode"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![
            fragment!("attention_decode.wgsl"),
            fragment!("lib/attend.wgsl"),
            tier.reduce(),
            self.cache.fragment(tier),
            self.cache.positions.fragment(),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![Operand::read(self.q)];
        operands.extend(self.cache.read());
        operands.push(Operand::write(self.out));
        operands
    }

    fn shape(&self) -> String {
        // Without the row count: tuned values change the order of sums, and a row's bits must not depend on
        // others.
        format!("H {}, {}", self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let tokens = self.cache.positions.tokens;
        let params = Params {
            tokens: dim(tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            slots: dim(self.cache.slots),
            capacity: dim(self.cache.capacity),
            stride: dim(self.stride / 4),
            scale: self.cache.score_scale(),
        };
        let (wg, cols) = (choice.of(&self.tunables()[0]), self.cache.head_dim / 4);
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("COLS", cols as f64), ("SPLITS", self.splits as f64), self.cache.stride()],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.query_heads), dim(tokens), dim(self.splits)],
        }
    }

    fn cost(&self, position: usize) -> Cost {
        let head = (self.query_heads * self.cache.head_dim) as u64;
        let rows = head * self.cache.positions.tokens as u64;
        Cost {
            read: 4 * rows + 2 * self.cache.bytes(self.cache.keys_read(position)) + self.cache.positions.bytes(),
            written: self.cache.output_bytes(self.query_heads, self.splits),
            flops: 4 * head * self.cache.pairs(position) as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            self.cache.attend(memory, [self.query_heads, self.splits], out, |[t, h]| {
                let head_dim = self.cache.head_dim;
                memory.read(self.q)[t * self.stride + h * head_dim..][..head_dim].to_vec()
            });
        });
    }
}

/// OpenELM's heads, in every cache type, for one row and a few; caches that end within a chunk or hold NaN
/// past the step; batches.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s, splits): AttentionAt, heads: [usize; 3], dtype, fills: [Fill; 3], bench| {
        let [q_fill, k_fill, v_fill] = fills;
        let mut case = HeadsCase::new(label, (rows, s), heads, dtype, bench).split(splits);
        let q = case.of_heads("q", heads[0] + heads[1], q_fill);
        let kv = case.cache([k_fill, v_fill]);
        let out = case.mix();
        let kernel = AttentionDecode::new(&case.case.tensors, q, kv, out, heads[0]);
        (case.case, kernel)
    };
    let uniform = |scale: f32| [Fill::Uniform(scale), Fill::Uniform(scale), Fill::Uniform(1.0)];
    let mut cases = Vec::new();
    for dtype in CACHES {
        decode_cases(dtype, |label, at, heads, bench| {
            let (case, kernel) = case(label, at, heads, dtype, uniform(2.0), bench);
            cases.push(case.build(
                kernel,
                1e-12,
                "scores near 1 within f32's 2^-20, exp2 within 3 + 2 |x| ULP; both sides read the same cache",
            ));
        });
        let large = case("scores of hundreds", (one(290), 300, 1), [8, 2, 64], dtype, uniform(30.0), false);
        cases.push(large.0.build(large.1, 1e-7, "f32 scores near 1000 are within 2^-12, and so are weights"));
        let zero = case("equal scores", (one(290), 300, 1), [8, 2, 64], dtype, uniform(0.0), false);
        cases.push(zero.0.build(zero.1, 1e-12, "an f32 mean of at most 291 values"));
        if dtype == DType::Q8_0Rows {
            // q8_0 has no NaN.
            continue;
        }
        for rows in [one(20), Rows::Sequence(4, 17)] {
            let fills = [Fill::Uniform(2.0), stale(), stale()];
            let stale = case("NaN past the step", (rows, 37, 1), [8, 2, 64], dtype, fills, false);
            cases.push(stale.0.build(stale.1, 1e-12, "as the other cases: what is not visible is not used"));
        }
    }
    cases
}
