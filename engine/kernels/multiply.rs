//! `out[r, c] = a[r, c] * b`: a window times one factor for each run of a row, or one vector for all runs.
//!
//! One of the steps of an RMSNorm in naive code; deliberately not fused. Each step costs a launch and a round
//! trip. A run is a whole row of an activation, or a head of queries or keys.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, Window, dim, fragment, grid};
use crate::tensor::{DType, TensorId, Tensors};

/// Product of a window with factors.
#[derive(Clone, Debug)]
pub struct Multiply {
    /// Values, `[R, N * W]` of `[T, stride]` f32.
    pub a: Window,
    /// Factors: `[R, N]` f32, one for each run, or `[W]` f32, the same vector for all.
    pub b: TensorId,
    /// Products, `[R, N * W]` of `[T, stride]` f32.
    pub out: Window,
    /// Values of a run, `W`.
    width: usize,
    /// Whether there is one factor for each run.
    per_run: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    elements: u32,
    cols: u32,
    width: u32,
    a_first: u32,
    a_stride: u32,
    out_first: u32,
    out_stride: u32,
}

const _: () = assert!(size_of::<Params>() == 28);

impl Multiply {
    /// Returns the product of `a` and `b` into `out`.
    ///
    /// # Panics
    /// When the windows differ in size, or `b` is neither `[R, N]` nor `[W]`.
    pub fn new(tensors: &Tensors, a: Window, b: TensorId, out: Window) -> Self {
        assert_eq!((a.rows, a.cols), (out.rows, out.cols), "multiply keeps the size");
        let per_run = tensors[b].shape.dims().len() == 2;
        let last = tensors[b].shape.last();
        assert!(last > 0 && a.cols.is_multiple_of(last), "multiply: {} columns by {last} factors", a.cols);
        if per_run {
            tensors.expect(b, [a.rows, last], DType::F32);
        } else {
            tensors.expect(b, [last], DType::F32);
        }
        let width = if per_run { a.cols / last } else { last };
        Self { a, b, out, width, per_run }
    }

    /// Returns the index of the factor of value number `i`.
    fn factor(&self, i: usize) -> usize {
        if self.per_run { i / self.width } else { i % self.width }
    }
}

impl Kernel for Multiply {
    fn name(&self) -> &'static str {
        "multiply"
    }

    fn source(&self, _tier: Tier) -> Vec<Fragment> {
        vec![fragment!("multiply.wgsl")]
    }

    fn operands(&self) -> Vec<Operand> {
        vec![Operand::read(self.a.tensor), Operand::read(self.b), self.out.written()]
    }

    fn shape(&self) -> String {
        let kind = if self.per_run { "factors" } else { "vector" };
        format!("{kind}, {} x {} of {}", self.a.rows, self.a.cols / self.width, self.width)
    }

    fn tunables(&self) -> Vec<Tunable> {
        vec![Tunable::workgroup(64)]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let wg = choice.of(&self.tunables()[0]);
        let params = Params {
            elements: dim(self.a.elements()),
            cols: dim(self.a.cols),
            width: dim(self.width),
            a_first: dim(self.a.first),
            a_stride: dim(self.a.stride),
            out_first: dim(self.out.first),
            out_stride: dim(self.out.stride),
        };
        Dispatch {
            overrides: vec![("WG", f64::from(wg)), ("PER_RUN", f64::from(u8::from(self.per_run)))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: grid(self.a.elements().div_ceil(wg as usize)),
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        let n = self.a.elements();
        let factors = if self.per_run { n / self.width } else { self.width };
        Cost { read: 4 * (n + factors) as u64, written: 4 * n as u64, flops: n as u64 }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out.tensor, |memory, out| {
            let (a, b) = (memory.read(self.a.tensor), memory.read(self.b));
            for i in 0..self.a.elements() {
                out[self.out.at(i)] = a[self.a.at(i)] * b[self.factor(i)];
            }
        });
    }
}

/// Both products of OpenELM's norms for one token and a prefill, and windows that are hard to index.
pub fn cases() -> Vec<Case> {
    type Block = [Range<usize>; 2];
    // Each window with the size of its tensor.
    let case = |label: &str, a: (Block, [usize; 2]), b: &[usize], out: (Block, [usize; 2]), fill: Fill| {
        let ([rows, cols], [t, stride]) = a.clone();
        let label = format!("{label}, {rows:?} x {cols:?} in {t} x {stride} by {b:?}");
        let mut case = CaseBuilder::new(label);
        let tensor = case.tensor("a", a.1, DType::F32, fill.clone());
        let a = Window::new(&case.tensors, tensor, rows, cols);
        let b = match *b {
            [rows, runs] => case.tensor("b", [rows, runs], DType::F32, fill),
            _ => case.tensor("b", [b[0]], DType::F32, fill),
        };
        // Values outside the window must not change.
        let tensor = case.tensor("out", out.1, DType::F32, Fill::Uniform(3.0));
        let [rows, cols] = out.0;
        let kernel = Multiply::new(&case.tensors, a, b, Window::new(&case.tensors, tensor, rows, cols));
        case.build(kernel, 1e-14, "one f32 rounding per value, at most 2^-24 of it")
    };
    let whole = |t: usize, cols: usize| ([0..t, 0..cols], [t, cols]);
    let bench = |case| Case { bench: true, ..case };
    let uniform = || Fill::Uniform(2.0);
    let mut cases = Vec::new();
    for (label, t) in [("decode", 1), ("prefill", 33)] {
        for d in [1280, 1536, 2048, 3072] {
            cases.push(bench(case(label, whole(t, d), &[t, 1], whole(t, d), uniform())));
            cases.push(bench(case(label, whole(t, d), &[d], whole(t, d), uniform())));
        }
        let (queries, keys) = ([0..t, 0..768], [0..t, 768..960]);
        cases.push(bench(case(label, (queries.clone(), [t, 1152]), &[t, 12], whole(t, 768), uniform())));
        cases.push(bench(case(label, (keys.clone(), [t, 1152]), &[t, 3], whole(t, 192), uniform())));
        cases.push(bench(case(label, whole(t, 768), &[64], (queries, [t, 960]), uniform())));
        cases.push(bench(case(label, whole(t, 192), &[64], (keys, [t, 960]), uniform())));
    }
    let last = ([6..7, 0..192], [7, 192]);
    cases.push(case("last row only", last, &[1, 1], whole(1, 192), uniform()));
    let many = whole(1366, 3072);
    cases.push(case("more groups than a row of the grid", many.clone(), &[3072], many, uniform()));
    let middle = ([1..4, 3..38], [5, 41]);
    cases.push(case("no multiple of the workgroup", middle.clone(), &[3, 5], middle.clone(), uniform()));
    cases.push(case("no multiple of the workgroup", middle.clone(), &[7], middle, uniform()));
    cases.push(case("magnitudes 2^-20 to 2^20", whole(2, 256), &[64], whole(2, 256), Fill::Extreme));
    cases
}
