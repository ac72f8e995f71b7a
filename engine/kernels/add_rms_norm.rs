//! `sum = a + b; out = sum * weight * rsqrt(mean(sum^2) + eps)`: a residual connection and the next norm.
//!
//! Fuses `add` and `rms_norm`: saves one launch and one read of `[T, D]`.

use bytemuck::{Pod, Zeroable};

use super::math;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Sum of two activations and its root-mean-square norm, row by row.
#[derive(Clone, Debug)]
pub struct AddRmsNorm {
    /// First summand, `[T, D]` f32.
    pub a: TensorId,
    /// Second summand, `[T, D]` f32.
    pub b: TensorId,
    /// Scale of each column, `[D]` f32.
    pub weight: TensorId,
    /// Sum, `[T, D]` f32.
    pub sum: TensorId,
    /// Normalised sum, `[T, D]` f32.
    pub out: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    tokens: usize,
    model_dim: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    model_dim: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 8);

impl AddRmsNorm {
    /// Returns the sum of `a` and `b` into `sum` and its norm into `out`.
    ///
    /// # Panics
    /// When shapes do not fit or `D` is no multiple of 4.
    pub fn new(
        tensors: &Tensors,
        a: TensorId,
        b: TensorId,
        weight: TensorId,
        sum: TensorId,
        out: TensorId,
        eps: f32,
    ) -> Self {
        let &[tokens, model_dim] = tensors[a].shape.dims() else { panic!("add_rms_norm takes [T, D]") };
        assert!(model_dim.is_multiple_of(4), "add_rms_norm reads vectors of four: D {model_dim}");
        for id in [a, b, sum, out] {
            tensors.expect(id, [tokens, model_dim], DType::F32);
        }
        tensors.expect(weight, [model_dim], DType::F32);
        Self { a, b, weight, sum, out, eps, tokens, model_dim }
    }
}

impl Kernel for AddRmsNorm {
    fn name(&self) -> &'static str {
        "add_rms_norm"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("add_rms_norm.wgsl"), tier.reduce()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.a),
            Operand::read(self.b),
            Operand::read(self.weight),
            Operand::write(self.sum),
            Operand::write(self.out),
        ]
    }

    fn shape(&self) -> String {
        // Without the row count: tuned values change the order of sums, and a row's bits must not depend on
        // others.
        format!("D {}", self.model_dim)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(if self.model_dim >= 1024 { 256 } else { 64 })]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params { model_dim: dim(self.model_dim), eps: self.eps };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.tokens), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = (self.tokens * self.model_dim) as u64;
        Cost { read: 8 * n + 4 * self.model_dim as u64, written: 8 * n, flops: 5 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.sum, |memory, sum| {
            let (a, b) = (memory.read(self.a), memory.read(self.b));
            for i in 0..sum.len() {
                sum[i] = a[i] + b[i];
            }
        });
        memory.update(self.out, |memory, out| {
            let (sum, weight) = (memory.read(self.sum), memory.read(self.weight));
            for (sum, out) in sum.chunks(self.model_dim).zip(out.chunks_mut(self.model_dim)) {
                out.copy_from_slice(&math::rms_norm(sum, weight, self.eps));
            }
        });
    }
}

/// OpenELM's widths for one token and a prefill, and rows that are hard to normalise.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, model_dim: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, D {model_dim}")).benched(bench);
        let rows = [tokens, model_dim];
        let a = case.tensor("a", rows, DType::F32, fill.clone());
        let b = case.tensor("b", rows, DType::F32, fill);
        let weight = case.tensor("weight", [model_dim], DType::F32, Fill::Uniform(1.5));
        let sum = case.tensor("sum", rows, DType::F32, Fill::Zero);
        let out = case.tensor("out", rows, DType::F32, Fill::Zero);
        let kernel = AddRmsNorm::new(&case.tensors, a, b, weight, sum, out, 1e-6);
        case.build(kernel, 1e-12, "an f32 sum of squares over at most 3072 values and one f32 rsqrt")
    };
    let mut cases = Vec::new();
    for model_dim in [1280, 1536, 2048, 3072] {
        cases.push(case("decode", 1, model_dim, Fill::Uniform(2.0), true));
        cases.push(case("prefill", 33, model_dim, Fill::Uniform(2.0), true));
    }
    cases.push(case("fable", 5, 192, Fill::Uniform(2.0), false));
    cases.push(case("narrower than the workgroup", 3, 36, Fill::Uniform(2.0), false));
    cases.push(case("zero row", 2, 256, Fill::Zero, false));
    cases.push(case("mean far below eps", 2, 256, Fill::Uniform(1e-5), false));
    cases.push(case("magnitudes 2^-20 to 2^20", 2, 256, Fill::Extreme, false));
    cases
}
