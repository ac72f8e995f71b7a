//! `out[r, n] = mean(x[r, n * W .. (n + 1) * W])`: the mean of each run of `W` values of a row.
//!
//! One of the steps of an RMSNorm in naive code; deliberately not fused. A run is a whole row of an
//! activation, or a head of queries or keys.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::tensor::{DType, TensorId, Tensors};

/// Mean of each run of a row.
#[derive(Clone, Debug)]
pub struct RowMean {
    /// Values, `[R, N * W]` f32.
    pub x: TensorId,
    /// Means, `[R, N]` f32.
    pub out: TensorId,
    rows: usize,
    runs: usize,
    width: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    runs: u32,
    width: u32,
}

const _: () = assert!(size_of::<Params>() == 8);

impl RowMean {
    /// Returns the means of `x` into `out`, one for each column of `out`.
    ///
    /// # Panics
    /// When the columns of `x` are no multiple of those of `out`.
    pub fn new(tensors: &Tensors, x: TensorId, out: TensorId) -> Self {
        let &[rows, runs] = tensors[out].shape.dims() else { panic!("row_mean gives [R, N]") };
        let columns = tensors[x].shape.last();
        assert!(runs > 0 && columns.is_multiple_of(runs), "row_mean: {runs} runs of {columns} columns");
        tensors.expect(x, [rows, columns], DType::F32);
        tensors.expect(out, [rows, runs], DType::F32);
        Self { x, out, rows, runs, width: columns / runs }
    }
}

impl Kernel for RowMean {
    fn name(&self) -> &'static str {
        "row_mean"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("row_mean.wgsl"), tier.reduce()]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("{} x {} of {}", self.rows, self.runs, self.width)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(if self.width >= 1024 { 256 } else { 64 })]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&Params { runs: dim(self.runs), width: dim(self.width) }).to_vec(),
            grid: [dim(self.runs), dim(self.rows), 1],
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let means = (self.rows * self.runs) as u64;
        let n = means * self.width as u64;
        Cost { read: 4 * n, written: 4 * means, flops: n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            for (run, out) in memory.read(self.x).chunks(self.width).zip(out) {
                *out = run.iter().sum::<f64>() / self.width as f64;
            }
        });
    }
}

/// OpenELM's widths and heads for one token and a prefill, and runs that are hard to divide or to add up.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, rows: usize, runs: usize, width: usize, fill: Fill| {
        let mut case = CaseBuilder::new(format!("{label}, {rows} x {runs} of {width}"));
        let x = case.tensor("x", [rows, runs * width], DType::F32, fill);
        let out = case.tensor("out", [rows, runs], DType::F32, Fill::Zero);
        let kernel = RowMean::new(&case.tensors, x, out);
        case.build(kernel, 1e-12, "an f32 sum of at most 3072 squares")
    };
    let bench = |case| Case { bench: true, ..case };
    // Squares, as in a norm: a sum of values of both signs could cancel.
    let squares = |n: usize| Fill::Values((0..n).map(|i| ((i * 2654435761 % 1021) as f64 / 512.0).powi(2)).collect());
    let mut cases = Vec::new();
    for (runs, width) in [(1, 1280), (1, 1536), (1, 2048), (1, 3072), (12, 64), (3, 64), (24, 128), (6, 128)] {
        cases.push(bench(case("decode", 1, runs, width, squares(runs * width))));
        cases.push(bench(case("prefill", 33, runs, width, squares(33 * runs * width))));
    }
    cases.push(case("fable", 5, 6, 32, squares(5 * 6 * 32)));
    cases.push(case("narrower than the workgroup", 3, 5, 7, squares(3 * 5 * 7)));
    cases.push(case("one value", 2, 3, 1, squares(6)));
    cases.push(case("zero rows", 2, 1, 256, Fill::Zero));
    let extreme = (0..512).map(|i| (f64::from(i * 37 % 81) - 40.0).exp2()).collect();
    cases.push(case("magnitudes 2^-40 to 2^40", 2, 1, 256, Fill::Values(extreme)));
    cases
}
