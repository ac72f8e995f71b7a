//! `out[t, row0 + r] = residual[t, row0 + r] + W[r, :] . x[t, :]`: a projection of several tokens and the
//! residual connection, in every weight format.
//!
//! Fuses `matmul` and `add`: the product alone is never stored, and a launch is saved.

use bytemuck::{Pod, Zeroable};

use super::rows::dot;
use super::tiles::Tiles;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Matrix product, plus what was there before.
#[derive(Clone, Debug)]
pub struct MatmulAdd {
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

impl MatmulAdd {
    /// Returns the product of `x` and the transposed `weight`, with the residual, into columns `row0..` of
    /// `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(
        tensors: &Tensors,
        residual: TensorId,
        x: TensorId,
        weight: TensorId,
        out: TensorId,
        row0: usize,
    ) -> Self {
        let &[tokens, width] = tensors[out].shape.dims() else { panic!("a product is [T, N]") };
        let tiles = Tiles::new(tensors, weight, tokens);
        assert!(row0 + tiles.rows <= width, "rows {row0}..{}, N {width}", row0 + tiles.rows);
        tensors.expect(x, [tokens, tiles.cols], DType::F32);
        for id in [residual, out] {
            tensors.expect(id, [tokens, width], DType::F32);
        }
        Self { residual, x, weight, out, row0, tiles, width }
    }
}

impl Kernel for MatmulAdd {
    fn name(&self) -> &'static str {
        "matmul_add"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.tiles.source(tier, [fragment!("matmul_add.wgsl"), fragment!("lib/tile_plain.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.tiles.rows == self.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.residual), Operand::read(self.x), out, Operand::weight(self.weight)]
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
        let (product, sums) = (self.tiles.cost(), (self.tiles.tokens * self.tiles.rows) as u64);
        Cost { read: product.read + 4 * sums, written: 4 * sums, flops: product.flops + sums }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let residual = memory.read(self.residual);
            for (t, x) in x.chunks(self.tiles.cols).enumerate() {
                for (r, row) in weight.chunks(self.tiles.cols).enumerate() {
                    let n = t * self.width + self.row0 + r;
                    out[n] = residual[n] + dot(row, x);
                }
            }
        });
    }
}

/// Real projections in every format, every kind of ragged edge, and partial ones.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, sizes: [usize; 3], [row0, width]: [usize; 2]| {
        let [tokens, rows, cols] = sizes;
        let label = format!("{label}, T {tokens}, {rows} x {cols} at {row0} of {width}, {format}");
        let mut case = CaseBuilder::new(label);
        if rows * cols > 1 << 19 {
            case = case.benched();
        }
        let residual = case.tensor("residual", [tokens, width], DType::F32, Fill::Uniform(10.0));
        let x = case.tensor("x", [tokens, cols], DType::F32, Fill::Uniform(1.0));
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [tokens, width], DType::F32, Fill::Zero);
        let kernel = MatmulAdd::new(&case.tensors, residual, x, weight, out, row0);
        // Rounding grows with the length of a chain of adds: an NMSE of 3e-16 K.
        case.build(kernel, 1e-11, "f32 sums, each one chain of at most the 3B\'s 12288 products: 3.7e-12")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        cases.push(case("270M out, first layer", format, [32, 1280, 768], [0, 1280]));
        if format == Format::Q8_0 {
            cases.push(case("270M down, last layer", format, [16, 1280, 5120], [0, 1280]));
        }
        cases.push(case("one row and column step", format, [3, 1, 32], [0, 1]));
        cases.push(case("half a scale word", format, [7, 33, 96], [0, 33]));
        cases.push(case("part of a split weight", format, [17, 40, 160], [5, 50]));
        cases.push(case("a token and a row past a tile", format, [33, 65, 64], [0, 65]));
    }
    cases
}
