//! Norm of query and key heads, rotation, and append to the KV cache: all between the qkv projection and
//! attention.
//!
//! Fuses `qk_norm`, `rope` and `kv_write`: two launches less, and the round trips of `[T, H + Hkv, Dh]`
//! from norm to rotation and of `[T, Hkv, Dh]` from rotation to cache.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
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
    /// Tokens cached before this step, `[1]` u32; clamped to `S - T`.
    pub position: TensorId,
    /// Queries ready for attention, `[T, H * Dh]` f32.
    pub q: TensorId,
    /// Keys, `[Hkv, S, Dh]` f16 or f32.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    tokens: usize,
    query_heads: usize,
    cache: Cache,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    query_heads: u32,
    kv_heads: u32,
    capacity: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 20);

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
        let cache = Cache::new(tensors, k_cache, v_cache, tokens);
        let Cache { kv_heads, capacity, head_dim, .. } = cache;
        assert!(32usize.is_multiple_of(head_dim / 8), "qk_norm_rope shares workgroups among heads: Dh {head_dim}");
        let query_heads = columns / head_dim;
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(table, [capacity, head_dim], DType::F32);
        tensors.expect(position, [1], DType::U32);
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
            tokens,
            query_heads,
            cache,
        }
    }

    fn heads(&self) -> usize {
        self.query_heads + 2 * self.cache.kv_heads
    }

    /// Returns head `h` of token `t`, normalised with `weight` and turned.
    fn prepared(&self, memory: &Memory, [t, h]: [usize; 2], weight: TensorId) -> Vec<f64> {
        let head_dim = self.cache.head_dim;
        let x = &memory.read(self.qkv)[(t * self.heads() + h) * head_dim..][..head_dim];
        let mean = x.iter().map(|v| v * v).sum::<f64>() / head_dim as f64;
        let scale = 1.0 / (mean + f64::from(self.eps)).sqrt();
        let weight = memory.read(weight);
        let x: Vec<f64> = (0..head_dim).map(|d| x[d] * weight[d] * scale).collect();
        let first = self.cache.first(memory.read(self.position), self.tokens);
        let turn = &memory.read(self.table)[(first + t) * head_dim..];
        let half = head_dim / 2;
        let mut out = vec![0.0; head_dim];
        for j in 0..half {
            let (cos, sin) = (turn[j], turn[half + j]);
            out[j] = x[j] * cos - x[half + j] * sin;
            out[half + j] = x[half + j] * cos + x[j] * sin;
        }
        out
    }
}

impl Kernel for QkNormRope {
    fn name(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("qk_norm_rope.wgsl"), fragment!("lib/head_sum.wgsl"), self.cache.fragment(tier)]
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
        format!("T {}, H {}, {}", self.tokens, self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params {
            tokens: dim(self.tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            capacity: dim(self.cache.capacity),
            eps: self.eps,
        };
        let lanes = self.cache.head_dim / 8;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("LANES", lanes as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((self.tokens * self.heads() * lanes).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let head = (self.tokens * self.cache.head_dim) as u64;
        let queries = head * self.query_heads as u64;
        let keys = head * self.cache.kv_heads as u64;
        let weights = 2 * self.cache.head_dim as u64;
        Cost {
            // q, k and v of qkv, a row of the table for each token, both norms, the position.
            read: 4 * (queries + 2 * keys + head + weights + 1),
            written: 4 * queries + 2 * self.cache.bytes(self.tokens),
            flops: 7 * (queries + keys),
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let Cache { kv_heads, capacity, head_dim, .. } = self.cache;
        let first = self.cache.first(memory.read(self.position), self.tokens);
        let tokens_of = |heads| (0..self.tokens).flat_map(move |t| (0..heads).map(move |h| [t, h]));
        memory.update(self.q, |memory, q| {
            for [t, h] in tokens_of(self.query_heads) {
                let to = &mut q[(t * self.query_heads + h) * head_dim..][..head_dim];
                to.copy_from_slice(&self.prepared(memory, [t, h], self.q_weight));
            }
        });
        memory.update(self.k_cache, |memory, k_cache| {
            for [t, h] in tokens_of(kv_heads) {
                let to = &mut k_cache[(h * capacity + first + t) * head_dim..][..head_dim];
                to.copy_from_slice(&self.prepared(memory, [t, self.query_heads + h], self.k_weight));
            }
        });
        memory.update(self.v_cache, |memory, v_cache| {
            for [t, h] in tokens_of(kv_heads) {
                let head = self.query_heads + kv_heads + h;
                let from = &memory.read(self.qkv)[(t * self.heads() + head) * head_dim..][..head_dim];
                v_cache[(h * capacity + first + t) * head_dim..][..head_dim].copy_from_slice(from);
            }
        });
    }
}

/// OpenELM's heads for one token and a prefill, in either cache, and the ends of the cache.
pub fn cases() -> Vec<Case> {
    type Step = [usize; 3];
    let case = |label: &str, [tokens, position, s]: Step, [h, hkv, dh]: Step, dtype, fill: Fill, bench| {
        let label = format!("{label}, T {tokens} at {position} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}");
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let qkv = case.tensor("qkv", [tokens, (h + 2 * hkv) * dh], DType::F32, fill);
        let q_weight = case.tensor("q_weight", [dh], DType::F32, Fill::Uniform(1.5));
        let k_weight = case.tensor("k_weight", [dh], DType::F32, Fill::Uniform(1.5));
        // Any numbers turn a pair alike; that no cosine equals another shows a wrong row or column.
        let table = case.tensor("table", [s, dh], DType::F32, Fill::Uniform(1.0));
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let q = case.tensor("q", [tokens, h * dh], DType::F32, Fill::Zero);
        let k_cache = case.tensor("k_cache", [hkv, s, dh], dtype, Fill::Uniform(1.0));
        let v_cache = case.tensor("v_cache", [hkv, s, dh], dtype, Fill::Uniform(1.0));
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
            _ => case.build(kernel, 1e-12, "an f32 sum of at most 128 squares, one f32 rsqrt, one rotation"),
        }
    };
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32] {
        let mut push = |label: &str, step: Step, heads: Step, bench: bool| {
            cases.push(case(label, step, heads, dtype, Fill::Uniform(2.0), bench));
        };
        for heads in [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]] {
            push("decode", [1, 511, 2048], heads, true);
            push("prefill", [33, 0, 64], heads, true);
        }
        for heads in [[2, 1, 32], [4, 2, 32], [6, 3, 32]] {
            push("fable", [5, 3, 37], heads, false);
        }
        push("first slot", [1, 0, 37], [2, 1, 32], false);
        push("last slot", [1, 36, 37], [4, 2, 32], false);
        push("chunk of a prefill", [7, 19, 37], [4, 1, 64], false);
        push("the whole cache", [37, 0, 37], [4, 1, 64], false);
        push("position past the cache is clamped", [3, 4_000_000_000, 37], [4, 2, 64], false);
    }
    let mut push = |label: &str, fill: Fill| {
        cases.push(case(label, [3, 5, 37], [4, 2, 64], DType::F32, fill, false));
    };
    push("zero heads", Fill::Zero);
    push("mean far below eps", Fill::Uniform(1e-5));
    push("magnitudes 2^-20 to 2^20", Fill::Extreme);
    cases
}
