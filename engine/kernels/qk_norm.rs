//! `out[t, h, :] = qkv[t, h, :] * weight * rsqrt(mean(qkv[t, h, :]^2) + eps)`: OpenELM's norm of queries
//! and keys, over the `Dh` values of each head.
//!
//! Not fused: `qk_norm_rope` saves the round trips to the rotation and to the cache.

use bytemuck::{Pod, Zeroable};

use super::math;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Root-mean-square norm of each query and key head.
#[derive(Clone, Debug)]
pub struct QkNorm {
    /// Packed projection, `[T, (H + 2 Hkv) * Dh]` f32.
    pub qkv: TensorId,
    /// Scale of a query head, `[Dh]` f32.
    pub q_weight: TensorId,
    /// Scale of a key head, `[Dh]` f32.
    pub k_weight: TensorId,
    /// Normalised queries and keys, `[T, (H + Hkv) * Dh]` f32.
    pub out: TensorId,
    /// Query heads `H`.
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
    tokens: u32,
    query_heads: u32,
    kv_heads: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 16);

impl QkNorm {
    /// Returns the norm of the query and key heads of `qkv` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit or `Dh` is none of 8, 16, .., 512.
    pub fn new(
        tensors: &Tensors,
        qkv: TensorId,
        q_weight: TensorId,
        k_weight: TensorId,
        out: TensorId,
        query_heads: usize,
        eps: f32,
    ) -> Self {
        let &[tokens, columns] = tensors[out].shape.dims() else { panic!("qk_norm gives [T, columns]") };
        let head_dim = tensors[q_weight].shape.elements();
        assert!(head_dim.is_multiple_of(8) && 32usize.is_multiple_of(head_dim / 8), "qk_norm: Dh {head_dim}");
        let kv_heads = columns / head_dim - query_heads;
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(out, [tokens, (query_heads + kv_heads) * head_dim], DType::F32);
        Self { qkv, q_weight, k_weight, out, query_heads, eps, tokens, kv_heads, head_dim }
    }

    fn rows(&self) -> usize {
        self.tokens * (self.query_heads + self.kv_heads)
    }
}

impl Kernel for QkNorm {
    fn name(&self) -> &'static str {
        "qk_norm"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("qk_norm.wgsl"), fragment!("lib/head_sum.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.qkv),
            Operand::read(self.q_weight),
            Operand::read(self.k_weight),
            Operand::write(self.out),
        ]
    }

    fn shape(&self) -> String {
        format!("T {}, H {}, Hkv {}, Dh {}", self.tokens, self.query_heads, self.kv_heads, self.head_dim)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params {
            tokens: dim(self.tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.kv_heads),
            eps: self.eps,
        };
        let lanes = self.head_dim / 8;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("LANES", lanes as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((self.rows() * lanes).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = (self.rows() * self.head_dim) as u64;
        Cost { read: 4 * n + 8 * self.head_dim as u64, written: 4 * n, flops: 4 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        let heads = self.query_heads + self.kv_heads;
        memory.update(self.out, |memory, out| {
            let qkv = memory.read(self.qkv);
            for t in 0..self.tokens {
                for h in 0..heads {
                    let weight = memory.read(if h < self.query_heads { self.q_weight } else { self.k_weight });
                    let x = &qkv[(t * (heads + self.kv_heads) + h) * self.head_dim..][..self.head_dim];
                    let out = &mut out[(t * heads + h) * self.head_dim..][..self.head_dim];
                    out.copy_from_slice(&math::rms_norm(x, weight, self.eps));
                }
            }
        });
    }
}

/// OpenELM's heads for one token and a prefill, and heads that are hard to normalise.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, [h, hkv, dh]: [usize; 3], fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, H {h}, Hkv {hkv}, Dh {dh}")).benched(bench);
        let qkv = case.tensor("qkv", [tokens, (h + 2 * hkv) * dh], DType::F32, fill);
        let q_weight = case.tensor("q_weight", [dh], DType::F32, Fill::Uniform(1.5));
        let k_weight = case.tensor("k_weight", [dh], DType::F32, Fill::Uniform(1.5));
        let out = case.tensor("out", [tokens, (h + hkv) * dh], DType::F32, Fill::Zero);
        let kernel = QkNorm::new(&case.tensors, qkv, q_weight, k_weight, out, h, 1e-6);
        case.build(kernel, 1e-12, "an f32 sum of squares over at most 128 values and one f32 rsqrt")
    };
    let mut cases = Vec::new();
    for heads in [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]] {
        cases.push(case("decode", 1, heads, Fill::Uniform(2.0), true));
        cases.push(case("prefill", 33, heads, Fill::Uniform(2.0), true));
    }
    for heads in [[2, 1, 32], [4, 2, 32], [6, 3, 32]] {
        cases.push(case("fable", 5, heads, Fill::Uniform(2.0), false));
    }
    cases.push(case("one head of each kind", 3, [1, 1, 64], Fill::Uniform(2.0), false));
    cases.push(case("zero heads", 2, [4, 1, 64], Fill::Zero, false));
    cases.push(case("mean far below eps", 2, [4, 1, 64], Fill::Uniform(1e-5), false));
    cases.push(case("magnitudes 2^-20 to 2^20", 2, [4, 1, 64], Fill::Extreme, false));
    cases
}
