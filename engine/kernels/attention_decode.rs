//! `out[t, h] = sum over s <= place(t) of softmax(q[t, h] . k[s] / sqrt(Dh)) * v[s]`: grouped-query attention
//! of a few rows over the KV cache.
//!
//! Fuses scores, softmax and weighted sum: no `[T, H, S]` leaves the workgroup. `attention` takes more tokens
//! in tiles, which a few would leave nearly empty.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
use super::place::{PAST, RAGGED, Rows};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, FEW_TOKENS, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// Attention of a few rows over the KV cache.
#[derive(Clone, Debug)]
pub struct AttentionDecode {
    /// Queries: the first `H` heads of each row of `[T, stride]` f32.
    pub q: TensorId,
    /// Keys, those of this step included, `[Hkv, S, Dh]`, of a batch `[slots, Hkv, S, Dh]`, f16, f32 or rows of q8_0.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Tokens cached before this step, `[1]` u32, or (position, slot) of each row of a batch, `[T, 2]` u32;
    /// clamped to the cache.
    pub position: TensorId,
    /// Weighted values, `[T, H * Dh]` f32; or, if several workgroups share the keys of a head, parts for
    /// `attention_merge`, `[T, H, splits, Dh + 4]` f32.
    pub out: TensorId,
    /// Query heads `H`.
    pub query_heads: usize,
    /// Whether rows of a batch may see keys of each other, which the cache has to hold before this runs.
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
    /// When shapes do not fit, a sequence has more than [`FEW_TOKENS`] rows, `Hkv` does not divide `H`, or
    /// `Dh` is none of 32, 64, 128.
    pub fn new(
        tensors: &Tensors,
        q: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        position: TensorId,
        out: TensorId,
        query_heads: usize,
    ) -> Self {
        let &[tokens, stride] = tensors[q].shape.dims() else { panic!("attention_decode takes [T, stride]") };
        let cache = Cache::new(tensors, [k_cache, v_cache], position, tokens);
        let Cache { kv_heads, head_dim, .. } = cache;
        assert!(cache.places.batch || tokens <= FEW_TOKENS, "{tokens} tokens of a sequence are not few");
        assert!(matches!(head_dim, 32 | 64 | 128), "attention_decode has no tile for Dh {head_dim}");
        assert!(query_heads.is_multiple_of(kv_heads), "{kv_heads} kv heads serve {query_heads} query heads");
        assert!(query_heads * head_dim <= stride && stride.is_multiple_of(4), "a row of q is {stride} values");
        tensors.expect(q, [tokens, stride], DType::F32);
        let splits = cache.splits(tensors, out, query_heads);
        Self { q, k_cache, v_cache, position, out, query_heads, packed: false, stride, cache, splits }
    }

