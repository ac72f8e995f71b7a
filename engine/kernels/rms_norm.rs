//! `out[r, :] = x[t, :] * weight * rsqrt(mean(x[t, :]^2) + eps)`: the norm before each projection.
//!
//! `out` may have fewer rows than `x`: then the last ones are normalised, `t = T - R + r`, so that the head
//! runs only for the rows whose logits are needed.
//!
//! Not fused: one launch and one round trip of `[T, D]` that the fused pairs save.

use bytemuck::{Pod, Zeroable};

use super::math;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Root-mean-square norm of each row.
#[derive(Clone, Debug)]
pub struct RmsNorm {
    /// Rows to normalise, `[T, D]` f32.
    pub x: TensorId,
    /// Scale of each column, `[D]` f32.
    pub weight: TensorId,
    /// Normalised rows, `[R, D]` f32 with `R <= T`.
    pub out: TensorId,
    /// Added to the mean of squares.
    pub eps: f32,
    tokens: usize,
    rows: usize,
    model_dim: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    model_dim: u32,
    first_row: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl RmsNorm {
    /// Returns the norm of the last rows of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit or `D` is no multiple of 4.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId, eps: f32) -> Self {
        let &[tokens, model_dim] = tensors[x].shape.dims() else { panic!("rms_norm takes [T, D]") };
        assert!(model_dim.is_multiple_of(4), "rms_norm reads vectors of four: D {model_dim}");
        tensors.expect(x, [tokens, model_dim], DType::F32);
        tensors.expect(weight, [model_dim], DType::F32);
        let rows = tensors[out].shape.dims()[0];
        assert!(rows <= tokens, "rms_norm normalises {rows} of {tokens} rows");
        tensors.expect(out, [rows, model_dim], DType::F32);
        Self { x, weight, out, eps, tokens, rows, model_dim }
    }
}

impl Kernel for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("rms_norm.wgsl"), tier.reduce()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::read(self.weight), Operand::write(self.out)]
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
        let params = Params {
            model_dim: dim(self.model_dim),
            first_row: dim(self.tokens - self.rows),
            eps: self.eps,
        };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.rows), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = (self.rows * self.model_dim) as u64;
        Cost { read: 4 * (n + self.model_dim as u64), written: 4 * n, flops: 4 * n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let last = &x[(self.tokens - self.rows) * self.model_dim..];
            for (x, out) in last.chunks(self.model_dim).zip(out.chunks_mut(self.model_dim)) {
                out.copy_from_slice(&math::rms_norm(x, weight, self.eps));
            }
        });
    }
}

/// OpenELM's widths for one token and a prefill, and rows that are hard to normalise.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, [tokens, rows]: [usize; 2], model_dim: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, D {model_dim}")).benched(bench);
        let x = case.tensor("x", [tokens, model_dim], DType::F32, fill);
        let weight = case.tensor("weight", [model_dim], DType::F32, Fill::Uniform(1.5));
        let out = case.tensor("out", [rows, model_dim], DType::F32, Fill::Zero);
        let kernel = RmsNorm::new(&case.tensors, x, weight, out, 1e-6);
        case.build(kernel, 1e-12, "an f32 sum of squares over at most 3072 values and one f32 rsqrt")
    };
    let mut cases = Vec::new();
    for model_dim in [1280, 1536, 2048, 3072] {
        cases.push(case("decode", [1; 2], model_dim, Fill::Uniform(2.0), true));
        cases.push(case("prefill", [33; 2], model_dim, Fill::Uniform(2.0), true));
    }
    cases.push(case("fable", [5; 2], 192, Fill::Uniform(2.0), false));
    cases.push(case("narrower than the workgroup", [3; 2], 36, Fill::Uniform(2.0), false));
    cases.push(case("last rows only", [7, 2], 192, Fill::Uniform(2.0), false));
    cases.push(case("zero row", [2; 2], 256, Fill::Zero, false));
    cases.push(case("mean far below eps", [2; 2], 256, Fill::Uniform(1e-5), false));
    cases.push(case("magnitudes 2^-20 to 2^20", [2; 2], 256, Fill::Extreme, false));
    cases
}
