//! `out[t, h, :] = softmax(q[t, h, :] k[g]^T / sqrt(Dh)) v[g]` over the cached keys up to the token's
//! own: causal grouped-query attention for decode and prefill, `g = h / (H / Hkv)`.
//!
//! Fused: scores and softmax never leave the workgroup.

use bytemuck::{Pod, Zeroable};

use super::{
    Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment, kv_fragment,
};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 64;

/// Attention of the step's queries over the cache.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Rotated heads, `[T, N]` f32 with the `H * Dh` query values first.
    pub q: TensorId,
    /// Keys, `[Hkv, S, Dh]` f16 or f32.
    pub k_cache: TensorId,
    /// Values, `[Hkv, S, Dh]` f16 or f32.
    pub v_cache: TensorId,
    /// Tokens cached before the step, `[1]` u32.
    pub position: TensorId,
    /// Mixed values, `[T, H * Dh]` f32.
    pub out: TensorId,
    query_heads: usize,
    tokens: usize,
    q_row: usize,
    kv_heads: usize,
    context: usize,
    head_dim: usize,
    dtype: DType,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    q_row: u32,
    group: u32,
    tokens: u32,
    context: u32,
    scale: f32,
}

const _: () = assert!(size_of::<Params>() == 20);

impl Attention {
    /// Returns the attention of the first `query_heads` heads of `q` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `Dh` is none of 32, 64, 128, or the step is longer than the cache.
    pub fn new(
        tensors: &Tensors,
        q: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        position: TensorId,
        out: TensorId,
        query_heads: usize,
    ) -> Self {
        let dtype = tensors[k_cache].dtype;
        let &[kv_heads, context, head_dim] = tensors[k_cache].shape.dims() else {
            panic!("a cache is [Hkv, S, Dh]")
        };
        let &[tokens, q_row] = tensors[q].shape.dims() else { panic!("q is [T, N]") };
        assert!([32, 64, 128].contains(&head_dim) && q_row.is_multiple_of(4), "Dh {head_dim}, N {q_row}");
        assert!(query_heads.is_multiple_of(kv_heads), "{query_heads} query heads, {kv_heads} KV heads");
        assert!(q_row >= query_heads * head_dim && tokens <= context, "N {q_row}, T {tokens}, S {context}");
        tensors.expect(q, [tokens, q_row], DType::F32);
        tensors.expect(v_cache, [kv_heads, context, head_dim], dtype);
        tensors.expect(position, [1], DType::U32);
        tensors.expect(out, [tokens, query_heads * head_dim], DType::F32);
        Self { q, k_cache, v_cache, position, out, query_heads, tokens, q_row, kv_heads, context, head_dim, dtype }
    }
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("attention.wgsl"), tier.reduce(), kv_fragment(self.dtype, tier)]
    }

    fn operands(&self) -> Vec<Operand> {
        let inputs = [self.q, self.k_cache, self.v_cache, self.position].map(Operand::read);
        inputs.into_iter().chain([Operand::write(self.out)]).collect()
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let params = Params {
            q_row: dim(self.q_row / 4),
            group: dim(self.query_heads / self.kv_heads),
            tokens: dim(self.tokens),
            context: dim(self.context),
            scale: 1.0 / (self.head_dim as f32).sqrt(),
        };
        Dispatch {
            overrides: vec![("WG", WG as f64), ("COLS", (self.head_dim / 4) as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.query_heads), dim(self.tokens), 1],
        }
    }

    fn cost(&self) -> Cost {
        // The cached length is device data; the cost is that of a full cache.
        let q = (self.tokens * self.query_heads * self.head_dim) as u64;
        let kv = (2 * self.kv_heads * self.context * self.head_dim) as u64;
        let stored = if self.dtype == DType::F16 { 2 } else { 4 };
        Cost { bytes: 8 * q + stored * kv, flops: 4 * q * self.context as u64 }
    }

    fn reference(&self, memory: &mut Memory) {
        let position = memory.read(self.position)[0] as usize;
        let (dh, group) = (self.head_dim, self.query_heads / self.kv_heads);
        memory.update(self.out, |memory, out| {
            let [q, k, v] = [self.q, self.k_cache, self.v_cache].map(|id| memory.read(id));
            for t in 0..self.tokens {
                for h in 0..self.query_heads {
                    let q = &q[t * self.q_row + h * dh..][..dh];
                    let row = |s: usize| (h / group * self.context + s) * dh;
                    let dot = |s: usize| (0..dh).map(|d| q[d] * k[row(s) + d]).sum::<f64>();
                    let scores: Vec<f64> = (0..=position + t).map(|s| dot(s) / (dh as f64).sqrt()).collect();
                    let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let shares: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                    let total: f64 = shares.iter().sum();
                    for d in 0..dh {
                        let mixed = shares.iter().enumerate().map(|(s, share)| share * v[row(s) + d]).sum::<f64>();
                        out[(t * self.query_heads + h) * dh + d] = mixed / total;
                    }
                }
            }
        });
    }
}

/// Decode and prefill of real layers, cache edges, and scores that would overflow without a maximum.
pub fn cases() -> Vec<Case> {
    let case = |label: &str,
                tokens: usize,
                [query_heads, kv_heads, head_dim]: [usize; 3],
                [position, context]: [usize; 2],
                dtype: DType,
                scale: f32| {
        let label = format!("{label}, T {tokens}, H {query_heads}, Hkv {kv_heads}, Dh {head_dim}, {dtype}");
        let mut case = CaseBuilder::new(label).benched();
        // Every other case packs the k heads behind the q heads, as an unfused step does.
        let packed = if tokens.is_multiple_of(2) { 0 } else { kv_heads };
        let q = [tokens, (query_heads + packed) * head_dim];
        let q = case.tensor("q", q, DType::F32, Fill::Uniform(scale));
        let cache = [kv_heads, context, head_dim];
        let k = case.tensor("k_cache", cache, dtype, Fill::Uniform(scale));
        let v = case.tensor("v_cache", cache, dtype, Fill::Uniform(1.0));
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let out = case.tensor("out", [tokens, query_heads * head_dim], DType::F32, Fill::Zero);
        let kernel = Attention::new(&case.tensors, q, k, v, position, out, query_heads);
        // A score of size x has an absolute f32 error of about x 2^-23, which is a share's relative error.
        let tolerance = if scale > 2.0 { 1e-7 } else { 1e-11 };
        case.build(kernel, tolerance, "f32 scores and exponentials; large scores lose absolute accuracy")
    };
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32] {
        cases.push(case("270M at the first token", 1, [12, 3, 64], [0, 16], dtype, 2.0));
        cases.push(case("270M in a long context", 1, [20, 5, 64], [511, 512], dtype, 2.0));
        cases.push(case("3B at the last slot", 1, [24, 6, 128], [299, 300], dtype, 2.0));
        cases.push(case("270M prefill", 33, [16, 4, 64], [0, 64], dtype, 2.0));
        cases.push(case("3B prefill chunk", 8, [12, 3, 128], [66, 128], dtype, 2.0));
        cases.push(case("demo, one KV head, chunk to the last slot", 5, [2, 1, 32], [32, 37], dtype, 2.0));
        cases.push(case("demo, one tile and a key", 1, [6, 3, 32], [64, 70], dtype, 2.0));
        cases.push(case("scores in the thousands", 3, [4, 4, 64], [150, 160], dtype, 60.0));
    }
    cases
}
