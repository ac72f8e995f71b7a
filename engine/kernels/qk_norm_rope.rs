//! q/k norm, rotary position embedding and the write to the KV cache, from the packed projection.
//!
//! Fused: one launch instead of three; q and k make one round trip, and k goes straight to the cache.

use bytemuck::{Pod, Zeroable};

use super::{
    Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment, kv_fragment,
};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 32;

/// q/k norm, RoPE and cache write.
#[derive(Clone, Debug)]
pub struct QkNormRope {
    /// Packed projection, `[T, (H + 2 Hkv) * Dh]` f32: q heads, k heads, v heads.
    pub qkv: TensorId,
    /// Scale of the q heads, `[Dh]` f32.
    pub q_weight: TensorId,
    /// Scale of the k heads, `[Dh]` f32.
    pub k_weight: TensorId,
    /// Cosines, then sines of each position, `[S, Dh]` f32.
    pub table: TensorId,
    /// Tokens cached before the step, `[1]` u32.
    pub position: TensorId,
    /// Rotated q heads, `[T, H * Dh]` f32.
    pub q: TensorId,
    /// Keys, `[Hkv, S, Dh]` f16 or f32.
    pub k_cache: TensorId,
    /// Values, `[Hkv, S, Dh]` f16 or f32.
    pub v_cache: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    tokens: usize,
    query_heads: usize,
    kv_heads: usize,
    context: usize,
    head_dim: usize,
    dtype: DType,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    half: u32,
    query_heads: u32,
    kv_heads: u32,
    tokens: u32,
    context: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 24);

impl QkNormRope {
    /// Returns norm and rotation of the heads of `qkv` into `q` and the caches.
    ///
    /// # Panics
    /// When shapes do not fit, `Dh` is no multiple of 8 or above 256, or the step is longer than the
    /// cache.
    #[expect(clippy::too_many_arguments, reason = "ten named operands are what is fused")]
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
        let dtype = tensors[k_cache].dtype;
        let &[kv_heads, context, head_dim] = tensors[k_cache].shape.dims() else {
            panic!("a cache is [Hkv, S, Dh]")
        };
        let &[tokens, row] = tensors[q].shape.dims() else { panic!("q is [T, H * Dh]") };
        assert!(head_dim.is_multiple_of(8) && head_dim <= 8 * WG && tokens <= context, "Dh {head_dim}, T {tokens}");
        let query_heads = row / head_dim;
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(q_weight, [head_dim], DType::F32);
        tensors.expect(k_weight, [head_dim], DType::F32);
        tensors.expect(table, [context, head_dim], DType::F32);
        tensors.expect(position, [1], DType::U32);
        tensors.expect(q, [tokens, query_heads * head_dim], DType::F32);
        tensors.expect(v_cache, [kv_heads, context, head_dim], dtype);
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
            kv_heads,
            context,
            head_dim,
            dtype,
        }
    }

    /// Norm and rotation of one head at a position.
    fn rotated(&self, memory: &Memory, x: &[f64], weight: &[f64], position: usize) -> Vec<f64> {
        let half = self.head_dim / 2;
        let table = &memory.read(self.table)[position * self.head_dim..];
        let mean = x.iter().map(|v| v * v).sum::<f64>() / self.head_dim as f64;
        let scale = 1.0 / (mean + f64::from(self.eps)).sqrt();
        let normed = |d: usize| x[d] * weight[d] * scale;
        let low = (0..half).map(|j| normed(j) * table[j] - normed(j + half) * table[half + j]);
        let high = (0..half).map(|j| normed(j + half) * table[j] + normed(j) * table[half + j]);
        low.chain(high).collect()
    }
}

