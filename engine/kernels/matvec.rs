//! `out[t, row0 + r] = W[r, :] . x[t, :]`: every projection and the head for a few tokens, in every weight
//! format.

use bytemuck::{Pod, Zeroable};

use super::rows::{Product, dot};
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Matrix times a few vectors.
#[derive(Clone, Debug)]
pub struct Matvec {
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Rows `row0..` of the matrix, `[rows, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[T, N]` f32; `rows` columns are written.
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

impl Matvec {
    /// Returns the product of `x` and the transposed `weight` into columns `row0..` of `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `T` is past 64, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId, row0: usize) -> Self {
        let &[tokens, width] = tensors[out].shape.dims() else { panic!("a product is [T, N]") };
        let product = Product::new(tensors, weight, tokens);
        assert!(row0 + product.rows <= width, "rows {row0}..{}, N {width}", row0 + product.rows);
        tensors.expect(x, [tokens, product.cols], DType::F32);
        tensors.expect(out, [tokens, width], DType::F32);
        Self { x, weight, out, row0, product, width }
    }
}

impl Kernel for Matvec {
    fn name(&self) -> &'static str {
        "matvec"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.product.source(tier, [fragment!("matvec.wgsl"), fragment!("lib/activation_plain.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.product.rows == self.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.x), out, Operand::weight(self.weight)]
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
        Cost { written: 4 * (self.product.tokens * self.product.rows) as u64, ..self.product.cost() }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            for (t, x) in x.chunks(self.product.cols).enumerate() {
                for (r, row) in weight.chunks(self.product.cols).enumerate() {
                    out[t * self.width + self.row0 + r] = dot(row, x);
                }
            }
        });
    }
}

/// Real projections of the 270M and the 3B in every format, a few tokens, and ragged and partial ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, sizes: [usize; 3], [row0, width]: [usize; 2], fill: Fill| {
        let [tokens, rows, cols] = sizes;
        let few = if tokens == 1 { String::new() } else { format!("T {tokens}, ") };
        let label = format!("{label}, {few}{rows} x {cols} at {row0} of {width}, {format}");
        let bench = label.starts_with("270M") || label.starts_with("3B");
        let mut case = CaseBuilder::new(label);
        if bench {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, fill);
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [tokens, width], DType::F32, Fill::Zero);
        let kernel = Matvec::new(&case.tensors, x, weight, out, row0);
        case.build(kernel, 1e-12, "f32 sums of at most 12288 products")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = || Fill::Uniform(1.0);
        cases.push(case("270M qkv", format, [1, 1152, 1280], [0, 1152], random()));
        cases.push(case("270M down", format, [1, 1280, 5120], [0, 1280], random()));
        cases.push(case("3B out", format, [1, 3072, 1536], [0, 3072], random()));
        cases.push(case("270M qkv, last layers", format, [1, 1920, 1280], [0, 1920], random()));
        if format == Format::Q8_0 {
            cases.push(case("270M head", format, [1, 32000, 1280], [0, 32000], random()));
            cases.push(case("270M qkv", format, [4, 1152, 1280], [0, 1152], random()));
            cases.push(case("270M qkv", format, [8, 1152, 1280], [0, 1152], random()));
            cases.push(case("270M qkv", format, [64, 1152, 1280], [0, 1152], random()));
        }
        cases.push(case("fewer rows than a workgroup", format, [1, 1, 32], [0, 1], random()));
        cases.push(case("half a scale word", format, [1, 33, 96], [0, 33], random()));
        cases.push(case("part of a split weight", format, [1, 7, 160], [5, 40], random()));
        cases.push(case("magnitudes 2^-20 to 2^20", format, [1, 10, 256], [0, 10], Fill::Extreme));
        cases.push(case("two tokens", format, [2, 33, 96], [0, 33], random()));
        cases.push(case("a tile of four, not full", format, [3, 7, 160], [5, 40], random()));
        cases.push(case("a full tile", format, [8, 6, 1056], [0, 6], random()));
        cases.push(case("a token past a tile", format, [9, 33, 96], [7, 50], random()));
        cases.push(case("as many as can be", format, [64, 5, 160], [0, 5], random()));
    }
    // More workgroups than one dimension of a grid holds.
    let tall = |tokens| [tokens, 262_149, 32];
    cases.push(case("a grid of two dimensions", Format::Q4_0, tall(1), [0, tall(1)[1]], Fill::Uniform(1.0)));
    cases
}
