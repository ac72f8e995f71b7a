//! `out_x = x[T - 1, :]` and `out_y = y[T - 1, :]`: the last rows, once no other row is needed.
//!
//! After the last layer's attention, one launch copies the last row of the residual and of the output of
//! attention; everything after it computes one row in place of `T`.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// The last rows of two activations.
#[derive(Clone, Debug)]
pub struct LastRows {
    /// Rows, `[T, N]` f32.
    pub x: TensorId,
    /// Other rows, `[T, M]` f32.
    pub y: TensorId,
    /// The last row of `x`, `[1, N]` f32.
    pub out_x: TensorId,
    /// The last row of `y`, `[1, M]` f32.
    pub out_y: TensorId,
    tokens: usize,
    widths: [usize; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    first: [u32; 2],
    vectors: [u32; 2],
}

const _: () = assert!(size_of::<Params>() == 16);

impl LastRows {
    /// Returns the copy of the last rows of `x` and `y` to the outs.
    ///
    /// # Panics
    /// When shapes do not fit, or `N` or `M` is no multiple of 4.
    pub fn new(tensors: &Tensors, [x, y]: [TensorId; 2], [out_x, out_y]: [TensorId; 2]) -> Self {
        let tokens = tensors[x].shape.dims()[0];
        let widths = [x, y].map(|id| tensors[id].shape.last());
        for (of, out, width) in [(x, out_x, widths[0]), (y, out_y, widths[1])] {
            assert!(width.is_multiple_of(4), "last_rows reads vectors of four: a row is {width}");
            tensors.expect(of, [tokens, width], DType::F32);
            tensors.expect(out, [1, width], DType::F32);
        }
        Self { x, y, out_x, out_y, tokens, widths }
    }
}

impl Kernel for LastRows {
    fn name(&self) -> &'static str {
        "last_rows"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("last_rows.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![
            Operand::read(self.x),
            Operand::read(self.y),
            Operand::write(self.out_x),
            Operand::write(self.out_y),
        ]
    }

    fn shape(&self) -> String {
        let [x, y] = self.widths;
        format!("{x} + {y}")
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let vectors = self.widths.map(|width| width / 4);
        let first = vectors.map(|vectors| dim((self.tokens - 1) * vectors));
        let [x, y] = vectors;
        Dispatch {
            overrides: vec![("WG", f64::from(wg))],
            params: bytemuck::bytes_of(&Params { first, vectors: vectors.map(dim) }).to_vec(),
            grid: [dim((x + y).div_ceil(wg as usize)), 1, 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let bytes = 4 * self.widths.iter().sum::<usize>() as u64;
        Cost { read: bytes, written: bytes, flops: 0 }
    }

    fn reference(&self, memory: &mut Memory) {
        for (of, out, width) in [(self.x, self.out_x, self.widths[0]), (self.y, self.out_y, self.widths[1])] {
            memory.update(out, |memory, out| {
                out.copy_from_slice(&memory.read(of)[(self.tokens - 1) * width..][..width]);
            });
        }
    }
}

/// OpenELM's widths after a prefill, and rows that are hard to index.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, tokens: usize, [n, m]: [usize; 2], bench: bool| {
        let mut case = CaseBuilder::new(format!("{label}, T {tokens}, N {n}, M {m}")).benched(bench);
        let x = case.tensor("x", [tokens, n], DType::F32, Fill::Extreme);
        let y = case.tensor("y", [tokens, m], DType::F32, Fill::Extreme);
        let out_x = case.tensor("out_x", [1, n], DType::F32, Fill::Zero);
        let out_y = case.tensor("out_y", [1, m], DType::F32, Fill::Zero);
        let kernel = LastRows::new(&case.tensors, [x, y], [out_x, out_y]);
        case.build(kernel, 0.0, "values are copied")
    };
    let mut cases = Vec::new();
    for (model_dim, mixed) in [(1280, 1280), (1536, 1536), (2048, 2048), (3072, 3072)] {
        cases.push(case("prefill", 128, [model_dim, mixed], true));
    }
    cases.push(case("no multiple of the workgroup", 17, [36, 132], false));
    cases.push(case("one row", 1, [192, 128], false));
    cases.push(case("one vector", 2, [4, 4], false));
    cases
}
