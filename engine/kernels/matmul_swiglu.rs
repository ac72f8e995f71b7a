//! `out[t, f] = silu(W[f, :] . x[t, :]) * (W[F + f, :] . x[t, :])`: gate and up projections of several
//! tokens.
//!
//! Fused: the round trip of the `[T, 2F]` intermediate and a launch.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment, tile_groups, weight_fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Outputs of the tile that one workgroup computes; as in the shader.
const OUTPUTS: usize = 16;

/// Gate and up projections with their product, for several tokens.
#[derive(Clone, Debug)]
pub struct MatmulSwiglu {
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Gate rows, then up rows, `[2F, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[T, F]` f32.
    pub out: TensorId,
    format: Format,
    tokens: usize,
    ffn_dim: usize,
    cols: usize,
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
        let &[rows, cols] = tensors[weight].shape.dims() else { panic!("a weight is [2F, K]") };
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        let tokens = tensors[x].shape.dims()[0];
        assert!(cols.is_multiple_of(32) && rows.is_multiple_of(2), "K {cols}, 2F {rows}");
        tensors.expect(x, [tokens, cols], DType::F32);
        tensors.expect(out, [tokens, rows / 2], DType::F32);
        Self { x, weight, out, format, tokens, ffn_dim: rows / 2, cols }
    }
}

impl Kernel for MatmulSwiglu {
    fn name(&self) -> &'static str {
        "matmul_swiglu"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("matmul_swiglu.wgsl"), fragment!("lib/tile.wgsl"), weight_fragment(self.format)]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out), Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        format!("T {}, 2 x {} x {}, {}", self.tokens, self.ffn_dim, self.cols, self.format)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![tile_groups(self.tokens, self.ffn_dim.div_ceil(OUTPUTS))]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params { cols: dim(self.cols), ffn_dim: dim(self.ffn_dim), tokens: dim(self.tokens) };
        let row_tiles = self.ffn_dim.div_ceil(OUTPUTS);
        let groups = choice.of(&self.tunables()[0]);
        Dispatch {
            overrides: vec![("GROUPS", f64::from(groups))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(row_tiles), dim(self.tokens.div_ceil(8 * groups as usize)), 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let outputs = (self.tokens * self.ffn_dim) as u64;
        Cost {
            read: self.format.bytes(2 * self.ffn_dim, self.cols) + 4 * (self.tokens * self.cols) as u64,
            written: 4 * outputs,
            flops: outputs * (4 * self.cols as u64 + 5),
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            for (x, out) in x.chunks(self.cols).zip(out.chunks_mut(self.ffn_dim)) {
                let row = |r: usize| weight[r * self.cols..][..self.cols].iter();
                let dot = |r: usize| row(r).zip(x).map(|(w, x)| w * x).sum::<f64>();
                for (f, out) in out.iter_mut().enumerate() {
                    let (gate, up) = (dot(f), dot(self.ffn_dim + f));
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
