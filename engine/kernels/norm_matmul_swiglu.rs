//! `out[t, f] = silu(W[f, :] . n[t, :]) * (W[F + f, :] . n[t, :])`, `n = rms_norm(x)`: gate and up projections
//! of several normed tokens.
//!
//! Fuses `rms_norm` and `matmul_swiglu`: one launch and one round trip of `[T, K]` less.

use bytemuck::{Pod, Zeroable};

use super::rows::{dot, normed};
use super::tiles::Tiles;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Gate and up projections of the root-mean-square norm of several tokens, with their product.
#[derive(Clone, Debug)]
pub struct NormMatmulSwiglu {
    /// Rows to normalise, `[T, K]` f32.
    pub x: TensorId,
    /// Scale of each column, `[K]` f32.
    pub norm: TensorId,
    /// Gate rows, then up rows, `[2F, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[T, F]` f32.
    pub out: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    tiles: Tiles,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    ffn_dim: u32,
    tokens: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 16);

impl NormMatmulSwiglu {
    /// Returns the gated product of the normed rows of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(
        tensors: &Tensors,
        x: TensorId,
        norm: TensorId,
        weight: TensorId,
        out: TensorId,
        eps: f32,
    ) -> Self {
        let tokens = tensors[out].shape.dims()[0];
        let tiles = Tiles::new(tensors, weight, tokens);
        assert!(tiles.rows.is_multiple_of(2), "2F {}", tiles.rows);
        tensors.expect(x, [tokens, tiles.cols], DType::F32);
        tensors.expect(norm, [tiles.cols], DType::F32);
        tensors.expect(out, [tokens, tiles.rows / 2], DType::F32);
        Self { x, norm, weight, out, eps, tiles }
    }
}

impl Kernel for NormMatmulSwiglu {
    fn name(&self) -> &'static str {
        "norm_matmul_swiglu"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.tiles.source(tier, [fragment!("norm_matmul_swiglu.wgsl"), fragment!("lib/places_gated.wgsl"), fragment!("lib/tile_normed.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.x),
            Operand::read(self.norm),
            Operand::write(self.out),
            Operand::weight(self.weight),
        ]
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
        let params =
            Params { cols: dim(cols), ffn_dim: dim(rows / 2), tokens: dim(tokens), eps: self.eps };
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
        let Tiles { tokens, rows, cols, .. } = self.tiles;
        let (product, outputs) = (self.tiles.cost(), (tokens * rows / 2) as u64);
        Cost {
            read: product.read + 4 * cols as u64,
            written: 4 * outputs,
            flops: product.flops + 5 * outputs + 4 * (tokens * cols) as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let Tiles { rows, cols, .. } = self.tiles;
            let (gates, ups) = weight.split_at(rows / 2 * cols);
            for (x, out) in x.chunks(cols).zip(out.chunks_mut(rows / 2)) {
                let x = normed(x, memory.read(self.norm), self.eps);
                for ((gate, up), out) in gates.chunks(cols).zip(ups.chunks(cols)).zip(out) {
                    let (gate, up) = (dot(gate, &x), dot(up, &x));
                    *out = gate / (1.0 + (-gate).exp()) * up;
                }
            }
        });
    }
}

/// A real projection in every format, every kind of ragged edge, and rows that are hard to normalise.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, [tokens, ffn_dim, cols]: [usize; 3], fill: Fill, gain: f32| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, F {ffn_dim}, K {cols}, {format}"));
        if ffn_dim * cols > 1 << 19 {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, fill);
        let norm = case.tensor("norm", [cols], DType::F32, Fill::Uniform(gain));
        let weight = case.tensor("weight", [2 * ffn_dim, cols], format.dtype(), Fill::Uniform(0.1));
        let out = case.tensor("out", [tokens, ffn_dim], DType::F32, Fill::Zero);
        let kernel = NormMatmulSwiglu::new(&case.tensors, x, norm, weight, out, 1e-6);
        match ffn_dim {
            1 => case.build(kernel, 1e-9, "three values: no other averages out what cancels in their sums"),
            _ => case.build(kernel, 1e-11, "f32 sums of at most 1280 products, WGSL's exp of the gate"),
        }
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = || Fill::Uniform(2.0);
        cases.push(case("270M first layer", format, [32, 768, 1280], random(), 1.5));
        cases.push(case("two tokens", format, [2, 64, 256], random(), 1.5));
        cases.push(case("one output", format, [3, 1, 32], random(), 1.5));
        cases.push(case("odd, half a scale word", format, [7, 33, 96], random(), 1.5));
        cases.push(case("a token and an output past a tile", format, [33, 17, 64], random(), 1.5));
        cases.push(case("gates in the thousands", format, [4, 10, 256], random(), 3e4));
        cases.push(case("zero rows", format, [9, 10, 256], Fill::Zero, 1.5));
        cases.push(case("mean far below eps", format, [9, 10, 256], Fill::Uniform(1e-5), 1.5));
    }
    cases
}
