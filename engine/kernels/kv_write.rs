//! `k_cache[:, place(t), :] = k[t]; v_cache[:, place(t), :] = v[t]`: a step's keys and values
//! join the cache of their layer.
//!
//! Not fused: `qk_norm_rope` writes the cache where keys are made.

use bytemuck::{Pod, Zeroable};

use super::cache::Cache;
use super::place::{PAST, RAGGED, Rows};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Append of keys and values to the KV cache.
#[derive(Clone, Debug)]
pub struct KvWrite {
    /// Queries and keys, ready for attention, `[T, (H + Hkv) * Dh]` f32.
    pub qk: TensorId,
    /// Packed projection, of which the values are taken, `[T, (H + 2 Hkv) * Dh]` f32.
    pub qkv: TensorId,
    /// Tokens cached before this step, `[1]` u32, or (position, slot) of each row of a batch, `[T, 2]` u32;
    /// clamped to the cache.
    pub position: TensorId,
    /// Keys, `[Hkv, S, Dh]`, of a batch `[slots, Hkv, S, Dh]`, f16, f32 or rows of q8_0.
    pub k_cache: TensorId,
    /// Values, like the keys.
    pub v_cache: TensorId,
    /// Query heads `H`.
    pub query_heads: usize,
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
}

const _: () = assert!(size_of::<Params>() == 20);

impl KvWrite {
    /// Returns the append of the keys of `qk` and the values of `qkv` at `position`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, or `Dh` is no multiple of 8.
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
        let cache = Cache::new(tensors, [k_cache, v_cache], position, tokens);
        tensors.expect(qk, [tokens, (query_heads + cache.kv_heads) * cache.head_dim], DType::F32);
        tensors.expect(qkv, [tokens, (query_heads + 2 * cache.kv_heads) * cache.head_dim], DType::F32);
        Self { qk, qkv, position, k_cache, v_cache, query_heads, cache }
    }

    /// Copies each head's rows from `x`, with `heads` heads a token of which `head` is the first copied.
    fn copy(&self, memory: &Memory, x: TensorId, [heads, head]: [usize; 2], out: &mut [f64]) {
        let head_dim = self.cache.head_dim;
        self.cache.append(out, memory.read(self.position), |[t, h]| {
            memory.read(x)[(t * heads + head + h) * head_dim..][..head_dim].to_vec()
        });
    }
}

impl Kernel for KvWrite {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("kv_write.wgsl"), self.cache.fragment(tier), self.cache.places.fragment()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.qk),
            Operand::read(self.qkv),
            Operand::read(self.position),
            Operand::read_write(self.k_cache),
            Operand::read_write(self.v_cache),
        ]
    }

    fn shape(&self) -> String {
        format!("T {}, {}", self.cache.places.tokens, self.cache)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params {
            tokens: dim(self.cache.places.tokens),
            query_heads: dim(self.query_heads),
            kv_heads: dim(self.cache.kv_heads),
            slots: dim(self.cache.slots),
            capacity: dim(self.cache.capacity),
        };
        let cols = self.cache.head_dim / 4;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("COLS", cols as f64), self.cache.stride()],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((self.cache.places.tokens * self.cache.kv_heads * cols).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = (self.cache.places.tokens * self.cache.kv_heads * self.cache.head_dim) as u64;
        Cost { read: 8 * n + self.cache.places.bytes(), written: 2 * self.cache.bytes(self.cache.places.tokens), flops: 0 }
    }

    fn reference(&self, memory: &mut Memory) {
        let heads = self.query_heads + self.cache.kv_heads;
        memory.update(self.k_cache, |m, out| self.copy(m, self.qk, [heads, self.query_heads], out));
        memory.update(self.v_cache, |m, out| {
            self.copy(m, self.qkv, [heads + self.cache.kv_heads, heads], out);
        });
    }
}

/// OpenELM's heads for one token and a prefill, in either cache, and the ends of the cache.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s): (Rows, usize), heads: [usize; 3], dtype, fill: Fill, bench| {
        let ([h, hkv, dh], tokens) = (heads, rows.tokens());
        let label = format!("{label}, {rows} of {s}, H {h}, Hkv {hkv}, Dh {dh}, {dtype}");
        let mut case = CaseBuilder::new(label).benched(bench);
        let qk = case.tensor("qk", [tokens, (h + hkv) * dh], DType::F32, fill.clone());
        let qkv = case.tensor("qkv", [tokens, (h + 2 * hkv) * dh], DType::F32, fill);
        let position = rows.position(&mut case);
        let k_cache = case.tensor("k_cache", rows.cache([hkv, s, dh]), dtype, Fill::Uniform(1.0));
        let v_cache = case.tensor("v_cache", rows.cache([hkv, s, dh]), dtype, Fill::Uniform(1.0));
        let kernel = KvWrite::new(&case.tensors, qk, qkv, position, k_cache, v_cache, h);
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
            _ => case.build(kernel, 0.0, "a copy"),
        }
    };
    let mut cases = Vec::new();
    for dtype in [DType::F16, DType::F32, DType::Q8_0Rows] {
        let mut push = |label: &str, place: (Rows, usize), heads: [usize; 3], bench: bool| {
            cases.push(case(label, place, heads, dtype, Fill::Uniform(2.0), bench));
        };
        for heads in [[12, 3, 64], [20, 5, 64], [24, 6, 128]] {
            push("decode", (Rows::Sequence(1, 511), 2048), heads, true);
            push("prefill", (Rows::Sequence(33, 0), 64), heads, true);
        }
        push("fable", (Rows::Sequence(5, 3), 37), [6, 3, 32], false);
        push("first slot", (Rows::Sequence(1, 0), 37), [2, 1, 32], false);
        push("last slot", (Rows::Sequence(1, 36), 37), [4, 2, 32], false);
        push("chunk of a prefill", (Rows::Sequence(7, 19), 37), [4, 1, 64], false);
        push("the whole cache", (Rows::Sequence(37, 0), 37), [4, 1, 64], false);
        push("position past the cache is clamped", (Rows::Sequence(3, 4_000_000_000), 37), [4, 2, 64], false);
        push("ragged", (RAGGED, 300), [4, 2, 64], false);
        push("past the cache is clamped", (PAST, 37), [4, 2, 64], false);
    }
    let extreme = (Rows::Sequence(3, 5), 37);
    cases.push(case("magnitudes 2^-20 to 2^20", extreme, [4, 2, 64], DType::F32, Fill::Extreme, false));
    cases
}
