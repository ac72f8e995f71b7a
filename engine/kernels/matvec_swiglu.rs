//! `out[t, f] = silu(W[f, :] . x[t, :]) * (W[F + f, :] . x[t, :])`: gate and up projections of a few tokens.
//!
//! Fused: the `[T, 2F]` intermediate and the launch that would read it.

use bytemuck::{Pod, Zeroable};

use super::rows::{Product, dot};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Gate and up projections with their product, for a few tokens.
#[derive(Clone, Debug)]
pub struct MatvecSwiglu {
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Gate rows, then up rows, `[2F, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[T, F]` f32.
    pub out: TensorId,
    product: Product,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    ffn_dim: u32,
    tokens: u32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl MatvecSwiglu {
    /// Returns the gated product into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` is past 64, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId) -> Self {
        let tokens = tensors[out].shape.dims()[0];
        let product = Product::new(tensors, weight, tokens);
        assert!(product.rows.is_multiple_of(2), "2F {}", product.rows);
        tensors.expect(x, [tokens, product.cols], DType::F32);
        tensors.expect(out, [tokens, product.rows / 2], DType::F32);
        Self { x, weight, out, product }
    }
}

impl Kernel for MatvecSwiglu {
    fn name(&self) -> &'static str {
        "matvec_swiglu"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.product.source(tier, [fragment!("matvec_swiglu.wgsl"), fragment!("lib/activation_plain.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out), Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        self.product.gated_shape()
    }

    fn tunables(&self) -> Vec<Tunable> {
        self.product.tunables()
    }

    fn suited_to(&self, size: u32) -> Choice {
        self.product.suited_to(size)
    }

    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch {
        let Product { tokens, rows, cols, .. } = self.product;
        let params = Params { cols: dim(cols), ffn_dim: dim(rows / 2), tokens: dim(tokens) };
        Dispatch {
            overrides: self.product.overrides(tier, choice),
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: self.product.gated_grid(tier, choice),
        }
    }

    fn rounding(&self, tier: Tier) -> f64 {
        self.product.gated_rounding(tier)
    }

    fn cost(&self, _position: usize) -> Cost {
        let (product, outputs) = (self.product.cost(), (self.product.tokens * self.product.rows / 2) as u64);
        Cost { written: 4 * outputs, flops: product.flops + 5 * outputs, ..product }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let Product { rows, cols, .. } = self.product;
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

/// Real projections of the 270M and the 3B in every format, a few tokens, and ragged ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, [tokens, ffn_dim, cols]: [usize; 3], scale: f32| {
        let few = if tokens == 1 { String::new() } else { format!("T {tokens}, ") };
        let mut case = CaseBuilder::new(format!("{label}, {few}F {ffn_dim}, K {cols}, {format}"));
        if label.starts_with("270M") || label.starts_with("3B") {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, Fill::Uniform(scale));
        let weight = case.tensor("weight", [2 * ffn_dim, cols], format.dtype(), Fill::Uniform(0.1));
        let out = case.tensor("out", [tokens, ffn_dim], DType::F32, Fill::Zero);
        let kernel = MatvecSwiglu::new(&case.tensors, x, weight, out);
        match ffn_dim {
            1 => case.build(kernel, 1e-9, "one output: no other averages out what cancels in its sums"),
            _ => case.build(kernel, 1e-11, "f32 sums of at most 3072 products, WGSL's exp of the gate"),
        }
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        cases.push(case("270M first layer", format, [1, 768, 1280], 1.0));
        cases.push(case("3B first layer", format, [1, 1536, 3072], 1.0));
        cases.push(case("one output", format, [1, 1, 32], 1.0));
        cases.push(case("odd, half a scale word", format, [1, 33, 96], 1.0));
        cases.push(case("gates in the thousands", format, [1, 10, 256], 3e4));
        cases.push(case("a full tile", format, [8, 3, 1056], 1.0));
        cases.push(case("a token past a tile", format, [9, 33, 96], 1.0));
        cases.push(case("as many as can be", format, [64, 5, 160], 1.0));
    }
    cases
}
