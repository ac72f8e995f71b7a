//! `out[t, f] = silu(x[t, f]) * x[t, F + f]`: gate and up halves of the first FFN projection.
//!
//! Not fused: a round trip of `[T, 2F]` that the fused projections save.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 256;

/// Gated linear unit with SiLU.
#[derive(Clone, Debug)]
pub struct Swiglu {
    /// Gate, then up values of each row, `[T, 2F]` f32.
    pub x: TensorId,
    /// Product, `[T, F]` f32.
    pub out: TensorId,
    tokens: usize,
    ffn_dim: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vectors: u32,
    row: u32,
}

const _: () = assert!(size_of::<Params>() == 8);

impl Swiglu {
    /// Returns the product of the halves of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit or `F` is no multiple of 4.
    pub fn new(tensors: &Tensors, x: TensorId, out: TensorId) -> Self {
        let &[tokens, ffn_dim] = tensors[out].shape.dims() else { panic!("swiglu writes [T, F]") };
        assert!(ffn_dim.is_multiple_of(4), "swiglu reads vectors of four: F {ffn_dim}");
        tensors.expect(x, [tokens, 2 * ffn_dim], DType::F32);
        tensors.expect(out, [tokens, ffn_dim], DType::F32);
        Self { x, out, tokens, ffn_dim }
    }
}

impl Kernel for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("swiglu.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out)]
    }

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let vectors = self.tokens * self.ffn_dim / 4;
        let params = Params { vectors: dim(vectors), row: dim(self.ffn_dim / 4) };
        Dispatch {
            overrides: vec![("WG", WG as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(vectors.div_ceil(WG)), 1, 1],
        }
    }

    fn cost(&self) -> Cost {
        let n = (self.tokens * self.ffn_dim) as u64;
        Cost { bytes: 12 * n, flops: 5 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let x = memory.read(self.x);
            for t in 0..self.tokens {
                for f in 0..self.ffn_dim {
                    let gate = x[t * 2 * self.ffn_dim + f];
                    let up = x[t * 2 * self.ffn_dim + self.ffn_dim + f];
                    out[t * self.ffn_dim + f] = gate / (1.0 + (-gate).exp()) * up;
                }
            }
        });
    }
}

/// Narrow and wide layers, a prefill, and gates where the exponential over- or underflows.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, ffn_dim: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, F {ffn_dim}"));
        if bench {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, 2 * ffn_dim], DType::F32, fill);
        let out = case.tensor("out", [tokens, ffn_dim], DType::F32, Fill::Zero);
        let kernel = Swiglu::new(&case.tensors, x, out);
        case.build(kernel, 1e-11, "WGSL allows exp an error of 3 + 2|x| units in the last place")
    };
    vec![
        case("decode", 1, 768, Fill::Uniform(4.0), true),
        case("decode", 1, 12288, Fill::Uniform(4.0), true),
        case("prefill", 33, 5120, Fill::Uniform(4.0), true),
        case("one vector", 1, 4, Fill::Uniform(4.0), false),
        case("rows past a workgroup", 3, 1028, Fill::Uniform(4.0), false),
        case("gates to 1e4", 2, 192, Fill::Uniform(1e4), false),
    ]
}
