//! Norm of query and key heads, rotation, append to the KV cache, and attention of a few rows over it: all
//! between the qkv projection and the output projection of a decode step.
//!
//! Fuses `qk_norm_rope` and `attention_decode`: a launch less, and the round trip of `[T, H, Dh]` between them.
//! Every workgroup prepares the few keys of this step that it looks at, because it cannot see what another
//! one adds to the cache.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
use super::heads::Projection;
use super::place::{PAST, RAGGED, Rows};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, FEW_TOKENS, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, Shape, TensorId, Tensors};

/// Norm, rotation, cache append and attention of a few rows.
#[derive(Clone, Debug)]
pub struct QkNormRopeAttention {
    /// Packed projection, `[T, (H + 2 Hkv) * Dh]` f32.
    pub qkv: TensorId,
    /// Scale of a query head, `[Dh]` f32.
    pub q_weight: TensorId,
    /// Scale of a key head, `[Dh]` f32.
    pub k_weight: TensorId,
    /// Cosines, then sines of every position, `[S, Dh]` f32.
    pub table: TensorId,
    /// Tokens cached before this step, `[1]` u32, or (position, slot) of each row of a batch, `[T, 2]` u32;
    /// clamped to the cache.
    pub position: TensorId,
    /// Keys, `[Hkv, S, Dh]`, of a batch `[slots, Hkv, S, Dh]`, f16, f32 or rows of q8_0.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Weighted values, `[T, H * Dh]` f32; or, if several workgroups share the keys of a head, parts for
    /// `attention_merge`, `[T, H, splits, Dh + 4]` f32.
    pub out: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    query_heads: usize,
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
    scale: f32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 28);

impl QkNormRopeAttention {
    /// Returns the attention of the heads in `qkv` over the cache, which they join, into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, a sequence has more than [`FEW_TOKENS`] rows, `Hkv` does not divide `H`, or
    /// `Dh` is none of 32, 64, 128.
    #[expect(clippy::too_many_arguments, reason = "one for each binding of the kernel")]
    pub fn new(
        tensors: &Tensors,
        qkv: TensorId,
        q_weight: TensorId,
        k_weight: TensorId,
        table: TensorId,
        position: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        out: TensorId,
        eps: f32,
    ) -> Self {
        let &[tokens, columns] = tensors[qkv].shape.dims() else { panic!("a projection is [T, columns]") };
        let cache = Cache::new(tensors, [k_cache, v_cache], position, tokens);
        let Cache { kv_heads, capacity, head_dim, .. } = cache;
        let query_heads = columns / head_dim - 2 * kv_heads;
        assert!(cache.places.batch || tokens <= FEW_TOKENS, "{tokens} tokens of a sequence are not few");
        assert!(matches!(head_dim, 32 | 64 | 128), "qk_norm_rope_attention has no tile for Dh {head_dim}");
        assert!(query_heads.is_multiple_of(kv_heads), "{kv_heads} kv heads serve {query_heads} query heads");
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(table, [capacity, head_dim], DType::F32);
        let splits = cache.splits(tensors, out, query_heads);
        Self { qkv, q_weight, k_weight, table, position, k_cache, v_cache, out, eps, query_heads, cache, splits }
    }

    fn tokens(&self) -> usize {
        self.cache.places.tokens
    }

    fn projection(&self) -> Projection {
        let Self { qkv, q_weight, k_weight, table, position, eps, query_heads, cache, .. } = *self;
        Projection { qkv, q_weight, k_weight, table, position, eps, query_heads, cache }
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
            self.cache.fragment(tier),
            self.cache.places.fragment(),
        ]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.qkv),
            Operand::read(self.q_weight),
            Operand::read(self.k_weight),
            Operand::read(self.table),
            Operand::read(self.position),
            Operand::read_write(self.k_cache),
            Operand::read_write(self.v_cache),
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
        let head_dim = self.cache.head_dim;
        let params = Params {
            tokens: dim(self.tokens()),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            slots: dim(self.cache.slots),
            capacity: dim(self.cache.capacity),
            scale: std::f32::consts::LOG2_E / (head_dim as f32).sqrt(),
            eps: self.eps,
        };
        let wg = f64::from(choice.of(&self.tunables()[0]));
        Dispatch {
            overrides: vec![("WG", wg), ("LANES", head_dim as f64 / 8.0), ("COLS", head_dim as f64 / 4.0), ("SPLITS", self.splits as f64), self.cache.stride()],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.query_heads), dim(self.tokens()), dim(self.splits)],
        }
    }

    fn cost(&self, position: usize) -> Cost {
        let head = self.cache.head_dim as u64;
        let rows = self.tokens() as u64 * head;
        let queries = rows * self.query_heads as u64;
        let keys = rows * self.cache.kv_heads as u64;
        let appended = self.cache.bytes(self.tokens());
        let pairs = self.cache.pairs(position) as u64 * self.query_heads as u64;
        Cost {
            // q, k and v of qkv, a row of the table for each row, both norms; and what was cached before.
            read: 4 * (queries + 2 * keys + rows + 2 * head)
                + self.cache.places.bytes()
                + 2 * (self.cache.bytes(self.cache.keys_read(position)) - appended),
            written: self.cache.output_bytes(self.query_heads, self.splits) + 2 * appended,
            flops: 7 * (queries + keys) + 4 * head * pairs,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let projection = self.projection();
        projection.append(memory, self.k_cache, self.v_cache);
        memory.update(self.out, |memory, out| {
            let cache = [self.k_cache, self.v_cache, self.position];
            self.cache.attend(memory, cache, [self.query_heads, self.splits], out, |at| projection.query(memory, at));
        });
    }
}

