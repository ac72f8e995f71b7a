//! `out[t, f] = silu(W[f, :] . x[t, :]) * (W[F + f, :] . x[t, :])`: gate and up projections of several
//! tokens.
//!
//! Fused: the round trip of the `[T, 2F]` intermediate and a launch.

use bytemuck::{Pod, Zeroable};

use super::rows::dot;
use super::tiles::Tiles;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Gate and up projections with their product, for several tokens.
#[derive(Clone, Debug)]
pub struct MatmulSwiglu {
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Gate rows, then up rows, `[2F, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[T, F]` f32.
    pub out: TensorId,
    tiles: Tiles,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    ffn_dim: u32,
    tokens: u32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl MatmulSwiglu {
    /// Returns the gated product into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId) -> Self {
        let tiles = Tiles::new(tensors, weight, tensors[x].shape.dims()[0]);
        let Tiles { tokens, rows, cols, .. } = tiles;
        assert!(rows.is_multiple_of(2), "2F {rows}");
        tensors.expect(x, [tokens, cols], DType::F32);
        tensors.expect(out, [tokens, rows / 2], DType::F32);
        Self { x, weight, out, tiles }
    }
}

impl Kernel for MatmulSwiglu {
    fn name(&self) -> &'static str {
        "matmul_swiglu"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.tiles.source(tier, [fragment!("matmul_swiglu.wgsl"), fragment!("lib/places_gated.wgsl"), fragment!("lib/tile_plain.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out), Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        self.tiles.gated_shape()
    }

    fn tunables(&self) -> Vec<Tunable> {
        self.tiles.tunables()
    }

    fn choices(&self, tier: Tier) -> Vec<Choice> {
        self.tiles.choices(tier)
    }

    fn suited_to(&self, size: u32) -> Choice {
        self.tiles.suited_to(size)
    }

    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch {
        let Tiles { tokens, rows, cols, .. } = self.tiles;
        let params = Params { cols: dim(cols), ffn_dim: dim(rows / 2), tokens: dim(tokens) };
        Dispatch {
            overrides: self.tiles.overrides(tier, choice),
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: self.tiles.grid(tier, choice),
        }
    }

    fn rounding(&self, tier: Tier) -> f64 {
        self.tiles.gated_rounding(tier)
    }

    fn cost(&self, _position: usize) -> Cost {
        let (product, outputs) = (self.tiles.cost(), (self.tiles.tokens * self.tiles.rows / 2) as u64);
        Cost { written: 4 * outputs, flops: product.flops + 5 * outputs, ..product }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let Tiles { rows, cols, .. } = self.tiles;
            let (gates, ups) = weight.split_at(rows / 2 * cols);
            for (x, out) in x.chunks(cols).zip(out.chunks_mut(rows / 2)) {
                for ((gate, up), out) in gates.chunks(cols).zip(ups.chunks(cols)).zip(out) {
                    let (gate, up) = (dot(gate, x), dot(up, x));
                    *out = gate / (1.0 + (-gate).exp()) * up;
                }
            }
        });
    }
}

/// A real projection in every format, and every kind of ragged edge.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, [tokens, ffn_dim, cols]: [usize; 3], scale: f32| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, F {ffn_dim}, K {cols}, {format}"));
        if ffn_dim * cols > 1 << 19 {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, Fill::Uniform(scale));
        let weight = case.tensor("weight", [2 * ffn_dim, cols], format.dtype(), Fill::Uniform(0.1));
        let out = case.tensor("out", [tokens, ffn_dim], DType::F32, Fill::Zero);
        let kernel = MatmulSwiglu::new(&case.tensors, x, weight, out);
        match ffn_dim {
            1 => case.build(kernel, 1e-9, "three values: no other averages out what cancels in their sums"),
            _ => case.build(kernel, 1e-11, "f32 sums of at most 1280 products, WGSL's exp of the gate"),
        }
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        cases.push(case("270M first layer", format, [32, 768, 1280], 1.0));
        cases.push(case("tall tiles", format, [35, 4081, 32], 1.0));
        cases.push(case("two tokens", format, [2, 64, 256], 1.0));
        cases.push(case("one output", format, [3, 1, 32], 1.0));
        cases.push(case("odd, half a scale word", format, [7, 33, 96], 1.0));
        cases.push(case("a token and an output past a tile", format, [33, 17, 64], 1.0));
        cases.push(case("gates in the thousands", format, [4, 10, 256], 3e4));
    }
    cases
}
