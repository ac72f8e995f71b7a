//! `out[t, h] = sum over s <= position + t of softmax(q[t, h] . k[s] / sqrt(Dh)) * v[s]`: causal
//! grouped-query attention of any number of tokens over the KV cache.
//!
//! Fuses scores, mask, softmax and weighted sum: no `[T, H, S]` is stored. `attention_decode` handles a few
//! tokens, or a batch. With matrix units of 16 x 16, caches of f16 and q8_0 use a tile loop on them.

use bytemuck::{Pod, Zeroable};

use super::cache::{Cache, KvCache};
use super::heads_case::{CACHES, FABLE, HeadsCase, OPENELM, Rows, stale};
use super::tier::F16_ERROR;
use super::{
    Case, Choice, Cost, Dispatch, Fill, Fragment, Kernel, MatrixShape, Memory, Operand, Tier,
    Tunable, dim, fragment,
};
use crate::tensor::{DType, TensorId, Tensors};

/// Query rows of a tile on matrix units: the side of a matrix.
const MATRIX_ROWS: usize = 16;

/// Attention of `T` tokens over the KV cache.
#[derive(Clone, Debug)]
pub struct Attention {
    /// Queries: the first `H` heads of each row of `[T, stride]` f32.
    pub q: TensorId,
    /// The cache of one sequence, keys and values of this step included.
    pub kv: KvCache,
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
    pub fn new(tensors: &Tensors, q: TensorId, kv: KvCache, out: TensorId, query_heads: usize) -> Self {
        let &[tokens, stride] = tensors[q].shape.dims() else { panic!("attention takes [T, stride]") };
        let cache = Cache::new(tensors, kv, tokens);
        cache.expect_heads(query_heads);
        let head_dim = cache.head_dim;
        assert!(query_heads * head_dim <= stride && stride.is_multiple_of(4), "a row of q is {stride} values");
        tensors.expect(q, [tokens, stride], DType::F32);
        assert!(!cache.positions.batch, "attention takes one sequence");
        tensors.expect(out, [tokens, query_heads * head_dim], DType::F32);
        Self { q, kv, out, query_heads, tokens, stride, cache }
    }

