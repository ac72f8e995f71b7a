//! `out[t, h, :] = qkv[t, h, :] * w * rsqrt(mean(qkv[t, h, :]^2) + eps)` for every q and k head.
//!
//! One weight of length Dh serves all q heads, another all k heads; v is not normalised.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 32;

/// RMSNorm over each query and key head.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// Packed projection, `[T, (H + 2 Hkv) * Dh]` f32: q heads, k heads, v heads.
    pub qkv: TensorId,
    /// Scale of the q heads, `[Dh]` f32.
    pub q_weight: TensorId,
    /// Scale of the k heads, `[Dh]` f32.
    pub k_weight: TensorId,
    /// Normalised q and k heads, `[T, (H + Hkv) * Dh]` f32.
    pub out: TensorId,
    /// H.
    pub query_heads: usize,
    /// Added to the mean of squares.
    pub eps: f32,
    tokens: usize,
    kv_heads: usize,
    head_dim: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    head_vectors: u32,
    query_heads: u32,
    row: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 16);

impl QkNorm {
    /// Returns the norm of the q and k heads of `qkv` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, or `Dh` is no multiple of 4 or above 128.
    pub fn new(
        tensors: &Tensors,
        qkv: TensorId,
        q_weight: TensorId,
        k_weight: TensorId,
        out: TensorId,
        query_heads: usize,
        eps: f32,
    ) -> Self {
        let &[tokens, row] = tensors[qkv].shape.dims() else { panic!("qk_norm takes [T, N]") };
        let head_dim = tensors[q_weight].shape.last();
        assert!(head_dim.is_multiple_of(4) && head_dim <= 4 * WG, "qk_norm takes heads up to 128: {head_dim}");
        let kv_heads = (row / head_dim - query_heads) / 2;
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(out, [tokens, (query_heads + kv_heads) * head_dim], DType::F32);
        Self { qkv, q_weight, k_weight, out, query_heads, eps, tokens, kv_heads, head_dim }
    }
}

impl Kernel for QkNorm {
    fn name(&self) -> &'static str {
        "qk_norm"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("qk_norm.wgsl"), tier.reduce()]
    }

    fn operands(&self) -> Vec<Operand> {
        let inputs = [self.qkv, self.q_weight, self.k_weight].map(Operand::read);
        inputs.into_iter().chain([Operand::write(self.out)]).collect()
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let heads = self.query_heads + self.kv_heads;
        let params = Params {
            head_vectors: dim(self.head_dim / 4),
            query_heads: dim(self.query_heads),
            row: dim((heads + self.kv_heads) * self.head_dim / 4),
            eps: self.eps,
        };
        Dispatch {
            overrides: vec![("WG", WG as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(heads), dim(self.tokens), 1],
        }
    }

    fn cost(&self) -> Cost {
        let n = (self.tokens * (self.query_heads + self.kv_heads) * self.head_dim) as u64;
        Cost { bytes: 8 * n + 8 * self.head_dim as u64, flops: 4 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        let heads = self.query_heads + self.kv_heads;
        memory.update(self.out, |memory, out| {
            for t in 0..self.tokens {
                for h in 0..heads {
                    let weight = memory.read(if h < self.query_heads { self.q_weight } else { self.k_weight });
                    let from = (t * (heads + self.kv_heads) + h) * self.head_dim;
                    let x = &memory.read(self.qkv)[from..from + self.head_dim];
                    let mean = x.iter().map(|v| v * v).sum::<f64>() / self.head_dim as f64;
                    let scale = 1.0 / (mean + f64::from(self.eps)).sqrt();
                    for d in 0..self.head_dim {
                        out[(t * heads + h) * self.head_dim + d] = x[d] * weight[d] * scale;
                    }
                }
            }
        });
    }
}

/// Heads of the 270M, the 3B and the demo model, for one token and a prefill, and odd ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, [heads, kv_heads, head_dim]: [usize; 3], fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, H {heads}, Hkv {kv_heads}, Dh {head_dim}"));
        if bench {
            case = case.benched();
        }
        let qkv = case.tensor("qkv", [tokens, (heads + 2 * kv_heads) * head_dim], DType::F32, fill);
        let q_weight = case.tensor("q_weight", [head_dim], DType::F32, Fill::Uniform(1.5));
        let k_weight = case.tensor("k_weight", [head_dim], DType::F32, Fill::Uniform(1.5));
        let out = case.tensor("out", [tokens, (heads + kv_heads) * head_dim], DType::F32, Fill::Zero);
        let kernel = QkNorm::new(&case.tensors, qkv, q_weight, k_weight, out, heads, 1e-6);
        case.build(kernel, 1e-12, "an f32 sum of at most 128 squares and one f32 rsqrt")
    };
    vec![
        case("270M", 1, [12, 3, 64], Fill::Uniform(2.0), true),
        case("270M", 33, [20, 5, 64], Fill::Uniform(2.0), true),
        case("3B", 1, [24, 6, 128], Fill::Uniform(2.0), true),
        case("3B", 17, [12, 3, 128], Fill::Uniform(2.0), false),
        case("demo, one KV head", 7, [2, 1, 32], Fill::Uniform(2.0), false),
        case("zero heads", 2, [4, 1, 64], Fill::Zero, false),
        case("magnitudes 2^-20 to 2^20", 2, [4, 4, 32], Fill::Extreme, false),
    ]
}
