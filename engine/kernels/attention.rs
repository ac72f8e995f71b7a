//! `out[t, h] = sum over s <= position + t of softmax(q[t, h] . k[s] / sqrt(Dh)) * v[s]`: causal
//! grouped-query attention of any number of tokens over the KV cache.
//!
//! Fuses scores, mask, softmax and weighted sum: no `[T, H, S]` leaves the workgroup. `attention_decode`
//! takes a few tokens, or a batch.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Attention of `T` tokens over the KV cache.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Queries: the first `H` heads of each row of `[T, stride]` f32.
    pub q: TensorId,
    /// Keys, those of this step included, `[Hkv, S, Dh]` f16, f32 or rows of q8_0.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Tokens cached before this step, `[1]` u32; clamped to `S - T`.
    pub position: TensorId,
    /// Weighted values, `[T, H * Dh]` f32.
    pub out: TensorId,
    /// Query heads `H`.
    pub query_heads: usize,
    tokens: usize,
    stride: usize,
    cache: Cache,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    query_heads: u32,
    kv_heads: u32,
    capacity: u32,
    stride: u32,
    last_tile: u32,
    slices: u32,
    scale: f32,
}

const _: () = assert!(size_of::<Params>() == 32);

impl Attention {
    /// Returns the attention of `q` over the cache into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, `Hkv` does not divide `H`, or `Dh` is none of 32, 64, 128.
    pub fn new(
        tensors: &Tensors,
        q: TensorId,
        k_cache: TensorId,
        v_cache: TensorId,
        position: TensorId,
        out: TensorId,
        query_heads: usize,
    ) -> Self {
        let &[tokens, stride] = tensors[q].shape.dims() else { panic!("attention takes [T, stride]") };
        let cache = Cache::new(tensors, [k_cache, v_cache], position, tokens);
        let Cache { kv_heads, head_dim, .. } = cache;
        assert!(matches!(head_dim, 32 | 64 | 128), "attention has no tile for Dh {head_dim}");
        assert!(query_heads.is_multiple_of(kv_heads), "{kv_heads} kv heads serve {query_heads} query heads");
        assert!(query_heads * head_dim <= stride && stride.is_multiple_of(4), "a row of q is {stride} values");
        tensors.expect(q, [tokens, stride], DType::F32);
        assert!(!cache.places.batch, "attention takes one sequence");
        tensors.expect(out, [tokens, query_heads * head_dim], DType::F32);
        Self { q, k_cache, v_cache, position, out, query_heads, tokens, stride, cache }
    }

    /// Vectors in a head, invocations of a workgroup, of which each has 4 query rows of one vector, query rows in a
    /// tile, and vectors of a key that are staged at a time.
    fn tile(&self, choice: &Choice) -> [usize; 4] {
        let tunables = self.tunables();
        let [wg, slice] = [0, 1].map(|n| choice.of(&tunables[n]) as usize);
        let cols = self.cache.head_dim / 4;
        [cols, wg, 4 * wg / cols, slice]
    }
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("attention.wgsl"), self.cache.fragment(tier)]
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
        format!("T {}, H {}, {}", self.tokens, self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        // Slices are whole, and at Dh 128 no longer ones fit.
        let slices = if self.cache.head_dim == 64 { vec![8, 16] } else { vec![8] };
        vec![
            Tunable { name: "WG", default: 64, values: vec![32, 64] },
            Tunable { name: "SLICE", default: 8, values: slices },
        ]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let [cols, wg, rows, slice] = self.tile(choice);
        let tiles = (self.tokens * self.query_heads / self.cache.kv_heads).div_ceil(rows);
        let params = Params {
            tokens: dim(self.tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            capacity: dim(self.cache.capacity),
            stride: dim(self.stride / 4),
            last_tile: dim(tiles - 1),
            slices: dim(cols / slice),
            scale: std::f32::consts::LOG2_E / (self.cache.head_dim as f32).sqrt(),
        };
        Dispatch {
            overrides: vec![
                ("WG", wg as f64),
                ("SLICE", slice as f64),
                ("COLS", cols as f64),
                ("ROWS", rows as f64),
                ("KEYS", 2.0 * cols as f64),
                self.cache.stride(),
            ],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(tiles), dim(self.cache.kv_heads), 1],
        }
    }

    fn cost(&self, position: usize) -> Cost {
        let rows = (self.tokens * self.query_heads * self.cache.head_dim) as u64;
        let pairs = self.cache.pairs(position) * self.query_heads * self.cache.head_dim;
        Cost {
            read: 4 * rows + 2 * self.cache.bytes(self.cache.keys_read(position)) + 4,
            written: 4 * rows,
            flops: 4 * pairs as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let cache = [self.k_cache, self.v_cache, self.position];
            self.cache.attend(memory, cache, [self.query_heads, 1], out, |[t, h]| {
                let head_dim = self.cache.head_dim;
                memory.read(self.q)[t * self.stride + h * head_dim..][..head_dim].to_vec()
            });
        });
    }
}