    /// Returns the same for rows that see keys of each other, or do not.
    pub fn with_packed(self, packed: bool) -> Self {
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
            self.cache.places.fragment(),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.q),
            Operand::read(self.k_cache),
            Operand::read(self.v_cache),
            Operand::read(self.position),
            Operand::write(self.out),
        ]
    }

    fn shape(&self) -> String {
        // Without the rows: what is tuned decides the order of sums, and a row's bits must not depend on others.
        format!("H {}, {}", self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let tokens = self.cache.places.tokens;
        let params = Params {
            tokens: dim(tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            slots: dim(self.cache.slots),
            capacity: dim(self.cache.capacity),
            stride: dim(self.stride / 4),
            scale: std::f32::consts::LOG2_E / (self.cache.head_dim as f32).sqrt(),
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
        let rows = head * self.cache.places.tokens as u64;
        Cost {
            read: 4 * rows + 2 * self.cache.bytes(self.cache.keys_read(position)) + self.cache.places.bytes(),
            written: self.cache.output_bytes(self.query_heads, self.splits),
            flops: 4 * head * self.cache.pairs(position) as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let cache = [self.k_cache, self.v_cache, self.position];
            self.cache.attend(memory, cache, [self.query_heads, self.splits], out, |[t, h]| {
                let head_dim = self.cache.head_dim;
                memory.read(self.q)[t * self.stride + h * head_dim..][..head_dim].to_vec()
            });
        });
    }
}

/// OpenELM's heads, in either cache, for one row and a few; caches that end within a chunk or hold NaN past
/// the step; batches.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s, splits): (Rows, usize, usize), heads: [usize; 3], dtype, fills: [Fill; 3], bench| {
        let [h, hkv, dh] = heads;
        let splits_label = if splits == 1 { String::new() } else { format!(", splits {splits}") };
        let label = format!("{label}, {rows} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}{splits_label}");
        let mut case = CaseBuilder::new(label).benched(bench);
        let [q_fill, k_fill, v_fill] = fills;
        let (tokens, shape) = (rows.tokens(), rows.cache([hkv, s, dh]));
        let q = case.tensor("q", [tokens, (h + hkv) * dh], DType::F32, q_fill);
        let k_cache = case.tensor("k_cache", shape.clone(), dtype, k_fill);
        let v_cache = case.tensor("v_cache", shape, dtype, v_fill);
        let position = rows.position(&mut case);
        let out: Shape = match splits {
            1 => [tokens, h * dh].into(),
            _ => [tokens, h, splits, dh + 4].into(),
        };
        let out = case.tensor("out", out, DType::F32, Fill::Zero);
        let kernel = AttentionDecode::new(&case.tensors, q, k_cache, v_cache, position, out, h);
        (case, kernel)
    };
    let uniform = |scale: f32| [Fill::Uniform(scale), Fill::Uniform(scale), Fill::Uniform(1.0)];
    let one = |position| Rows::Sequence(1, position);
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32, DType::Q8_0Rows] {
        let mut push = |label: &str, place: (Rows, usize, usize), heads: [usize; 3], bench: bool| {
            let (case, kernel) = case(label, place, heads, dtype, uniform(2.0), bench);
            cases.push(case.build(
                kernel,
                1e-12,
                "scores near 1 within f32's 2^-20, exp2 within 3 + 2 |x| ULP; both sides read the same cache",
            ));
        };
        for heads in [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]] {
            push("OpenELM", (one(511), 512, 1), heads, true);
        }
        push("full context", (one(2047), 2048, 1), [20, 5, 64], true);
        push("full context", (one(2047), 2048, 8), [20, 5, 64], dtype == DType::F16);
        push("uneven shares", (Rows::Sequence(4, 996), 1000, 7), [4, 2, 64], false);
        push("shares in a batch", (Rows::Batch(&[[999, 1], [70, 0]], 2), 1000, 3), [4, 2, 32], false);
        push("too few to share", (Rows::Sequence(8, 758), 1000, 3), [4, 2, 32], false);
        push("a few", (Rows::Sequence(5, 507), 512, 1), [20, 5, 64], dtype == DType::F16);
        for heads in [[2, 1, 32], [4, 2, 32], [6, 3, 32]] {
            push("fable", (one(70), 256, 1), heads, false);
        }
        for head_dim in [32, 64, 128] {
            push("first token", (one(0), 37, 1), [4, 1, head_dim], false);
            push("last slot", (one(36), 37, 1), [4, 1, head_dim], false);
            push("one key past a chunk", (one(256), 300, 1), [3, 3, head_dim], false);
            push("one kv head for five", (one(299), 300, 1), [5, 1, head_dim], false);
            push("first tokens", (Rows::Sequence(8, 0), 37, 1), [4, 1, head_dim], false);
            push("across a chunk", (Rows::Sequence(7, 252), 300, 1), [4, 2, head_dim], false);
            push("ragged", (RAGGED, 300, 1), [4, 2, head_dim], false);
        }
        push("position past the cache is clamped", (one(4_000_000_000), 37, 1), [4, 2, 64], false);
        push("step past the cache is clamped", (Rows::Sequence(3, 4_000_000_000), 37, 1), [4, 2, 64], false);
        push("past the cache is clamped", (PAST, 37, 1), [4, 2, 64], false);
        let large = case("scores of hundreds", (one(290), 300, 1), [8, 2, 64], dtype, uniform(30.0), false);
        cases.push(large.0.build(large.1, 1e-7, "f32 scores near 1000 are within 2^-12, and so are weights"));
        let zero = case("equal scores", (one(290), 300, 1), [8, 2, 64], dtype, uniform(0.0), false);
        cases.push(zero.0.build(zero.1, 1e-12, "an f32 mean of at most 291 values"));
        if dtype == DType::Q8_0Rows {
            continue;
        }
        // What lies past the step was never written; q8_0 has no NaN.
        let cached: Vec<f64> = (0..2 * 37 * 64)
            .map(|i| if i / 64 % 37 <= 20 { f64::from(i * 131 % 257) / 128.0 - 1.0 } else { f64::NAN })
            .collect();
        for rows in [one(20), Rows::Sequence(4, 17)] {
            let fills = [Fill::Uniform(2.0), Fill::Values(cached.clone()), Fill::Values(cached.clone())];
            let stale = case("NaN past the step", (rows, 37, 1), [8, 2, 64], dtype, fills, false);
            cases.push(stale.0.build(stale.1, 1e-12, "as the other cases: what is not visible is not used"));
        }
    }
    cases
}
