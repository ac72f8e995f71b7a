//! `(x[j], x[j + Dh/2])` rotated by the angle `position_of(t) * theta^(-2j / Dh)`: rotary embedding of
//! queries and keys in the rotate-half (NeoX) layout.
//!
//! Not fused: `qk_norm_rope` saves the round trips from the norm and to the cache.

use bytemuck::{Pod, Zeroable};

use super::math::rotate;
use super::heads_case::{PAST, RAGGED, Rows, one};
use super::position::Positions;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Rotary position embedding of each head.
#[derive(Clone, Debug)]
pub struct Rope {
    /// Heads to rotate, `[T, heads * Dh]` f32.
    pub x: TensorId,
    /// Cosines, then sines of every position, `[S, Dh]` f32: see [`table`].
    pub table: TensorId,
    /// Tokens cached before this step, `[1]` u32, or (position, slot) of each row of a batch, `[T, 2]` u32;
    /// clamped to the table.
    pub position: TensorId,
    /// Rotated heads, `[T, heads * Dh]` f32.
    pub out: TensorId,
    heads: usize,
    head_dim: usize,
    positions: Positions,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    tokens: u32,
    heads: u32,
    capacity: u32,
    slots: u32,
}

const _: () = assert!(size_of::<Params>() == 16);

/// Returns the table `[S, Dh]`: row `s` holds the cosines, then the sines of `s * theta^(-2j / Dh)` for
/// `j < Dh / 2`, computed in f64.
pub fn table(capacity: usize, head_dim: usize, theta: f64) -> Vec<f64> {
    let half = head_dim / 2;
    let angle = |s: usize, j: usize| s as f64 * theta.powf(-2.0 * j as f64 / head_dim as f64);
    (0..capacity)
        .flat_map(|s| {
            let cosines = (0..half).map(move |j| angle(s, j).cos());
            cosines.chain((0..half).map(move |j| angle(s, j).sin()))
        })
        .collect()
}

impl Rope {
    /// Returns the rotation of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` exceeds `S`, or `Dh` is no multiple of 8.
    pub fn new(tensors: &Tensors, x: TensorId, table: TensorId, position: TensorId, out: TensorId) -> Self {
        let &[tokens, columns] = tensors[x].shape.dims() else { panic!("rope takes [T, columns]") };
        let &[capacity, head_dim] = tensors[table].shape.dims() else { panic!("rope's table is [S, Dh]") };
        assert!(head_dim.is_multiple_of(8), "rope rotates vectors of four: Dh {head_dim}");
        let heads = columns / head_dim;
        tensors.expect(x, [tokens, heads * head_dim], DType::F32);
        tensors.expect(table, [capacity, head_dim], DType::F32);
        tensors.expect(out, [tokens, heads * head_dim], DType::F32);
        let positions = Positions::new(tensors, position, tokens, capacity);
        Self { x, table, position, out, heads, head_dim, positions }
    }
}

impl Kernel for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("rope.wgsl"), self.positions.fragment()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.x),
            Operand::read(self.table),
            Operand::read(self.position),
            Operand::write(self.out),
        ]
    }

    fn shape(&self) -> String {
        format!("T {}, heads {}, Dh {}", self.positions.tokens, self.heads, self.head_dim)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let Positions { tokens, capacity, .. } = self.positions;
        let params = Params { tokens: dim(tokens), heads: dim(self.heads), capacity: dim(capacity), slots: 1 };
        let lanes = self.head_dim / 8;
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("LANES", lanes as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((tokens * self.heads * lanes).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let table = (self.positions.tokens * self.head_dim) as u64;
        let n = self.heads as u64 * table;
        Cost { read: 4 * (n + table) + self.positions.bytes(), written: 4 * n, flops: 3 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, table, position) =
                (memory.read(self.x), memory.read(self.table), memory.read(self.position));
            for (row, (x, out)) in x.chunks(self.head_dim).zip(out.chunks_mut(self.head_dim)).enumerate() {
                let angle = self.positions.of(position, row / self.heads);
                out.copy_from_slice(&rotate(x, &table[angle * self.head_dim..][..self.head_dim]));
            }
        });
    }
}

/// OpenELM's heads for one token and a prefill, and positions at either end of the table.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, (rows, s): (Rows, usize), [heads, dh]: [usize; 2], fill, bench| {
        let tokens = rows.tokens();
        let mut case = CaseBuilder::new(format!("{label}, {rows}, heads {heads}, Dh {dh}")).benched(bench);
        let x = case.tensor("x", [tokens, heads * dh], DType::F32, fill);
        let table = case.tensor("table", [s, dh], DType::F32, Fill::Values(table(s, dh, 10000.0)));
        let position = rows.position(&mut case);
        let out = case.tensor("out", [tokens, heads * dh], DType::F32, Fill::Zero);
        let kernel = Rope::new(&case.tensors, x, table, position, out);
        case.build(kernel, 1e-13, "two products and a sum in f32, each within 2^-24")
    };
    let uniform = || Fill::Uniform(2.0);
    let mut cases = Vec::new();
    for heads in [[15, 64], [20, 64], [25, 64], [15, 128], [30, 128]] {
        cases.push(case("decode", (one(511), 2048), heads, uniform(), true));
        cases.push(case("prefill", (Rows::Sequence(33, 0), 2048), heads, uniform(), true));
    }
    for heads in [[3, 32], [6, 32], [9, 32]] {
        cases.push(case("fable", (Rows::Sequence(5, 0), 256), heads, uniform(), false));
    }
    cases.push(case("first position", (one(0), 37), [3, 64], uniform(), false));
    cases.push(case("last position", (one(36), 37), [3, 64], uniform(), false));
    cases.push(case("chunk of a prefill", (Rows::Sequence(7, 19), 37), [3, 64], uniform(), false));
    cases.push(case("position past the table is clamped", (Rows::Sequence(3, 4_000_000_000), 37), [3, 64], uniform(), false));
    cases.push(case("ragged", (RAGGED, 300), [3, 64], uniform(), false));
    cases.push(case("past the table is clamped", (PAST, 37), [3, 64], uniform(), false));
    cases.push(case("magnitudes 2^-20 to 2^20", (Rows::Sequence(3, 5), 37), [3, 64], Fill::Extreme, false));
    cases
}