impl Kernel for QkNormRope {
    fn name(&self) -> &'static str {
        "qk_norm_rope"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("qk_norm_rope.wgsl"), tier.reduce(), kv_fragment(self.dtype, tier)]
    }

    fn operands(&self) -> Vec<Operand> {
        let inputs = [self.qkv, self.q_weight, self.k_weight, self.table, self.position].map(Operand::read);
        let caches = [self.k_cache, self.v_cache].map(Operand::read_write);
        inputs.into_iter().chain([Operand::write(self.q)]).chain(caches).collect()
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let params = Params {
            half: dim(self.head_dim / 8),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.kv_heads),
            tokens: dim(self.tokens),
            context: dim(self.context),
            eps: self.eps,
        };
        Dispatch {
            overrides: vec![("WG", WG as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.query_heads + 2 * self.kv_heads), dim(self.tokens), 1],
        }
    }

    fn cost(&self) -> Cost {
        let q = (self.tokens * self.query_heads * self.head_dim) as u64;
        let kv = (self.tokens * self.kv_heads * self.head_dim) as u64;
        let stored = if self.dtype == DType::F16 { 2 } else { 4 };
        let table = 4 * (self.tokens * self.head_dim) as u64;
        Cost { bytes: 8 * q + 2 * kv * (4 + stored) + table, flops: 7 * (q + kv) }
    }

    fn reference(&self, memory: &mut Memory) {
        let position = memory.read(self.position)[0] as usize;
        let (heads, dh) = (self.query_heads + 2 * self.kv_heads, self.head_dim);
        let head = |t: usize, h: usize| (t * heads + h) * dh..(t * heads + h + 1) * dh;
        memory.update(self.q, |memory, q| {
            for (i, out) in q.chunks_mut(dh).enumerate() {
                let (t, h) = (i / self.query_heads, i % self.query_heads);
                let x = &memory.read(self.qkv)[head(t, h)];
                out.copy_from_slice(&self.rotated(memory, x, memory.read(self.q_weight), position + t));
            }
        });
        let slot = |t: usize, g: usize| (g * self.context + position + t) * dh..(g * self.context + position + t + 1) * dh;
        memory.update(self.k_cache, |memory, cache| {
            for (t, g) in (0..self.tokens).flat_map(|t| (0..self.kv_heads).map(move |g| (t, g))) {
                let x = &memory.read(self.qkv)[head(t, self.query_heads + g)];
                let key = self.rotated(memory, x, memory.read(self.k_weight), position + t);
                cache[slot(t, g)].copy_from_slice(&key);
            }
        });
        memory.update(self.v_cache, |memory, cache| {
            for (t, g) in (0..self.tokens).flat_map(|t| (0..self.kv_heads).map(move |g| (t, g))) {
                let x = &memory.read(self.qkv)[head(t, self.query_heads + self.kv_heads + g)];
                cache[slot(t, g)].copy_from_slice(x);
            }
        });
    }
}

/// Real heads at first, middle and last slots, both cache formats.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, heads: [usize; 3], [position, context]: [usize; 2], dtype: DType| {
        let [query_heads, kv_heads, head_dim] = heads;
        let label = format!("{label}, T {tokens}, H {query_heads}, Hkv {kv_heads}, Dh {head_dim}, {dtype}");
        let mut case = CaseBuilder::new(label).benched();
        let qkv = [tokens, (query_heads + 2 * kv_heads) * head_dim];
        let qkv = case.tensor("qkv", qkv, DType::F32, Fill::Uniform(2.0));
        let q_weight = case.tensor("q_weight", [head_dim], DType::F32, Fill::Uniform(1.5));
        let k_weight = case.tensor("k_weight", [head_dim], DType::F32, Fill::Uniform(1.5));
        let table = case.tensor("table", [context, head_dim], DType::F32, Fill::Uniform(1.0));
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let q = case.tensor("q", [tokens, query_heads * head_dim], DType::F32, Fill::Zero);
        let cache = [kv_heads, context, head_dim];
        let [k, v] = ["k_cache", "v_cache"].map(|name| case.tensor(name, cache, dtype, Fill::Uniform(1.0)));
        let kernel = QkNormRope::new(&case.tensors, qkv, q_weight, k_weight, table, position, q, k, v, 1e-6);
        match dtype {
            DType::F16 => case.build(kernel, 1e-7, "an f32 just beside a tie rounds to the other f16"),
            _ => case.build(kernel, 1e-12, "an f32 sum of at most 128 squares, one f32 rsqrt, f32 products"),
        }
    };
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32] {
        cases.push(case("270M at the first slot", 1, [12, 3, 64], [0, 16], dtype));
        cases.push(case("3B at the last slot", 1, [24, 6, 128], [36, 37], dtype));
        cases.push(case("270M prefill", 17, [20, 5, 64], [0, 32], dtype));
        cases.push(case("demo, a chunk to the last slot", 5, [2, 1, 32], [32, 37], dtype));
    }
    cases
}
