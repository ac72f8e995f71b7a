//! `out[t, row0 + r] = W[r, :] . x[t, :]`: every projection and the head for several tokens, in every
//! weight format.

use bytemuck::{Pod, Zeroable};

use super::rows::dot;
use super::tiles::Tiles;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Matrix product.
#[derive(Clone, Debug)]
pub struct Matmul {
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Rows `row0..` of the matrix, `[rows, K]` in any weight format.
    pub weight: TensorId,
    /// Products, `[T, N]` f32; `rows` columns are written.
    pub out: TensorId,
    /// First row of the weight in the whole matrix.
    pub row0: usize,
    tiles: Tiles,
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

impl Matmul {
    /// Returns the product of `x` and the transposed `weight` into columns `row0..` of `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, x: TensorId, weight: TensorId, out: TensorId, row0: usize) -> Self {
        let &[tokens, width] = tensors[out].shape.dims() else { panic!("a product is [T, N]") };
        let tiles = Tiles::new(tensors, weight, tokens);
        assert!(row0 + tiles.rows <= width, "rows {row0}..{}, N {width}", row0 + tiles.rows);
        tensors.expect(x, [tokens, tiles.cols], DType::F32);
        tensors.expect(out, [tokens, width], DType::F32);
        Self { x, weight, out, row0, tiles, width }
    }
}

impl Kernel for Matmul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.tiles.source(tier, [fragment!("matmul.wgsl"), fragment!("lib/places_rows.wgsl"), fragment!("lib/tile_plain.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.tiles.rows == self.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.x), out, Operand::weight(self.weight)]
    }

    fn shape(&self) -> String {
        self.tiles.shape()
    }

    fn tunables(&self) -> Vec<Tunable> {
        self.tiles.tunables()
    }

    fn choices(&self, tier: Tier) -> Vec<Choice> {
        self.tiles.choices(tier)
    }

    fn suited_to(&self, size: u32) -> Choice {
        self.tiles.suited_to(size)
    }

    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch {
        let Tiles { tokens, rows, cols, .. } = self.tiles;
        let params = Params {
            cols: dim(cols),
            rows: dim(rows),
            row0: dim(self.row0),
            tokens: dim(tokens),
            width: dim(self.width),
        };
        Dispatch {
            overrides: self.tiles.overrides(tier, choice),
            params: bytemuck::bytes_of(&params).to_vec(),
            grid: self.tiles.grid(tier, choice),
        }
    }

    fn rounding(&self, tier: Tier) -> f64 {
        self.tiles.rounding(tier)
    }

    fn cost(&self, _position: usize) -> Cost {
        let sums = (self.tiles.tokens * self.tiles.rows) as u64;
        Cost { written: 4 * sums, ..self.tiles.cost() }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            for (t, x) in x.chunks(self.tiles.cols).enumerate() {
                for (r, row) in weight.chunks(self.tiles.cols).enumerate() {
                    out[t * self.width + self.row0 + r] = dot(row, x);
                }
            }
        });
    }
}

/// A real projection in every format, every kind of ragged edge, and partial ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, sizes: [usize; 3], [row0, width]: [usize; 2], fill: Fill| {
        let [tokens, rows, cols] = sizes;
        let label = format!("{label}, T {tokens}, {rows} x {cols} at {row0} of {width}, {format}");
        let mut case = CaseBuilder::new(label);
        if rows * cols > 1 << 19 {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, fill);
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [tokens, width], DType::F32, Fill::Zero);
        let kernel = Matmul::new(&case.tensors, x, weight, out, row0);
        // Rounding grows with the length of a chain of adds: an NMSE of 3e-16 K.
        case.build(kernel, 1e-11, "f32 sums, each one chain of at most the 3B\'s 12288 products: 3.7e-12")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = || Fill::Uniform(1.0);
        if format == Format::Q8_0 {
            cases.push(case("270M qkv, last layers", format, [32, 1920, 1280], [0, 1920], random()));
            cases.push(case("wide", format, [64, 8192, 256], [0, 8192], random()));
        }
        cases.push(case("270M out", format, [32, 1280, 768], [0, 1280], random()));
        cases.push(case("tall tiles", format, [35, 8161, 32], [0, 8161], random()));
        cases.push(case("two tokens", format, [2, 64, 1280], [0, 64], random()));
        cases.push(case("one row and column step", format, [3, 1, 32], [0, 1], random()));
        cases.push(case("half a scale word", format, [7, 33, 96], [0, 33], random()));
        cases.push(case("part of a split weight", format, [17, 40, 160], [5, 50], random()));
        cases.push(case("a token and a row past a tile", format, [33, 65, 64], [0, 65], random()));
        cases.push(case("magnitudes 2^-20 to 2^20", format, [5, 10, 256], [0, 10], Fill::Extreme));
    }
    cases
}
