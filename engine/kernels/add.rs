//! `out = a + b`: the residual add after attention and FFN.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

const WG: usize = 256;

/// Sum of two tensors.
#[derive(Clone, Debug)]
pub struct Add {
    /// First summand, `[T, D]` f32.
    pub a: TensorId,
    /// Second summand, `[T, D]` f32.
    pub b: TensorId,
    /// Sum, `[T, D]` f32.
    pub out: TensorId,
    values: usize,
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
        let &[tokens, model_dim] = tensors[a].shape.dims() else { panic!("add takes [T, D]") };
        assert!(model_dim.is_multiple_of(4), "add reads vectors of four: D {model_dim}");
        for id in [a, b, out] {
            tensors.expect(id, [tokens, model_dim], DType::F32);
        }
        Self { a, b, out, values: tokens * model_dim }
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

    fn dispatch(&self, _tier: Tier) -> Dispatch {
        let params = Params { vectors: dim(self.values / 4) };
        Dispatch {
            overrides: vec![("WG", WG as f64)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim((self.values / 4).div_ceil(WG)), 1, 1],
        }
    }

    fn cost(&self) -> Cost {
        Cost { bytes: 12 * self.values as u64, flops: self.values as u64 }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (a, b) = (memory.read(self.a), memory.read(self.b));
            for i in 0..out.len() {
                out[i] = a[i] + b[i];
            }
        });
    }
}

/// A token of each width, a prefill, and sizes that leave invocations idle.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, model_dim: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, D {model_dim}"));
        if bench {
            case = case.benched();
        }
        let a = case.tensor("a", [tokens, model_dim], DType::F32, fill.clone());
        let b = case.tensor("b", [tokens, model_dim], DType::F32, fill);
        let out = case.tensor("out", [tokens, model_dim], DType::F32, Fill::Zero);
        let kernel = Add::new(&case.tensors, a, b, out);
        case.build(kernel, 1e-14, "inputs and sum rounded to f32 once each")
    };
    vec![
        case("decode", 1, 1280, Fill::Uniform(2.0), true),
        case("decode", 1, 3072, Fill::Uniform(2.0), true),
        case("prefill", 65, 2048, Fill::Uniform(2.0), true),
        case("one vector", 1, 4, Fill::Uniform(2.0), false),
        case("one vector past a workgroup", 1, 1028, Fill::Uniform(2.0), false),
        case("magnitudes 2^-20 to 2^20", 3, 192, Fill::Extreme, false),
    ]
}
