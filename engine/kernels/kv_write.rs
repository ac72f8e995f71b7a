//! `k_cache[g, position + t, :] = k[t, g, :]` and the same for v: appends a step to the KV cache.

use bytemuck::{Pod, Zeroable};

use super::{
    Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment, kv_fragment,
};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 64;

/// Write of k and v to the cache.
#[derive(Clone, Debug)]
pub struct KvWrite {
    /// Rotated q and k heads, `[T, (H + Hkv) * Dh]` f32.
    pub qk: TensorId,
    /// Packed projection that holds v, `[T, (H + 2 Hkv) * Dh]` f32.
    pub qkv: TensorId,
    /// Tokens cached before the step, `[1]` u32.
    pub position: TensorId,
    /// Keys, `[Hkv, S, Dh]` f16 or f32.
    pub k_cache: TensorId,
    /// Values, `[Hkv, S, Dh]` f16 or f32.
    pub v_cache: TensorId,
    query_heads: usize,
    tokens: usize,
    kv_heads: usize,
    context: usize,
    head_dim: usize,
    dtype: DType,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vectors: u32,
    head_vectors: u32,
    query_heads: u32,
    kv_heads: u32,
    tokens: u32,
    context: u32,
}

const _: () = assert!(size_of::<Params>() == 24);

impl KvWrite {
    /// Returns the write of the k heads of `qk` and the v heads of `qkv`.
    ///
    /// # Panics
    /// When shapes do not fit, `Dh` is no multiple of 4 or the step is longer than the cache.
    pub fn new(
        tensors: &Tensors,
        qk: TensorId,
        qkv: TensorId,
        position: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        query_heads: usize,
    ) -> Self {
        let tokens = tensors[qk].shape.dims()[0];
        let dtype = tensors[k_cache].dtype;
        let &[kv_heads, context, head_dim] = tensors[k_cache].shape.dims() else {
            panic!("a cache is [Hkv, S, Dh]")
        };
        assert!(head_dim.is_multiple_of(4) && tokens <= context, "Dh {head_dim}, T {tokens}, S {context}");
        tensors.expect(qk, [tokens, (query_heads + kv_heads) * head_dim], DType::F32);
        tensors.expect(qkv, [tokens, (query_heads + 2 * kv_heads) * head_dim], DType::F32);
        tensors.expect(position, [1], DType::U32);
        tensors.expect(v_cache, [kv_heads, context, head_dim], dtype);
        Self {
            qk,
            qkv,
            position,
            k_cache,
            v_cache,
            query_heads,
            tokens,
            kv_heads,
            context,
            head_dim,
            dtype,
        }
    }
}

impl Kernel for KvWrite {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("kv_write.wgsl"), kv_fragment(self.dtype, tier)]
    }

    fn operands(&self) -> Vec<Operand> {
        let inputs = [self.qk, self.qkv, self.position].map(Operand::read);
        inputs.into_iter().chain([self.k_cache, self.v_cache].map(Operand::read_write)).collect()
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let vectors = self.tokens * self.kv_heads * self.head_dim / 4;
        let params = Params {
            vectors: dim(vectors),
            head_vectors: dim(self.head_dim / 4),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.kv_heads),
            tokens: dim(self.tokens),
            context: dim(self.context),
        };
        Dispatch {
            overrides: vec![("WG", WG as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(vectors.div_ceil(WG)), 1, 1],
        }
    }

    fn cost(&self) -> Cost {
        let n = (self.tokens * self.kv_heads * self.head_dim) as u64;
        let stored = if self.dtype == DType::F16 { 2 } else { 4 };
        Cost { bytes: 2 * n * (4 + stored), flops: 0 }
    }

    fn reference(&self, memory: &mut Memory) {
        let position = memory.read(self.position)[0] as usize;
        let heads = self.query_heads + self.kv_heads;
        let sources = [
            (self.k_cache, self.qk, self.query_heads, heads),
            (self.v_cache, self.qkv, heads, heads + self.kv_heads),
        ];
        for (cache, from, first, row) in sources {
            memory.update(cache, |memory, cache| {
                let from = memory.read(from);
                for t in 0..self.tokens {
                    for g in 0..self.kv_heads {
                        for d in 0..self.head_dim {
                            cache[(g * self.context + position + t) * self.head_dim + d] =
                                from[(t * row + first + g) * self.head_dim + d];
                        }
                    }
                }
            });
        }
    }
}

/// First, middle and last slots, both cache formats.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, heads: [usize; 3], [position, context]: [usize; 2], dtype: DType| {
        let [query_heads, kv_heads, head_dim] = heads;
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, Hkv {kv_heads}, Dh {head_dim}, {dtype}"));
        let qk = [tokens, (query_heads + kv_heads) * head_dim];
        let qk = case.tensor("qk", qk, DType::F32, Fill::Uniform(2.0));
        let qkv = [tokens, (query_heads + 2 * kv_heads) * head_dim];
        let qkv = case.tensor("qkv", qkv, DType::F32, Fill::Uniform(2.0));
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let cache = [kv_heads, context, head_dim];
        let [k, v] = ["k_cache", "v_cache"].map(|name| case.tensor(name, cache, dtype, Fill::Uniform(1.0)));
        let kernel = KvWrite::new(&case.tensors, qk, qkv, position, k, v, query_heads);
        case.build(kernel, 1e-7, "the device rounds the f32, the reference the f64 value to f16; f32 caches are 1e-14")
    };
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32] {
        cases.push(case("first slot", 1, [12, 3, 64], [0, 16], dtype));
        cases.push(case("last slot", 1, [24, 6, 128], [36, 37], dtype));
        cases.push(case("prefill from the start", 17, [20, 5, 64], [0, 32], dtype));
        cases.push(case("chunk to the last slot", 5, [2, 1, 32], [32, 37], dtype));
    }
    cases
}
