//! `out[t, row0 + r] = residual[t, row0 + r] + W[r, :] . x[t, :]`: a projection of a few tokens and the
//! residual connection, in every weight format.
//!
//! Fuses `matvec` and `add`: the product is never stored, and a launch is saved.

use bytemuck::{Pod, Zeroable};

use super::rows::{Product, dot};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Matrix times a few vectors, plus what was there before.
#[derive(Clone, Debug)]
pub struct MatvecAdd {
    /// First summand, `[T, N]` f32.
    pub residual: TensorId,
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Rows `row0..` of the matrix, `[rows, K]` in any weight format.
    pub weight: TensorId,
    /// Sums, `[T, N]` f32; `rows` columns are written.
    pub out: TensorId,
    /// First row of the weight in the whole matrix.
    pub row0: usize,
    product: Product,
    width: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    rows: u32,
    row0: u32,
    tokens: u32,
    width: u32,
}

const _: () = assert!(size_of::<Params>() == 20);

impl MatvecAdd {
    /// Returns the product of `x` and the transposed `weight`, with the residual, into columns `row0..` of
    /// `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` is past 64, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(
        tensors: &Tensors,
        residual: TensorId,
        x: TensorId,
        weight: TensorId,
        out: TensorId,
        row0: usize,
    ) -> Self {
        let &[tokens, width] = tensors[out].shape.dims() else { panic!("a product is [T, N]") };
        let product = Product::new(tensors, weight, tokens);
        assert!(row0 + product.rows <= width, "rows {row0}..{}, N {width}", row0 + product.rows);
        tensors.expect(x, [tokens, product.cols], DType::F32);
        for id in [residual, out] {
            tensors.expect(id, [tokens, width], DType::F32);
        }
        Self { residual, x, weight, out, row0, product, width }
    }
}

impl Kernel for MatvecAdd {
    fn name(&self) -> &'static str {
        "matvec_add"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.product.source(tier, [fragment!("matvec_add.wgsl"), fragment!("lib/activation_plain.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.product.rows == self.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.residual), Operand::read(self.x), out, Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        self.product.shape()
    }

    fn tunables(&self) -> Vec<Tunable> {
        self.product.tunables()
    }

    fn suited_to(&self, size: u32) -> Choice {
        self.product.suited_to(size)
    }

    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch {
        let Product { tokens, rows, cols, .. } = self.product;
        let params = Params {
            cols: dim(cols),
            rows: dim(rows),
            row0: dim(self.row0),
            tokens: dim(tokens),
            width: dim(self.width),
        };
        Dispatch {
            overrides: self.product.overrides(tier, choice),
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: self.product.grid(tier, choice),
        }
    }

    fn rounding(&self, tier: Tier) -> f64 {
        self.product.rounding(tier)
    }

    fn cost(&self, _position: usize) -> Cost {
        let (product, sums) = (self.product.cost(), (self.product.tokens * self.product.rows) as u64);
        Cost { read: product.read + 4 * sums, written: 4 * sums, flops: product.flops + sums }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let residual = memory.read(self.residual);
            for (t, x) in x.chunks(self.product.cols).enumerate() {
                for (r, row) in weight.chunks(self.product.cols).enumerate() {
                    let n = t * self.width + self.row0 + r;
                    out[n] = residual[n] + dot(row, x);
                }
            }
        });
    }
}

/// Real projections of the 270M and the 3B in every format, a few tokens, and ragged and partial ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, sizes: [usize; 3], [row0, width]: [usize; 2]| {
        let [tokens, rows, cols] = sizes;
        let label = format!("{label}, T {tokens}, {rows} x {cols} at {row0} of {width}, {format}");
        let bench = label.starts_with("270M") || label.starts_with("3B");
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let residual = case.tensor("residual", [tokens, width], DType::F32, Fill::Uniform(10.0));
        let x = case.tensor("x", [tokens, cols], DType::F32, Fill::Uniform(1.0));
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [tokens, width], DType::F32, Fill::Zero);
        let kernel = MatvecAdd::new(&case.tensors, residual, x, weight, out, row0);
        case.build(kernel, 1e-12, "f32 sums of at most 3072 products")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        cases.push(case("270M out, first layer", format, [1, 1280, 768], [0, 1280]));
        cases.push(case("3B down, first layer", format, [1, 3072, 1536], [0, 3072]));
        if format == Format::Q8_0 {
            cases.push(case("270M down", format, [1, 1280, 5120], [0, 1280]));
        }
        cases.push(case("fewer rows than a workgroup", format, [1, 1, 32], [0, 1]));
        cases.push(case("half a scale word", format, [1, 33, 96], [0, 33]));
        cases.push(case("part of a split weight", format, [5, 7, 160], [5, 40]));
        cases.push(case("a full tile", format, [8, 6, 1056], [0, 6]));
        cases.push(case("a token past a tile", format, [9, 33, 96], [7, 50]));
        cases.push(case("as many as can be", format, [64, 5, 160], [0, 5]));
    }
    cases
}
