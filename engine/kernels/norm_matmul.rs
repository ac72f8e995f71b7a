//! `out[r, row0 + n] = W[n, :] . rms_norm(x)[t, :]`: a projection, or the head, of several normed tokens, in
//! every weight format.
//!
//! `out` may have fewer rows than `x`: then the last ones are taken, `t = T - R + r`.
//!
//! Fuses `rms_norm` and `matmul`: one launch and one round trip of `[R, K]` less.

use bytemuck::{Pod, Zeroable};

use super::rows::{dot, normed};
use super::tiles::Tiles;
use super::{Case, CaseBuilder, Choice, Cost, Dispatch, Fill, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// Matrix times the root-mean-square norm of several vectors.
#[derive(Clone, Debug)]
pub struct NormMatmul {
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
    tiles: Tiles,
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

impl NormMatmul {
    /// Returns the product of the normed last rows of `x` and the transposed `weight` into columns `row0..`
    /// of `out`.
    ///
    /// # Panics
    /// When shapes do not fit, `K` is no multiple of 32 or the weight has no weight format.
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
        let tiles = Tiles::new(tensors, weight, few);
        assert!(row0 + tiles.rows <= width, "rows {row0}..{}, N {width}", row0 + tiles.rows);
        let tokens = tensors[x].shape.dims()[0];
        assert!(few <= tokens, "{few} of {tokens} rows are normalised");
        tensors.expect(x, [tokens, tiles.cols], DType::F32);
        tensors.expect(norm, [tiles.cols], DType::F32);
        tensors.expect(out, [few, width], DType::F32);
        Self { x, norm, weight, out, row0, eps, tiles, width, tokens }
    }
}

impl Kernel for NormMatmul {
    fn name(&self) -> &'static str {
        "norm_matmul"
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        self.tiles.source(tier, [fragment!("norm_matmul.wgsl"), fragment!("lib/places_rows.wgsl"), fragment!("lib/tile_normed.wgsl")])
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.tiles.rows == self.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        vec![Operand::read(self.x), Operand::read(self.norm), out, Operand::weight(self.weight)]
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
            first_row: dim(self.tokens - tokens),
            eps: self.eps,
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
        let Tiles { tokens, rows, cols, .. } = self.tiles;
        let (product, normed) = (self.tiles.cost(), (tokens * cols) as u64);
        Cost {
            read: product.read + 4 * cols as u64,
            written: 4 * (tokens * rows) as u64,
            flops: product.flops + 4 * normed,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            let cols = self.tiles.cols;
            let last = &x[(self.tokens - self.tiles.tokens) * cols..];
            for (t, x) in last.chunks(cols).enumerate() {
                let x = normed(x, memory.read(self.norm), self.eps);
                for (r, row) in weight.chunks(cols).enumerate() {
                    out[t * self.width + self.row0 + r] = dot(row, &x);
                }
            }
        });
    }
}

/// Real projections in every format, every kind of ragged edge, partial ones, and rows that are hard to normalise.
pub fn cases() -> Vec<Case> {
    let case = |label: &str, format: Format, sizes: [usize; 4], [row0, width]: [usize; 2], fill: Fill| {
        let [tokens, several, rows, cols] = sizes;
        let label = format!("{label}, {several} of T {tokens}, {rows} x {cols} at {row0} of {width}, {format}");
        let mut case = CaseBuilder::new(label);
        if rows * cols > 1 << 19 {
            case = case.benched();
        }
        let x = case.tensor("x", [tokens, cols], DType::F32, fill);
        let norm = case.tensor("norm", [cols], DType::F32, Fill::Uniform(1.5));
        let weight = case.tensor("weight", [rows, cols], format.dtype(), Fill::Uniform(1.0));
        let out = case.tensor("out", [several, width], DType::F32, Fill::Zero);
        let kernel = NormMatmul::new(&case.tensors, x, norm, weight, out, row0, 1e-6);
        // Rounding grows with the length of a chain of adds: an NMSE of 3e-16 K.
        case.build(kernel, 1e-11, "f32 sums, each one chain of at most the 3B\'s 12288 products: 3.7e-12 and squares, and one f32 rsqrt")
    };
    let mut cases = Vec::new();
    for format in Format::ALL {
        let random = || Fill::Uniform(2.0);
        if format == Format::Q8_0 {
            cases.push(case("270M qkv, last layers", format, [32, 32, 1920, 1280], [0, 1920], random()));
        }
        cases.push(case("270M qkv, first layers", format, [16, 16, 1152, 1280], [0, 1152], random()));
        cases.push(case("two tokens", format, [2, 2, 64, 1280], [0, 64], random()));
        cases.push(case("one row and column step", format, [3, 3, 1, 32], [0, 1], random()));
        cases.push(case("half a scale word", format, [7, 7, 33, 96], [0, 33], random()));
        cases.push(case("last rows of a prefill", format, [70, 10, 33, 96], [0, 33], random()));
        cases.push(case("part of a split weight", format, [19, 17, 40, 160], [5, 50], random()));
        cases.push(case("a token and a row past a tile", format, [33, 33, 65, 64], [0, 65], random()));
        cases.push(case("zero rows", format, [9, 9, 10, 256], [0, 10], Fill::Zero));
        cases.push(case("mean far below eps", format, [9, 9, 10, 256], [0, 10], Fill::Uniform(1e-5)));
        cases.push(case("magnitudes 2^-20 to 2^20", format, [9, 9, 10, 256], [0, 10], Fill::Extreme));
    }
    cases
}
