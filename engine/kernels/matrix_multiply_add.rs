//! Multiply-adds on matrix units: measures the f16 operations per second of an adapter that has them.
//!
//! `acc = a b + acc`, `rounds` times from 0, in every workgroup. No model uses it; the instruments do.

use bytemuck::{Pod, Zeroable};

use super::{
    Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, MatrixShape, Memory,
    Operand, Tier, dim, fragment,
};
use crate::tensor::{DType, TensorId, Tensors};

/// Rows and columns of the block of sums of a workgroup; the depth of a product is half of it.
const BLOCK: usize = 32;
const DEPTH: usize = 16;

/// Multiply-adds of matrices from registers.
#[derive(Clone, Debug)]
pub struct MatrixMultiplyAdd {
    /// Left factor, `[32, 16]` f16.
    pub a: TensorId,
    /// Right factor, `[16, 32]` f16.
    pub b: TensorId,
    /// Sums of each workgroup, `[G, 32, 32]` f32.
    pub out: TensorId,
    /// Products that are summed.
    pub rounds: usize,
    groups: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rounds: u32,
}

const _: () = assert!(size_of::<Params>() == 4);

impl MatrixMultiplyAdd {
    /// Returns `rounds` products of `a` and `b`, summed into every block of `out`.
    ///
    /// # Panics
    /// When shapes do not fit.
    pub fn new(tensors: &Tensors, a: TensorId, b: TensorId, out: TensorId, rounds: usize) -> Self {
        let groups = tensors[out].shape.dims()[0];
        tensors.expect(a, [DEPTH, BLOCK], DType::F16);
        tensors.expect(b, [DEPTH, BLOCK], DType::F16);
        tensors.expect(out, [groups, BLOCK, BLOCK], DType::F32);
        Self { a, b, out, rounds, groups }
    }
}

impl Kernel for MatrixMultiplyAdd {
    fn name(&self) -> &'static str {
        "matrix_multiply_add"
    }

    fn runs_on(&self, tier: Tier) -> bool {
        tier.coop == Some(MatrixShape::Sixteen)
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("matrix_multiply_add.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.a), Operand::read(self.b), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("G {}", self.groups)
    }

    fn dispatch(&self, _tier: Tier, _choice: &Choice) -> Dispatch {
        Dispatch {
            overrides: Vec::new(),
            params: bytemuck::bytes_of(&Params { rounds: dim(self.rounds) }).to_vec(),
            grid: [dim(self.groups), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let groups = self.groups as u64;
        Cost {
            read: (2 * 2 * BLOCK * DEPTH) as u64,
            written: groups * (4 * BLOCK * BLOCK) as u64,
            flops: groups * (self.rounds * 2 * BLOCK * BLOCK * DEPTH) as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (a, b) = (memory.read(self.a), memory.read(self.b));
            for (i, out) in out.iter_mut().enumerate() {
                let (row, col) = (i / BLOCK % BLOCK, i % BLOCK);
                let product: f64 = (0..DEPTH).map(|k| a[k * BLOCK + row] * b[k * BLOCK + col]).sum();
                *out = product * self.rounds as f64;
            }
        });
    }
}

/// One workgroup and many, one product and many; the factors are not symmetric.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, groups: usize, rounds: usize, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, G {groups}, {rounds} rounds")).benched(bench);
        let a = case.tensor("a", [DEPTH, BLOCK], DType::F16, Fill::Uniform(1.0));
        let b = case.tensor("b", [DEPTH, BLOCK], DType::F16, Fill::Uniform(1.0));
        let out = case.tensor("out", [groups, BLOCK, BLOCK], DType::F32, Fill::Zero);
        let kernel = MatrixMultiplyAdd::new(&case.tensors, a, b, out, rounds);
        case.build(kernel, 1e-9, "f32 sums of at most 1024 products, in an order that the adapter chooses")
    };
    vec![case("one product", 1, 1, false), case("a full device", 512, 64, true)]
}
