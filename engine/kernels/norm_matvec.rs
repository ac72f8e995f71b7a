//! `out[r, row0 + n] = W[n, :] . rms_norm(x)[t, :]`: a projection, or the head, of a few normed tokens, in
//! every weight format.
//!
//! `out` may have fewer rows than `x`: then the last ones are taken, `t = T - R + r`, which is how the head
//! sees only the rows whose logits are wanted.
//!
//! Fuses `rms_norm` and `matvec`: one launch and one round trip of `[R, K]` less.

use bytemuck::{Pod, Zeroable};

use super::rows::{Product, dot, normed};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Matrix times the root-mean-square norm of a few vectors.
#[derive(Clone, Debug)]
pub struct NormMatvec {
    /// Rows to normalise, `[T, K]` f32.
    pub x: TensorId,
    /// Scale of each column, `[K]` f32.
    pub norm: TensorId,
    /// Rows `row0..` of the matrix, `[rows, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[R, N]` f32 with `R <= T`; `rows` columns are written.
    pub out: TensorId,
    /// First row of the weight in the whole matrix.
    pub row0: usize,
    /// Added to the mean of squares.
    pub eps: f32,
    product: Product,
    width: usize,
    tokens: usize,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    rows: u32,
    row0: u32,
    tokens: u32,
    width: u32,
    first_row: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 28);

impl NormMatvec {
    /// Returns the product of the normed last rows of `x` and the transposed `weight` into columns `row0..`
    /// of `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `R` is past 64, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(
        tensors: &Tensors,
        x: TensorId,
        norm: TensorId,
        weight: TensorId,
        out: TensorId,
        row0: usize,
        eps: f32,
    ) -> Self {
        let &[few, width] = tensors[out].shape.dims() else { panic!("a product is [R, N]") };
        let product = Product::new(tensors, weight, few);
        assert!(row0 + product.rows <= width, "rows {row0}..{}, N {width}", row0 + product.rows);
        let tokens = tensors[x].shape.dims()[0];
        assert!(few <= tokens, "{few} of {tokens} rows are normalised");
        tensors.expect(x, [tokens, product.cols], DType::F32);
        tensors.expect(norm, [product.cols], DType::F32);
        tensors.expect(out, [few, width], DType::F32);
        Self { x, norm, weight, out, row0, eps, product, width, tokens }
    }
}

impl Kernel for NormMatvec {
    fn name(&self) -> &'static str {
        "norm_matvec"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.product.source(tier, [fragment!("norm_matvec.wgsl"), fragment!("lib/activation_normed.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.product.rows == self.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.x), Operand::read(self.norm), out, Operand::weight(self.weight)]
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
            first_row: dim(self.tokens - tokens),
            eps: self.eps,
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
        let Product { tokens, rows, cols, .. } = self.product;
        let (product, normed) = (self.product.cost(), (tokens * cols) as u64);
        Cost {
            read: product.read + 4 * cols as u64,
            written: 4 * (tokens * rows) as u64,
            flops: product.flops + 4 * normed,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let cols = self.product.cols;
            let last = &x[(self.tokens - self.product.tokens) * cols..];
            for (t, x) in last.chunks(cols).enumerate() {
                let x = normed(x, memory.read(self.norm), self.eps);
                for (r, row) in weight.chunks(cols).enumerate() {
                    out[t * self.width + self.row0 + r] = dot(row, &x);
                }
            }
        });
    }
}

/// Real projections of the 270M and the 3B in every format, a few tokens, ragged and partial ones, and rows
/// that are hard to normalise.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, sizes: [usize; 4], [row0, width]: [usize; 2], fill: Fill| {
        let [tokens, few, rows, cols] = sizes;
        let label = format!("{label}, {few} of T {tokens}, {rows} x {cols} at {row0} of {width}, {format}");
        let bench = label.starts_with("270M") || label.starts_with("3B");
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, fill);
        let norm = case.tensor("norm", [cols], DType::F32, Fill::Uniform(1.5));
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [few, width], DType::F32, Fill::Zero);
        let kernel = NormMatvec::new(&case.tensors, x, norm, weight, out, row0, 1e-6);
        case.build(kernel, 1e-12, "f32 sums of at most 3072 products and squares, and one f32 rsqrt")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = || Fill::Uniform(2.0);
        cases.push(case("270M qkv", format, [1, 1, 1152, 1280], [0, 1152], random()));
        if format == Format::Q8_0 {
            cases.push(case("3B qkv, first layer", format, [1, 1, 2304, 3072], [0, 2304], random()));
            cases.push(case("270M head", format, [1, 1, 32000, 1280], [0, 32000], random()));
        }
        cases.push(case("fewer rows than a workgroup", format, [1, 1, 1, 32], [0, 1], random()));
        cases.push(case("half a scale word", format, [1, 1, 33, 96], [0, 33], random()));
        cases.push(case("last rows of a prefill", format, [70, 1, 33, 96], [0, 33], random()));
        cases.push(case("part of a split weight", format, [7, 5, 7, 160], [5, 40], random()));
        cases.push(case("a full tile", format, [8, 8, 6, 1056], [0, 6], random()));
        cases.push(case("a token past a tile", format, [9, 9, 33, 96], [7, 50], random()));
        cases.push(case("as many as can be", format, [64, 64, 5, 160], [0, 5], random()));
        cases.push(case("zero rows", format, [8, 8, 10, 256], [0, 10], Fill::Zero));
        cases.push(case("mean far below eps", format, [8, 8, 10, 256], [0, 10], Fill::Uniform(1e-5)));
        cases.push(case("magnitudes 2^-20 to 2^20", format, [8, 8, 10, 256], [0, 10], Fill::Extreme));
    }
    cases
}
