//! Norm of query and key heads, rotation, and append to the KV cache: all between the qkv projection and
//! attention.
//!
//! Fuses `qk_norm`, `rope` and `kv_write`: two launches less, and the round trips of `[T, H + Hkv, Dh]`
//! from norm to rotation and of `[T, Hkv, Dh]` from rotation to cache.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
use super::heads::Projection;
use super::place::{PAST, RAGGED, Rows};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Norm, rotation and cache append of the heads of a step.
#[derive(Clone, Debug)]
pub struct QkNormRope {
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
    /// Queries ready for attention, `[T, H * Dh]` f32.
    pub q: TensorId,
    /// Keys, `[Hkv, S, Dh]`, of a batch `[slots, Hkv, S, Dh]`, f16, f32 or rows of q8_0.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    query_heads: usize,
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
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 24);

impl QkNormRope {
    /// Returns the preparation of `qkv` for attention: queries into `q`, keys and values into the cache.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, or `Dh` is none of 8, 16, .., 512.
    #[expect(clippy::too_many_arguments, reason = "one for each binding of the kernel")]
    pub fn new(
        tensors: &Tensors,
        qkv: TensorId,
        q_weight: TensorId,
        k_weight: TensorId,
        table: TensorId,
        position: TensorId,
        q: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        eps: f32,
    ) -> Self {
        let &[tokens, columns] = tensors[q].shape.dims() else { panic!("qk_norm_rope gives [T, columns]") };
        let cache = Cache::new(tensors, [k_cache, v_cache], position, tokens);
        let Cache { kv_heads, capacity, head_dim, .. } = cache;
        assert!(32usize.is_multiple_of(head_dim / 8), "qk_norm_rope shares workgroups among heads: Dh {head_dim}");
        let query_heads = columns / head_dim;
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(table, [capacity, head_dim], DType::F32);
        tensors.expect(q, [tokens, query_heads * head_dim], DType::F32);
        Self {
            qkv,
            q_weight,
            k_weight,
            table,
            position,
            q,
            k_cache,
            v_cache,
            eps,
            query_heads,
            cache,
        }
    }

    fn tokens(&self) -> usize {
        self.cache.places.tokens
    }

    fn heads(&self) -> usize {
        self.query_heads + 2 * self.cache.kv_heads
    }

    fn projection(&self) -> Projection {
        let Self { qkv, q_weight, k_weight, table, position, eps, query_heads, cache, .. } = *self;
        Projection { qkv, q_weight, k_weight, table, position, eps, query_heads, cache }
    }
}

impl Kernel for QkNormRope {
    fn name(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("qk_norm_rope.wgsl"), fragment!("lib/head_sum.wgsl"), self.cache.fragment(tier), self.cache.places.fragment()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.qkv),
            Operand::read(self.q_weight),
            Operand::read(self.k_weight),
            Operand::read(self.table),
            Operand::read(self.position),
            Operand::write(self.q),
            Operand::read_write(self.k_cache),
            Operand::read_write(self.v_cache),
        ]
    }

    fn shape(&self) -> String {
        format!("T {}, H {}, {}", self.tokens(), self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params {
            tokens: dim(self.tokens()),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            slots: dim(self.cache.slots),
            capacity: dim(self.cache.capacity),
            eps: self.eps,
        };
        let lanes = self.cache.head_dim / 8;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("LANES", lanes as f64), ("COLS", 2.0 * lanes as f64), self.cache.stride()],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((self.tokens() * self.heads() * lanes).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let head = (self.tokens() * self.cache.head_dim) as u64;
        let queries = head * self.query_heads as u64;
        let keys = head * self.cache.kv_heads as u64;
        let weights = 2 * self.cache.head_dim as u64;
        Cost {
            // q, k and v of qkv, a row of the table for each token, both norms.
            read: 4 * (queries + 2 * keys + head + weights) + self.cache.places.bytes(),
            written: 4 * queries + 2 * self.cache.bytes(self.tokens()),
            flops: 7 * (queries + keys),
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let projection = self.projection();
        memory.update(self.q, |memory, q| {
            for (row, to) in q.chunks_mut(self.cache.head_dim).enumerate() {
                to.copy_from_slice(&projection.query(memory, [row / self.query_heads, row % self.query_heads]));
            }
        });
        projection.append(memory, self.k_cache, self.v_cache);
    }
}

/// OpenELM's heads for one token and a prefill, in either cache, and the ends of the cache.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s): (Rows, usize), heads: [usize; 3], dtype, fill: Fill, bench| {
        let ([h, hkv, dh], tokens) = (heads, rows.tokens());
        let label = format!("{label}, {rows} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}");
        let mut case = CaseBuilder::new(label).benched(bench);
        let qkv = case.tensor("qkv", [tokens, (h + 2 * hkv) * dh], DType::F32, fill);
        let q_weight = case.tensor("q_weight", [dh], DType::F32, Fill::Uniform(1.5));
        let k_weight = case.tensor("k_weight", [dh], DType::F32, Fill::Uniform(1.5));
        // Any numbers turn a pair alike; that no cosine equals another shows a wrong row or column.
        let table = case.tensor("table", [s, dh], DType::F32, Fill::Uniform(1.0));
        let position = rows.position(&mut case);
        let q = case.tensor("q", [tokens, h * dh], DType::F32, Fill::Zero);
        let k_cache = case.tensor("k_cache", rows.cache([hkv, s, dh]), dtype, Fill::Uniform(1.0));
        let v_cache = case.tensor("v_cache", rows.cache([hkv, s, dh]), dtype, Fill::Uniform(1.0));
        let kernel = QkNormRope::new(
            &case.tensors,
            qkv,
            q_weight,
            k_weight,
            table,
            position,
            q,
            k_cache,
            v_cache,
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
            _ => case.build(kernel, 1e-12, "an f32 sum of at most 128 squares, one f32 rsqrt, one rotation"),
        }
    };
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32, DType::Q8_0Rows] {
        let mut push = |label: &str, place: (Rows, usize), heads: [usize; 3], bench: bool| {
            cases.push(case(label, place, heads, dtype, Fill::Uniform(2.0), bench));
        };
        for heads in [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]] {
            push("decode", (Rows::Sequence(1, 511), 2048), heads, true);
            push("prefill", (Rows::Sequence(33, 0), 64), heads, true);
        }
        for heads in [[2, 1, 32], [4, 2, 32], [6, 3, 32]] {
            push("fable", (Rows::Sequence(5, 3), 37), heads, false);
        }
        push("first slot", (Rows::Sequence(1, 0), 37), [2, 1, 32], false);
        push("last slot", (Rows::Sequence(1, 36), 37), [4, 2, 32], false);
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