    /// Returns the same attention for other queries.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn by(&self, tensors: &Tensors, q: TensorId) -> Self {
        Self::new(tensors, q, self.kv, self.out, self.query_heads)
    }

    /// Returns the fragment that loads the cache for matrix units, if the tier has them and the kernel can
    /// use them.
    fn half_fragment(&self, tier: Tier) -> Option<Fragment> {
        let fits = tier.coop == Some(MatrixShape::Sixteen) && matches!(self.cache.head_dim, 64 | 128);
        self.cache.half_fragment().filter(|_| fits)
    }

    /// Returns the query rows of a tile, and the overrides, in f32.
    fn f32_tile(&self, choice: &Choice) -> (usize, Vec<(&'static str, f64)>) {
        let tunables = self.tunables();
        let [wg, slice] = [0, 1].map(|n| choice.of(&tunables[n]) as usize);
        let cols = self.cache.head_dim / 4;
        let rows = 4 * wg / cols;
        let overrides = [("WG", wg), ("SLICE", slice), ("ROWS", rows), ("KEYS", 2 * cols)];
        (rows, overrides.map(|(name, value)| (name, value as f64)).to_vec())
    }

    /// Returns the same on matrix units.
    fn matrix_tile(&self, choice: &Choice) -> (usize, Vec<(&'static str, f64)>) {
        let invocations = choice.of(&self.tunables()[2]) as usize;
        let parts = (invocations / (2 * self.cache.head_dim)).max(1);
        let overrides = [("INVOCATIONS", invocations), ("PARTS", parts)];
        (MATRIX_ROWS, overrides.map(|(name, value)| (name, value as f64)).to_vec())
    }
}

impl Kernel for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        let own = fragment!("attention.wgsl");
        match self.half_fragment(tier) {
            Some(half) => {
                let tile = [fragment!("lib/attention_coop.wgsl"), fragment!("lib/coop_attention.wgsl")];
                vec![own, tile[0], tile[1], half]
            }
            None => vec![own, fragment!("lib/attention_f32.wgsl"), self.cache.fragment(tier)],
        }
    }

    fn operands(&self) -> Vec<Operand> {
        let mut operands = vec![Operand::read(self.q)];
        operands.extend(self.cache.read());
        operands.push(Operand::write(self.out));
        operands
    }

    fn shape(&self) -> String {
        format!("T {}, H {}, {}", self.tokens, self.query_heads, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        // Slices divide a key; at Dh 128 longer ones do not fit in workgroup memory.
        let slices = if self.cache.head_dim == 64 { vec![8, 16] } else { vec![8] };
        let mut tunables = vec![
            Tunable { name: "WG", default: 64, values: vec![32, 64] },
            Tunable { name: "SLICE", default: 8, values: slices },
        ];
        if self.half_fragment(Tier::COOP).is_some() {
            tunables.push(Tunable { name: "INVOCATIONS", default: 256, values: vec![128, 256] });
        }
        tunables
    }

    fn choices(&self, tier: Tier) -> Vec<Choice> {
        let on_units = self.half_fragment(tier).is_some();
        let mut tunables = self.tunables();
        for other in tunables.iter_mut().filter(|tunable| (tunable.name == "INVOCATIONS") != on_units) {
            other.values = vec![other.default];
        }
        Choice::all(&tunables)
    }

    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch {
        let (rows, mut overrides) = match self.half_fragment(tier) {
            Some(_) => self.matrix_tile(choice),
            None => self.f32_tile(choice),
        };
        let cols = self.cache.head_dim / 4;
        overrides.extend([("COLS", cols as f64), self.cache.stride()]);
        let tiles = (self.tokens * self.query_heads / self.cache.kv_heads).div_ceil(rows);
        let params = Params {
            tokens: dim(self.tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            capacity: dim(self.cache.capacity),
            stride: dim(self.stride / 4),
            last_tile: dim(tiles - 1),
            slices: dim(cols) / choice.of(&self.tunables()[1]),
            scale: self.cache.score_scale(),
        };
        Dispatch {
            overrides,
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(tiles), dim(self.cache.kv_heads), 1],
        }
    }

    fn rounding(&self, tier: Tier) -> f64 {
        if self.half_fragment(tier).is_none() {
            return 0.0;
        }
        // The error of a weight is its own rounding to f16, and the error of its score. A score of 4/3, as
        // normalised heads have it, is off by one rounding if only the query is rounded, by two if the key is
        // too.
        let (factors, values) = if self.cache.dtype == DType::F16 { (1.0, 0.0) } else { (2.0, 1.0) };
        let score = 4.0_f64 / 3.0 * factors;
        (score * score + 1.0 + values) * F16_ERROR
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
            self.cache.attend(memory, [self.query_heads, 1], out, |[t, h]| {
                let head_dim = self.cache.head_dim;
                memory.read(self.q)[t * self.stride + h * head_dim..][..head_dim].to_vec()
            });
        });
    }
}

