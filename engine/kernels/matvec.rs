//! `out[row0 + r] = W[r, :] . x`: every projection and the head for one token, in every weight format.

use bytemuck::{Pod, Zeroable};

use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment, grid, weight_fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Rows that one workgroup computes.
const ROWS: usize = 4;

/// Matrix times vector.
#[derive(Clone, Debug)]
pub struct Matvec {
    /// Activation, `[1, K]` f32.
    pub x: TensorId,
    /// Rows `row0..` of the matrix, `[rows, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[1, N]` f32; `rows` of them are written.
    pub out: TensorId,
    /// First row of the weight in the whole matrix.
    pub row0: usize,
    format: Format,
    rows: usize,
    cols: usize,
    whole: bool,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    rows: u32,
    row0: u32,
}

const _: () = assert!(size_of::<Params>() == 12);

impl Matvec {
    /// Returns the product of `weight` and `x` into `out[row0..]`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId, row0: usize) -> Self {
        let &[rows, cols] = tensors[weight].shape.dims() else { panic!("a weight is [rows, K]") };
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        let all = tensors[out].shape.last();
        assert!(cols.is_multiple_of(32) && row0 + rows <= all, "K {cols}, rows {row0}..{}, N {all}", row0 + rows);
        tensors.expect(x, [1, cols], DType::F32);
        tensors.expect(out, [1, all], DType::F32);
        Self { x, weight, out, row0, format, rows, cols, whole: rows == all }
    }
}

impl Kernel for Matvec {
    fn name(&self) -> &'static str {
        "matvec"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        vec![fragment!("matvec.wgsl"), fragment!("lib/rows.wgsl"), tier.reduce4(), weight_fragment(self.format)]
    }

    fn operands(&self) -> Vec<Operand> {
        let out = if self.whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.x), out, Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        format!("{} x {}, {}", self.rows, self.cols, self.format)
    }

    fn tunables(&self) -> Vec<Tunable> {
        // Below 256 chunks of 16 columns, more invocations would have one or none.
        vec![Tunable::workgroup(if self.cols >= 4096 { 64 } else { 32 })]
    }

    fn dispatch(&self, _tier: Tier, choice: &Choice) -> Dispatch {
        let params = Params { cols: dim(self.cols), rows: dim(self.rows), row0: dim(self.row0) };
        Dispatch {
            overrides: vec![("WG", f64::from(choice.of(&self.tunables()[0])))],
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: grid(self.rows.div_ceil(ROWS)),
        }
    }

    fn cost(&self, _position: usize) -> Cost {
        Cost {
            read: self.format.bytes(self.rows, self.cols) + 4 * self.cols as u64,
            written: 4 * self.rows as u64,
            flops: 2 * (self.rows * self.cols) as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            for (r, row) in weight.chunks(self.cols).enumerate() {
                out[self.row0 + r] = row.iter().zip(x).map(|(w, x)| w * x).sum();
            }
        });
    }
}

/// Real projections of the 270M and the 3B in every format, and ragged and partial ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, [rows, cols]: [usize; 2], [row0, all]: [usize; 2], fill: Fill| {
        let mut case = CaseBuilder::new(format!("{label}, {rows} x {cols} at {row0} of {all}, {format}"));
        if label.starts_with("270M") || label.starts_with("3B") {
            case = case.benched();
        }
        let x = case.tensor("x", [1, cols], DType::F32, fill);
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [1, all], DType::F32, Fill::Zero);
        let kernel = Matvec::new(&case.tensors, x, weight, out, row0);
        case.build(kernel, 1e-12, "f32 sums of at most 12288 products")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = || Fill::Uniform(1.0);
        cases.push(case("270M qkv", format, [1152, 1280], [0, 1152], random()));
        cases.push(case("270M down", format, [1280, 5120], [0, 1280], random()));
        cases.push(case("3B out", format, [3072, 1536], [0, 3072], random()));
        cases.push(case("270M qkv, last layers", format, [1920, 1280], [0, 1920], random()));
        if format == Format::Q8_0 {
            cases.push(case("270M head", format, [32000, 1280], [0, 32000], random()));
        }
        cases.push(case("fewer rows than a workgroup", format, [1, 32], [0, 1], random()));
        cases.push(case("half a scale word", format, [33, 96], [0, 33], random()));
        cases.push(case("part of a split weight", format, [7, 160], [5, 40], random()));
        cases.push(case("magnitudes 2^-20 to 2^20", format, [10, 256], [0, 10], Fill::Extreme));
    }
    // More workgroups than one dimension of a grid holds.
    let tall = [262_149, 32];
    cases.push(case("a grid of two dimensions", Format::Q4_0, tall, [0, tall[0]], Fill::Uniform(1.0)));
    cases
}
