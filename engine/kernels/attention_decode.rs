//! `out[h] = sum over s <= position of softmax(q[h] . k[s] / sqrt(Dh)) * v[s]`: grouped-query attention of
//! one token over the KV cache.
//!
//! Fuses scores, softmax and weighted sum: no `[H, S]` leaves the workgroup. `attention` takes more tokens
//! in tiles, which one token would leave nearly empty.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Attention of one token over the KV cache.
#[derive(Clone, Debug)]
pub struct AttentionDecode {
    /// Queries: the first `H` heads of `[1, stride]` f32.
    pub q: TensorId,
    /// Keys, those of this step included, `[Hkv, S, Dh]` f16 or f32.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Tokens cached before this step, `[1]` u32; clamped to `S - 1`.
    pub position: TensorId,
    /// Weighted values, `[1, H * Dh]` f32.
    pub out: TensorId,
    /// Query heads `H`.
    pub query_heads: usize,
    cache: Cache,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    members: u32,
    capacity: u32,
    scale: f32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl AttentionDecode {
    /// Returns the attention of `q` over the cache into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `Hkv` does not divide `H`, or `Dh` is none of 32, 64, 128.
    pub fn new(
        tensors: &Tensors,
        q: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        position: TensorId,
        out: TensorId,
        query_heads: usize,
    ) -> Self {
        let stride = tensors[q].shape.last();
        let cache = Cache::new(tensors, k_cache, v_cache, 1);
        let Cache { kv_heads, head_dim, .. } = cache;
        assert!(matches!(head_dim, 32 | 64 | 128), "attention_decode has no tile for Dh {head_dim}");
        assert!(query_heads.is_multiple_of(kv_heads), "{kv_heads} kv heads serve {query_heads} query heads");
        assert!(query_heads * head_dim <= stride, "a row of q is {stride} values");
        tensors.expect(q, [1, stride], DType::F32);
        tensors.expect(position, [1], DType::U32);
        tensors.expect(out, [1, query_heads * head_dim], DType::F32);
        Self { q, k_cache, v_cache, position, out, query_heads, cache }
    }
}

impl Kernel for AttentionDecode {
    fn name(&self) -> &'static str {
        "attention_decode"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("attention_decode.wgsl"), tier.reduce(), self.cache.fragment(tier)]
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
        format!("H {}, {}", self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params {
            members: dim(self.query_heads / self.cache.kv_heads),
            capacity: dim(self.cache.capacity),
            scale: std::f32::consts::LOG2_E / (self.cache.head_dim as f32).sqrt(),
        };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0]))), ("COLS", (self.cache.head_dim / 4) as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.query_heads), 1, 1],
        }
    }

    fn cost(&self, position: usize) -> Cost {
        let row = (self.query_heads * self.cache.head_dim) as u64;
        let seen = self.cache.clamp(position, 1) + 1;
        Cost {
            read: 4 * row + 2 * self.cache.bytes(seen) + 4,
            written: 4 * row,
            flops: 4 * row * seen as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let Cache { kv_heads, capacity, head_dim, .. } = self.cache;
        memory.update(self.out, |memory, out| {
            let (k, v) = (memory.read(self.k_cache), memory.read(self.v_cache));
            let last = self.cache.first(memory.read(self.position), 1);
            for h in 0..self.query_heads {
                let q = &memory.read(self.q)[h * head_dim..][..head_dim];
                let cached = h / (self.query_heads / kv_heads) * capacity * head_dim;
                let dot =
                    |s: usize| -> f64 { (0..head_dim).map(|d| q[d] * k[cached + s * head_dim + d]).sum() };
                let scores: Vec<f64> = (0..=last).map(|s| dot(s) / (head_dim as f64).sqrt()).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let weights: Vec<f64> = scores.iter().map(|score| (score - top).exp()).collect();
                let total: f64 = weights.iter().sum();
                for d in 0..head_dim {
                    let weighted = (0..=last).map(|s| weights[s] / total * v[cached + s * head_dim + d]);
                    out[h * head_dim + d] = weighted.sum();
                }
            }
        });
    }
}

/// OpenELM's heads, in either cache, and caches that end within a chunk or hold NaN past the position.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, [position, s]: [usize; 2], heads: [usize; 3], dtype, fills: [Fill; 3], bench| {
        let [h, hkv, dh] = heads;
        let label = format!("{label}, at {position} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}");
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let [q_fill, k_fill, v_fill] = fills;
        let q = case.tensor("q", [1, (h + hkv) * dh], DType::F32, q_fill);
        let k_cache = case.tensor("k_cache", [hkv, s, dh], dtype, k_fill);
        let v_cache = case.tensor("v_cache", [hkv, s, dh], dtype, v_fill);
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let out = case.tensor("out", [1, h * dh], DType::F32, Fill::Zero);
        let kernel = AttentionDecode::new(&case.tensors, q, k_cache, v_cache, position, out, h);
        (case, kernel)
    };
    let uniform = |q: f32, k: f32| [Fill::Uniform(q), Fill::Uniform(k), Fill::Uniform(1.0)];
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32] {
        let mut push = |label: &str, place: [usize; 2], heads: [usize; 3], bench: bool| {
            let (case, kernel) = case(label, place, heads, dtype, uniform(2.0, 2.0), bench);
            cases.push(case.build(
                kernel,
                1e-12,
                "scores near 1 within f32's 2^-20, exp2 within 3 + 2 |x| ULP; both sides read the same cache",
            ));
        };
        for heads in [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]] {
            push("OpenELM", [511, 512], heads, true);
        }
        push("full context", [2047, 2048], [20, 5, 64], true);
        for heads in [[2, 1, 32], [4, 2, 32], [6, 3, 32]] {
            push("fable", [70, 256], heads, false);
        }
        for head_dim in [32, 64, 128] {
            push("first token", [0, 37], [4, 1, head_dim], false);
            push("last slot", [36, 37], [4, 1, head_dim], false);
            push("one key past a chunk", [256, 300], [3, 3, head_dim], false);
            push("one kv head for five", [299, 300], [5, 1, head_dim], false);
        }
        push("position past the cache is clamped", [4_000_000_000, 37], [4, 2, 64], false);
        let large = case("scores of hundreds", [290, 300], [8, 2, 64], dtype, uniform(30.0, 30.0), false);
        cases.push(large.0.build(large.1, 1e-7, "f32 scores near 1000 are within 2^-12, and so are weights"));
        // What lies past the position was never written.
        let cached: Vec<f64> = (0..2 * 37 * 64)
            .map(|i| if i / 64 % 37 <= 20 { f64::from(i * 131 % 257) / 128.0 - 1.0 } else { f64::NAN })
            .collect();
        let fills = [Fill::Uniform(2.0), Fill::Values(cached.clone()), Fill::Values(cached)];
        let stale = case("NaN past the position", [20, 37], [8, 2, 64], dtype, fills, false);
        cases.push(stale.0.build(stale.1, 1e-12, "as the other cases: what is not visible is not used"));
        let zero = case("equal scores", [290, 300], [8, 2, 64], dtype, uniform(0.0, 0.0), false);
        cases.push(zero.0.build(zero.1, 1e-12, "an f32 mean of at most 291 values"));
    }
    cases
}