/// OpenELM's heads for a prefill and for one token, in every cache type, and caches that end within a tile.
pub fn cases() -> Vec<Case> {
    type Step = [usize; 3];
    let case = |label: &str, [tokens, position, s]: Step, heads: Step, dtype, fills: [Fill; 3], bench| {
        let [q_fill, k_fill, v_fill] = fills;
        let mut case = HeadsCase::new(label, (Rows::Sequence(tokens, position), s), heads, dtype, bench);
        let q = case.of_heads("q", heads[0] + heads[1], q_fill);
        let kv = case.cache([k_fill, v_fill]);
        let out = case.mix();
        let kernel = Attention::new(&case.case.tensors, q, kv, out, heads[0]);
        (case.case, kernel)
    };
    let uniform = |scale: f32| [Fill::Uniform(scale), Fill::Uniform(scale), Fill::Uniform(1.0)];
    let mut cases = Vec::new();
    for dtype in CACHES {
        let mut push = |label: &str, step: Step, heads: Step, bench: bool| {
            let (case, kernel) = case(label, step, heads, dtype, uniform(2.0), bench);
            cases.push(case.build(
                kernel,
                1e-12,
                "scores near 1 within f32's 2^-20, exp2 within 3 + 2 |x| ULP; both sides read the same cache",
            ));
        };
        for heads in OPENELM {
            push("prefill", [33, 0, 33], heads, true);
        }
        push("prefill", [128, 0, 128], [20, 5, 64], dtype == DType::F16);
        // Long ones are slow on a software adapter, and caches of f32 run the same code.
        if dtype != DType::F32 {
            push("prefill", [512, 0, 512], [12, 3, 64], true);
            push("prefill", [512, 0, 512], [24, 6, 128], true);
        }
        push("one token", [1, 99, 128], [20, 5, 64], false);
        for tokens in [2, 3, 7, 9, 16, 17, 64, 127, 512] {
            if dtype == DType::F32 && tokens > 64 {
                continue;
            }
            for head_dim in [64, 128] {
                push("group of four after a cache", [tokens, 45, tokens + 50], [12, 3, head_dim], false);
                if tokens <= 64 {
                    push("groups of four", [tokens, 0, tokens], [8, 2, head_dim], false);
                }
            }
        }
        for heads in FABLE {
            push("fable", [19, 0, 64], heads, false);
        }
        for head_dim in [32, 64, 128] {
            push("first token", [1, 0, 37], [4, 1, head_dim], false);
            push("last position", [1, 36, 37], [4, 1, head_dim], false);
            push("chunk of a prefill", [7, 19, 37], [4, 2, head_dim], false);
            push("chunk that fills the cache", [11, 26, 37], [6, 2, head_dim], false);
            push("as many kv heads as query heads", [9, 3, 37], [3, 3, head_dim], false);
            push("one kv head for five", [13, 70, 90], [5, 1, head_dim], false);
        }
        push("position past the cache is clamped", [3, 4_000_000_000, 37], [4, 2, 64], false);
        // Values that f16 holds exactly: with others, scores of hundreds would be off by whole units on
        // matrix units.
        let fills = |q| [q, exact([2, 75, 64], |_| -2), Fill::Uniform(1.0)];
        let large = fills(exact([9, 10, 64], |_| -2));
        let large = case("scores of hundreds", [9, 30, 75], [8, 2, 64], dtype, large, false);
        cases.push(large.0.build(large.1, 1e-7, "f32 scores near 1000 are within 2^-12, and so are weights"));
        // Token 0 has both extremes.
        let power = |i| if i < 640 { i as i32 % 2 * 40 - 20 } else { i as i32 / 640 * 16 - 80 };
        let beyond = fills(exact([9, 10, 64], power));
        let beyond = case("queries of 2^-64 to 2^54", [9, 30, 75], [8, 2, 64], dtype, beyond, false);
        cases.push(beyond.0.build(beyond.1, 1e-7, "as scores of hundreds: of larger ones, the largest has all the weight"));
        let zero = case("equal scores", [9, 30, 75], [8, 2, 64], dtype, uniform(0.0), false);
        cases.push(zero.0.build(zero.1, 1e-12, "an f32 mean of at most 39 values"));
        if dtype == DType::Q8_0Rows {
            // q8_0 has no NaN.
            continue;
        }
        let fills = [Fill::Uniform(2.0), stale(), stale()];
        let stale = case("NaN past the step", [5, 16, 37], [8, 2, 64], dtype, fills, false);
        cases.push(stale.0.build(stale.1, 1e-12, "as the other cases: what is not visible is not used"));
    }
    cases
}

/// 8-bit integers times a power of two per index: exact in f16, and in q8_0 if the power is the same for all.
fn exact([heads, rows, head_dim]: [usize; 3], power: impl Fn(usize) -> i32) -> Fill {
    let whole = |i: usize| match i % 32 {
        // The largest of a block, by which q8_0 scales.
        0 => 127 - 254 * (i / 32 % 2) as i32,
        _ => (((i as u64 * 0x9e37_79b9) >> 12) % 255) as i32 - 127,
    };
    let value = |i| f64::from(whole(i)) * f64::from(power(i)).exp2();
    Fill::Values((0..heads * rows * head_dim).map(value).collect())
}
