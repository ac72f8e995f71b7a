//! Chains of multiply-adds in registers: measures the f32 operations per second of an adapter, the ceiling of
//! every compute-bound kernel.
//!
//! `acc[i, j] = acc[i, j] * b[j] + a[i]`, `rounds` times from 0; `out = sum over i, j of acc[i, j]`. No model
//! uses it; the instruments do.

use bytemuck::{Pod, Zeroable};

use super::{
    Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim,
    fragment,
};
use crate::tensor::{DType, TensorId, Tensors};

/// Multiply-adds of one invocation in a round: 4 x 4 vectors of 4.
const CHAINS: usize = 64;

/// Multiply-adds from registers.
#[derive(Clone, Debug)]
pub struct MultiplyAdd {
    /// `a` of each invocation, `[N, 16]` f32: four vectors.
    pub x: TensorId,
    /// `b` of all, `[4]` f32, below 1 in magnitude.
    pub y: TensorId,
    /// Sums, `[N, 4]` f32.
    pub out: TensorId,
    /// Length of the chains, a multiple of 4.
    pub rounds: usize,
    invocations: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rounds: u32,
    invocations: u32,
}

const _: () = assert!(size_of::<Params>() == 8);

impl MultiplyAdd {
    /// Returns `rounds` rounds of multiply-adds into `out`.
    ///
    /// # Panics
    /// When shapes do not fit, or `rounds` is no multiple of 4.
    pub fn new(tensors: &Tensors, x: TensorId, y: TensorId, out: TensorId, rounds: usize) -> Self {
        let invocations = tensors[x].shape.dims()[0];
        assert!(rounds.is_multiple_of(4), "multiply_add takes four rounds at a time: {rounds}");
        tensors.expect(x, [invocations, 16], DType::F32);
        tensors.expect(y, [4], DType::F32);
        tensors.expect(out, [invocations, 4], DType::F32);
        Self { x, y, out, rounds, invocations }
    }
}

impl Kernel for MultiplyAdd {
    fn name(&self) -> &'static str {
        "multiply_add"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("multiply_add.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::read(self.y), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("N {}", self.invocations)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params { rounds: dim(self.rounds), invocations: dim(self.invocations) };
        Dispatch {
            overrides: vec![("WG", f64::from(wg))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: [dim(self.invocations.div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = self.invocations as u64;
        Cost { read: 64 * n + 16, written: 16 * n, flops: n * (self.rounds * 2 * CHAINS) as u64 }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, y) = (memory.read(self.x), memory.read(self.y));
            for (a, out) in x.chunks(16).zip(out.chunks_mut(4)) {
                for (lane, out) in out.iter_mut().enumerate() {
                    let chain = |a: f64, b: f64| (0..self.rounds).fold(0.0, |acc, _| acc * b + a);
                    let own = a.iter().skip(lane).step_by(4);
                    *out = own.map(|&a| y.iter().map(|&b| chain(a, b)).sum::<f64>()).sum();
                }
            }
        });
    }
}

/// Chains from none to long, and invocations that do not fill a workgroup.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, invocations: usize, rounds: usize, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, N {invocations}, {rounds} rounds")).benched(bench);
        let x = case.tensor("x", [invocations, 16], DType::F32, Fill::Uniform(1.0));
        let y = case.tensor("y", [4], DType::F32, Fill::Values(vec![0.5, -0.75, 0.25, 0.875]));
        let out = case.tensor("out", [invocations, 4], DType::F32, Fill::Zero);
        let kernel = MultiplyAdd::new(&case.tensors, x, y, out, rounds);
        case.build(kernel, 1e-12, "each chain forgets its rounding errors as fast as its beginning")
    };
    vec![
        case("a full device", 4096, 64, true),
        case("long chains", 33, 1024, false),
        case("one invocation", 1, 4, false),
        case("no round", 5, 0, false),
    ]
}
