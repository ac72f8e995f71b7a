//! `out = a + b`: the residual connection.
//!
//! Not fused: `add_rms_norm` saves the round trip of `out` to the norm that follows.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Sum of two activations.
#[derive(Clone, Debug)]
pub struct Add {
    /// First summand, `[T, D]` f32.
    pub a: TensorId,
    /// Second summand, `[T, D]` f32.
    pub b: TensorId,
    /// Sum, `[T, D]` f32.
    pub out: TensorId,
    elements: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vectors: u32,
}

const _: () = assert!(size_of::<Params>() == 4);

impl Add {
    /// Returns the sum of `a` and `b` into `out`.
    ///
    /// # Panics
    /// When shapes differ or `D` is no multiple of 4.
    pub fn new(tensors: &Tensors, a: TensorId, b: TensorId, out: TensorId) -> Self {
        let shape = &tensors[a].shape;
        assert!(shape.last().is_multiple_of(4), "add reads vectors of four: D {}", shape.last());
        tensors.expect(a, shape.clone(), DType::F32);
        tensors.expect(b, shape.clone(), DType::F32);
        tensors.expect(out, shape.clone(), DType::F32);
        Self { a, b, out, elements: shape.elements() }
    }
}

impl Kernel for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("add.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.a), Operand::read(self.b), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("{}", self.elements)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let vectors = self.elements / 4;
        Dispatch {
            overrides: vec![("WG", f64::from(wg))],
            params: bytemuck::bytes_of(&Params { vectors: dim(vectors) }).to_vec(),
            grid: [dim(vectors.div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = self.elements as u64;
        Cost { read: 8 * n, written: 4 * n, flops: n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (a, b) = (memory.read(self.a), memory.read(self.b));
            for i in 0..self.elements {
                out[i] = a[i] + b[i];
            }
        });
    }
}

/// OpenELM's widths for one token and a prefill, and sums that are hard to index or to round.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, model_dim: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, D {model_dim}")).benched(bench);
        let a = case.tensor("a", [tokens, model_dim], DType::F32, fill.clone());
        let b = case.tensor("b", [tokens, model_dim], DType::F32, fill);
        let out = case.tensor("out", [tokens, model_dim], DType::F32, Fill::Zero);
        let kernel = Add::new(&case.tensors, a, b, out);
        case.build(kernel, 1e-14, "one f32 rounding per value, at most 2^-24 of it")
    };
    let mut cases = Vec::new();
    for model_dim in [1280, 1536, 2048, 3072] {
        cases.push(case("decode", 1, model_dim, Fill::Uniform(2.0), true));
    }
    cases.push(case("prefill", 512, 1280, Fill::Uniform(2.0), true));
    cases.push(case("fable", 5, 192, Fill::Uniform(2.0), false));
    cases.push(case("no multiple of the workgroup", 3, 36, Fill::Uniform(2.0), false));
    cases.push(case("one vector", 1, 4, Fill::Uniform(2.0), false));
    cases.push(case("magnitudes 2^-20 to 2^20", 7, 132, Fill::Extreme, false));
    cases
}
