//! `out[f] = silu(W[f, :] . x) * (W[F + f, :] . x)`: gate and up projections of one token.
//!
//! Fused: the `[2F]` intermediate and the launch that would read it.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment, grid, weight_fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Outputs that one workgroup computes.
const OUTPUTS: usize = 2;

/// Gate and up projections with their product, for one token.
#[derive(Clone, Debug)]
pub struct MatvecSwiglu {
    /// Activation, `[1, K]` f32.
    pub x: TensorId,
    /// Gate rows, then up rows, `[2F, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[1, F]` f32.
    pub out: TensorId,
    format: Format,
    ffn_dim: usize,
    cols: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    ffn_dim: u32,
}

const _: () = assert!(size_of::<Params>() == 8);

impl MatvecSwiglu {
    /// Returns the gated product into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId) -> Self {
        let &[rows, cols] = tensors[weight].shape.dims() else { panic!("a weight is [2F, K]") };
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        assert!(cols.is_multiple_of(32) && rows.is_multiple_of(2), "K {cols}, 2F {rows}");
        tensors.expect(x, [1, cols], DType::F32);
        tensors.expect(out, [1, rows / 2], DType::F32);
        Self { x, weight, out, format, ffn_dim: rows / 2, cols }
    }
}

impl Kernel for MatvecSwiglu {
    fn name(&self) -> &'static str {
        "matvec_swiglu"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("matvec_swiglu.wgsl"), fragment!("lib/rows.wgsl"), tier.reduce4(), weight_fragment(self.format)]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out), Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        format!("2 x {} x {}, {}", self.ffn_dim, self.cols, self.format)
    }

    fn tunables(&self) -> Vec<Tunable> {
        // Below 256 chunks of 16 columns, more invocations would have one or none.
        vec![Tunable::workgroup(if self.cols >= 4096 { 64 } else { 32 })]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params { cols: dim(self.cols), ffn_dim: dim(self.ffn_dim) };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: grid(self.ffn_dim.div_ceil(OUTPUTS)),
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let products = (2 * self.ffn_dim * self.cols) as u64;
        Cost {
            read: self.format.bytes(2 * self.ffn_dim, self.cols) + 4 * self.cols as u64,
            written: 4 * self.ffn_dim as u64,
            flops: 2 * products + 5 * self.ffn_dim as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let dot = |r: usize| weight[r * self.cols..][..self.cols].iter().zip(x).map(|(w, x)| w * x).sum::<f64>();
            for (f, out) in out.iter_mut().enumerate() {
                let (gate, up) = (dot(f), dot(self.ffn_dim + f));
                *out = gate / (1.0 + (-gate).exp()) * up;
            }
        });
    }
}

/// Real projections of the 270M and the 3B in every format, and ragged ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, [ffn_dim, cols]: [usize; 2], scale: f32| {
        let mut case = CaseBuilder::new(format!("{label}, F {ffn_dim}, K {cols}, {format}"));
        if label.starts_with("270M") || label.starts_with("3B") {
            case = case.benched();
        }
        let x = case.tensor("x", [1, cols], DType::F32, Fill::Uniform(scale));
        let weight = case.tensor("weight", [2 * ffn_dim, cols], format.dtype(), Fill::Uniform(0.1));
        let out = case.tensor("out", [1, ffn_dim], DType::F32, Fill::Zero);
        let kernel = MatvecSwiglu::new(&case.tensors, x, weight, out);
        match ffn_dim {
            1 => case.build(kernel, 1e-9, "one output: no other averages out what cancels in its sums"),
            _ => case.build(kernel, 1e-11, "f32 sums of at most 3072 products, WGSL's exp of the gate"),
        }
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        cases.push(case("270M first layer", format, [768, 1280], 1.0));
        cases.push(case("3B first layer", format, [1536, 3072], 1.0));
        cases.push(case("one output", format, [1, 32], 1.0));
        cases.push(case("odd, half a scale word", format, [33, 96], 1.0));
        cases.push(case("gates in the thousands", format, [10, 256], 3e4));
    }
    cases
}