/// OpenELM's heads for a prefill and for one token, in either cache, and caches that end within a tile.
pub fn cases() -> Vec<Case> {
    type Step = [usize; 3];
    let case = |label: &str, step: Step, heads: Step, dtype, fills: [Fill; 3], bench| {
        let ([tokens, position, s], [h, hkv, dh]) = (step, heads);
        let label = format!("{label}, T {tokens} at {position} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}");
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let [q_fill, k_fill, v_fill] = fills;
        let q = case.tensor("q", [tokens, (h + hkv) * dh], DType::F32, q_fill);
        let k_cache = case.tensor("k_cache", [hkv, s, dh], dtype, k_fill);
        let v_cache = case.tensor("v_cache", [hkv, s, dh], dtype, v_fill);
        let position = case.tensor("position", [1], DType::U32, Fill::Values(vec![position as f64]));
        let out = case.tensor("out", [tokens, h * dh], DType::F32, Fill::Zero);
        let kernel = Attention::new(&case.tensors, q, k_cache, v_cache, position, out, h);
        (case, kernel)
    };
    let uniform = |scale: f32| [Fill::Uniform(scale), Fill::Uniform(scale), Fill::Uniform(1.0)];
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32, DType::Q8_0Rows] {
        let mut push = |label: &str, step: Step, heads: Step, bench: bool| {
            let (case, kernel) = case(label, step, heads, dtype, uniform(2.0), bench);
            cases.push(case.build(
                kernel,
                1e-12,
                "scores near 1 within f32's 2^-20, exp2 within 3 + 2 |x| ULP; both sides read the same cache",
            ));
        };
        for heads in [[12, 3, 64], [16, 4, 64], [20, 5, 64], [12, 3, 128], [24, 6, 128]] {
            push("prefill", [33, 0, 33], heads, true);
        }
        push("prefill", [128, 0, 128], [20, 5, 64], dtype == DType::F16);
        push("one token", [1, 99, 128], [20, 5, 64], false);
        for tokens in [2, 3, 7, 16, 17, 64, 127, 512] {
            // Long ones take a software adapter their time: caches of f32 are the same code.
            if dtype == DType::F32 && tokens > 64 {
                continue;
            }
            for head_dim in [64, 128] {
                push("group of four behind a cache", [tokens, 45, tokens + 50], [4, 1, head_dim], false);
                if tokens <= 64 {
                    push("groups of four", [tokens, 0, tokens], [8, 2, head_dim], false);
                }
            }
        }
        for heads in [[2, 1, 32], [4, 2, 32], [6, 3, 32]] {
            push("fable", [19, 0, 64], heads, false);
        }
        for head_dim in [32, 64, 128] {
            push("first token", [1, 0, 37], [4, 1, head_dim], false);
            push("last slot", [1, 36, 37], [4, 1, head_dim], false);
            push("chunk of a prefill", [7, 19, 37], [4, 2, head_dim], false);
            push("chunk that fills the cache", [11, 26, 37], [6, 2, head_dim], false);
            push("as many kv heads as query heads", [9, 3, 37], [3, 3, head_dim], false);
            push("one kv head for five", [13, 70, 90], [5, 1, head_dim], false);
        }
        push("position past the cache is clamped", [3, 4_000_000_000, 37], [4, 2, 64], false);
        let large = case("scores of hundreds", [9, 30, 75], [8, 2, 64], dtype, uniform(30.0), false);
        cases.push(large.0.build(large.1, 1e-7, "f32 scores near 1000 are within 2^-12, and so are weights"));
        let zero = case("equal scores", [9, 30, 75], [8, 2, 64], dtype, uniform(0.0), false);
        cases.push(zero.0.build(zero.1, 1e-12, "an f32 mean of at most 39 values"));
        if dtype == DType::Q8_0Rows {
            continue;
        }
        // What lies past the step was never written; q8_0 has no NaN.
        let cached: Vec<f64> = (0..2 * 37 * 64)
            .map(|i| if i / 64 % 37 <= 20 { f64::from(i * 131 % 257) / 128.0 - 1.0 } else { f64::NAN })
            .collect();
        let fills = [Fill::Uniform(2.0), Fill::Values(cached.clone()), Fill::Values(cached)];
        let stale = case("NaN past the step", [5, 16, 37], [8, 2, 64], dtype, fills, false);
        cases.push(stale.0.build(stale.1, 1e-12, "as the other cases: what is not visible is not used"));
    }
    cases
}