/// OpenELM's heads, in either cache, for one row and a few, where chunks of keys end and the cache does, and
/// batches.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s, splits): (Rows, usize, usize), heads: [usize; 3], dtype, fills: [Fill; 2], bench| {
        let ([h, hkv, dh], tokens) = (heads, rows.tokens());
        let splits_label = if splits == 1 { String::new() } else { format!(", splits {splits}") };
        let label = format!("{label}, {rows} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}{splits_label}");
        let mut case = CaseBuilder::new(label).benched(bench);
        let [fill, cached] = fills;
        let qkv = case.tensor("qkv", [tokens, (h + 2 * hkv) * dh], DType::F32, fill);
        let q_weight = case.tensor("q_weight", [dh], DType::F32, Fill::Uniform(1.5));
        let k_weight = case.tensor("k_weight", [dh], DType::F32, Fill::Uniform(1.5));
        // Any numbers turn a pair alike; that no cosine equals another shows a wrong row or column.
        let table = case.tensor("table", [s, dh], DType::F32, Fill::Uniform(1.0));
        let position = rows.position(&mut case);
        let k_cache = case.tensor("k_cache", rows.cache([hkv, s, dh]), dtype, cached.clone());
        let v_cache = case.tensor("v_cache", rows.cache([hkv, s, dh]), dtype, cached);
        let out: Shape = match splits {
            1 => [tokens, h * dh].into(),
            _ => [tokens, h, splits, dh + 4].into(),
        };
        let out = case.tensor("out", out, DType::F32, Fill::Zero);
        let kernel = QkNormRopeAttention::new(
            &case.tensors,
            qkv,
            q_weight,
            k_weight,
            table,
            position,
            k_cache,
            v_cache,
            out,
            1e-6,
        );
        match dtype {
            DType::F16 => case.build(
                kernel,
                5e-7,
                "an adapter may round to f16 toward zero: half of the values are one step of 2^-10 off",
            ),
            DType::Q8_0Rows => case.build(
                kernel,
                1e-6,
                "an adapter may round scales to f16 toward zero, 2^-10 off; few values next to a half go the other way",
            ),
            _ => case.build(kernel, 1e-12, "as qk_norm_rope, then scores near 1 within f32's 2^-20"),
        }
    };
    let one = |position| Rows::Sequence(1, position);
    let uniform = || [Fill::Uniform(2.0), Fill::Uniform(1.0)];
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32, DType::Q8_0Rows] {
        let mut push = |label: &str, place: (Rows, usize, usize), heads: [usize; 3], bench: bool| {
            cases.push(case(label, place, heads, dtype, uniform(), bench));
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
            push("the whole cache", (Rows::Sequence(8, 0), 8, 1), [4, 2, head_dim], false);
            push("ragged", (RAGGED, 300, 1), [4, 2, head_dim], false);
        }
        push("position past the cache is clamped", (one(4_000_000_000), 37, 1), [4, 2, 64], false);
        push("step past the cache is clamped", (Rows::Sequence(3, 4_000_000_000), 37, 1), [4, 2, 64], false);
        push("past the cache is clamped", (PAST, 37, 1), [4, 2, 64], false);
    }
    let mut push = |label: &str, fill: Fill| {
        let fills = [fill, Fill::Uniform(1.0)];
        cases.push(case(label, (Rows::Sequence(3, 5), 37, 1), [4, 2, 64], DType::F32, fills, false));
    };
    push("zero heads", Fill::Zero);
    push("mean far below eps", Fill::Uniform(1e-5));
    push("magnitudes 2^-20 to 2^20", Fill::Extreme);
    cases
}
