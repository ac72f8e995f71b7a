//! `out = silu(x[:, :F]) * x[:, F:]` with `silu(g) = g / (1 + exp(-g))`: the gate of the FFN.
//!
//! Gate and up come from one packed projection, so activation and product are one dispatch.

use bytemuck::{Pod, Zeroable};

use super::math;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Gated SiLU of a packed projection.
#[derive(Clone, Debug)]
pub struct Swiglu {
    /// Gate and up projections side by side, `[T, 2 F]` f32.
    pub x: TensorId,
    /// Activation, `[T, F]` f32.
    pub out: TensorId,
    tokens: usize,
    width: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vectors: u32,
}

const _: () = assert!(size_of::<Params>() == 4);

impl Swiglu {
    /// Returns the gated activation of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit or `F` is no multiple of 4.
    pub fn new(tensors: &Tensors, x: TensorId, out: TensorId) -> Self {
        let &[tokens, width] = tensors[out].shape.dims() else { panic!("swiglu gives [T, F]") };
        assert!(width.is_multiple_of(4), "swiglu reads vectors of four: F {width}");
        tensors.expect(x, [tokens, 2 * width], DType::F32);
        tensors.expect(out, [tokens, width], DType::F32);
        Self { x, out, tokens, width }
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

    fn shape(&self) -> String {
        format!("T {}, F {}", self.tokens, self.width)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let vectors = self.width / 4;
        Dispatch {
            overrides: vec![("WG", f64::from(wg))],
            params: bytemuck::bytes_of(&Params { vectors: dim(vectors) }).to_vec(),
            grid: [dim(vectors.div_ceil(wg as usize)), dim(self.tokens), 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = (self.tokens * self.width) as u64;
        Cost { read: 8 * n, written: 4 * n, flops: 4 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let x = memory.read(self.x);
            for t in 0..self.tokens {
                for f in 0..self.width {
                    let gate = x[t * 2 * self.width + f];
                    let up = x[t * 2 * self.width + self.width + f];
                    out[t * self.width + f] = math::swiglu(gate, up);
                }
            }
        });
    }
}

/// OpenELM's FFN widths for one token and a prefill, and gates that overflow an exponential.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, width: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, F {width}")).benched(bench);
        let x = case.tensor("x", [tokens, 2 * width], DType::F32, fill);
        let out = case.tensor("out", [tokens, width], DType::F32, Fill::Zero);
        let kernel = Swiglu::new(&case.tensors, x, out);
        case.build(kernel, 1e-12, "f32 exp, within 3 + 2 |g| ULP as WGSL demands, then a division")
    };
    let mut cases = Vec::new();
    for width in [768, 5120, 12288] {
        cases.push(case("decode", 1, width, Fill::Uniform(4.0), true));
    }
    cases.push(case("prefill", 64, 5120, Fill::Uniform(4.0), true));
    cases.push(case("longest prefill", 512, 12288, Fill::Uniform(4.0), false));
    cases.push(case("fable", 5, 512, Fill::Uniform(4.0), false));
    cases.push(case("no multiple of the workgroup", 3, 36, Fill::Uniform(4.0), false));
    cases.push(case("gates up to 1e4", 3, 256, Fill::Uniform(1e4), false));
    let edges = [-1e4, -100.0, -89.0, -88.0, -87.0, -20.0, -0.0, 0.0, 20.0, 88.0, 89.0, 1e4];
    let values = edges.iter().copied().chain([1.0; 12]).collect();
    cases.push(case("gates around the overflow", 1, 12, Fill::Values(values), false));
    cases.push(case("magnitudes 2^-20 to 2^20", 2, 256, Fill::Extreme, false));
    cases
}
