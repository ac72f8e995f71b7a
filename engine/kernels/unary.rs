//! `out[r, c] = f(x[r, c])`: one elementary operation on every value of a window.
//!
//! One of the steps of an RMSNorm in naive code; deliberately not fused. Each step costs a launch and a round
//! trip, which `rms_norm` and `qk_norm` save.

use std::fmt;
use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, Window, dim, fragment, grid};
use crate::tensor::{DType, TensorId, Tensors};

/// An operation on one value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Operation {
    /// `v * v`.
    Square,
    /// `v + constant`.
    Add(f32),
    /// `1 / sqrt(v)`.
    Rsqrt,
}

impl Operation {
    /// Returns the operation's number in the shader and its constant.
    fn params(self) -> (f64, f32) {
        match self {
            Self::Square => (0.0, 0.0),
            Self::Add(constant) => (1.0, constant),
            Self::Rsqrt => (2.0, 0.0),
        }
    }

    fn of(self, value: f64) -> f64 {
        match self {
            Self::Square => value * value,
            Self::Add(constant) => value + f64::from(constant),
            Self::Rsqrt => 1.0 / value.sqrt(),
        }
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Square => "square",
            Self::Add(_) => "add",
            Self::Rsqrt => "rsqrt",
        })
    }
}

/// An operation on every value of a window.
#[derive(Clone, Debug)]
pub struct Unary {
    /// Values to compute from, `[R, C]` of `[T, stride]` f32.
    pub x: Window,
    /// Results, `[R, C]` f32.
    pub out: TensorId,
    /// What is computed.
    pub operation: Operation,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    elements: u32,
    cols: u32,
    first: u32,
    stride: u32,
    constant: f32,
}

const _: () = assert!(size_of::<Params>() == 20);

impl Unary {
    /// Returns the operation on every value of `x` into `out`.
    ///
    /// # Panics
    /// When `out` does not have the window's size.
    pub fn new(tensors: &Tensors, x: Window, out: TensorId, operation: Operation) -> Self {
        tensors.expect(out, [x.rows, x.cols], DType::F32);
        Self { x, out, operation }
    }
}

impl Kernel for Unary {
    fn name(&self) -> &'static str {
        "unary"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("unary.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.x.tensor), Operand::write(self.out)]
    }

    fn shape(&self) -> String {
        format!("{}, {} x {}", self.operation, self.x.rows, self.x.cols)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let (operation, constant) = self.operation.params();
        let params = Params {
            elements: dim(self.x.elements()),
            cols: dim(self.x.cols),
            first: dim(self.x.first),
            stride: dim(self.x.stride),
            constant,
        };
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("OPERATION", operation)],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: grid(self.x.elements().div_ceil(wg as usize)),
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = self.x.elements() as u64;
        Cost { read: 4 * n, written: 4 * n, flops: n }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let x = memory.read(self.x.tensor);
            for i in 0..self.x.elements() {
                out[i] = self.operation.of(x[self.x.at(i)]);
            }
        });
    }
}

/// The steps of OpenELM's norms for one token and a prefill, and windows that are hard to index.
pub fn cases() -> Vec<Case> {
    use Operation::{Add, Rsqrt, Square};
    type Block = [Range<usize>; 2];
    let case = |label: &str, operation: Operation, block: Block, [t, stride]: [usize; 2], fill: Fill| {
        let [rows, cols] = block;
        let label = format!("{label}, {operation} of {rows:?} x {cols:?} in {t} x {stride}");
        let mut case = CaseBuilder::new(label);
        let x = case.tensor("x", [t, stride], DType::F32, fill);
        let out = case.tensor("out", [rows.len(), cols.len()], DType::F32, Fill::Zero);
        let kernel = Unary::new(&case.tensors, Window::new(&case.tensors, x, rows, cols), out, operation);
        case.build(kernel, 1e-13, "one f32 rounding; 2 ULP, as WGSL demands, for a reciprocal square root")
    };
    let bench = |case| Case { bench: true, ..case };
    let uniform = || Fill::Uniform(2.0);
    // Possible means of squares: 2^-40 to 2^40, in no order.
    let positive = |n: usize| Fill::Values((0..n).map(|i| ((i * 37 % 161) as f64 / 2.0 - 40.0).exp2()).collect());
    let mut cases = Vec::new();
    for model_dim in [1280, 1536, 2048, 3072] {
        cases.push(bench(case("decode", Square, [0..1, 0..model_dim], [1, model_dim], uniform())));
    }
    for (label, t) in [("decode", 1), ("prefill", 33)] {
        cases.push(bench(case(label, Square, [0..t, 0..768], [t, 1152], uniform())));
        cases.push(bench(case(label, Square, [0..t, 768..960], [t, 1152], uniform())));
        for heads in [1, 3, 12] {
            cases.push(case(label, Add(1e-6), [0..t, 0..heads], [t, heads], positive(t * heads)));
            cases.push(case(label, Rsqrt, [0..t, 0..heads], [t, heads], positive(t * heads)));
        }
    }
    cases.push(bench(case("prefill", Square, [0..128, 0..1280], [128, 1280], uniform())));
    cases.push(case("last row only", Square, [6..7, 0..192], [7, 192], uniform()));
    cases.push(case("more groups than a row of the grid", Square, [0..1366, 0..3072], [1366, 3072], uniform()));
    cases.push(case("no multiple of the workgroup", Square, [1..4, 3..40], [5, 41], uniform()));
    cases.push(case("one column of many", Rsqrt, [0..70, 2..3], [70, 5], positive(350)));
    cases.push(case("mean zero", Add(1e-6), [0..2, 0..3], [2, 3], Fill::Zero));
    cases.push(case("mean far below eps", Add(1e-6), [0..2, 0..3], [2, 3], Fill::Uniform(1e-10)));
    cases.push(case("magnitudes 2^-20 to 2^20", Square, [0..2, 0..256], [2, 256], Fill::Extreme));
    cases
}
