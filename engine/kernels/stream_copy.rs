//! `out = x`: measures the memory bandwidth of an adapter, the ceiling of every memory-bound kernel.
//!
//! No model uses it; the instruments do.

use bytemuck::{Pod, Zeroable};

use super::{
    Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim,
    fragment, grid,
};
use crate::tensor::{DType, TensorId, Tensors};

/// Vectors that an invocation copies; as in the shader.
const VECTORS: usize = 4;

/// A copy of a tensor.
#[derive(Clone, Debug)]
pub struct StreamCopy {
    /// Values, `[N]` f32.
    pub x: TensorId,
    /// Their copy, `[N]` f32.
    pub out: TensorId,
    elements: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    vectors: u32,
}

const _: () = assert!(size_of::<Params>() == 4);

impl StreamCopy {
    /// Returns the copy of `x` into `out`.
    ///
    /// # Panics
    /// When shapes do not fit or `N` is no multiple of 4.
    pub fn new(tensors: &Tensors, x: TensorId, out: TensorId) -> Self {
        let elements = tensors[x].shape.elements();
        assert!(elements.is_multiple_of(4), "stream_copy moves vectors of four: N {elements}");
        tensors.expect(x, [elements], DType::F32);
        tensors.expect(out, [elements], DType::F32);
        Self { x, out, elements }
    }
}

impl Kernel for StreamCopy {
    fn name(&self) -> &'static str {
        "stream_copy"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("stream_copy.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("N {}", self.elements)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(256)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let vectors = self.elements / 4;
        Dispatch {
            overrides: vec![("WG", f64::from(wg))],
            params: bytemuck::bytes_of(&Params { vectors: dim(vectors) }).to_vec(),
            grid: grid(vectors.div_ceil(VECTORS * wg as usize)),
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let bytes = 4 * self.elements as u64;
        Cost { read: bytes, written: bytes, flops: 0 }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| out.copy_from_slice(memory.read(self.x)));
    }
}

/// Lengths around that of a workgroup, and one that no CPU cache holds.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, elements: usize, fill: Fill, bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, N {elements}")).benched(bench);
        let x = case.tensor("x", [elements], DType::F32, fill);
        let out = case.tensor("out", [elements], DType::F32, Fill::Zero);
        let kernel = StreamCopy::new(&case.tensors, x, out);
        case.build(kernel, 0.0, "a copy is exact")
    };
    vec![
        case("large", 1 << 22, Fill::Uniform(1.0), true),
        case("one vector", 4, Fill::Uniform(1.0), false),
        case("a vector past a workgroup", 4 * 1024 + 4, Fill::Uniform(1.0), false),
        case("magnitudes 2^-20 to 2^20", 5000, Fill::Extreme, false),
    ]
}
