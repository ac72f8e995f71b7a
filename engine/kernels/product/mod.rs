//! `out[r, row0 + n] = epilogue(W prologue(x)[T - R + r, :])[n]`: every projection and the head, in every weight
//! format.
//!
//! A product is one kernel with three choices: the [`Path`] of its loop, the [`Prologue`] that is applied to
//! x and the [`Epilogue`] that is applied to its sums. Each choice is one file of `shaders/product/`. Fusing
//! saves a launch, and the round trip of the tensor that is not stored: `[R, K]` for a norm, `[R, N]` for a
//! residual add, `[R, 2F]` for a gate. `out` may have fewer rows than `x`: then the last ones are computed,
//! so that the head runs only for the rows whose logits are needed.

mod cases;
mod rows;
mod tiles;

use std::borrow::Cow;

use bytemuck::{Pod, Zeroable};

pub use cases::{ProductCase, cases};
pub use rows::{FEW_TOKENS, MOST_TOKENS};

use super::math::{dot, rms_norm, swiglu};
use super::{Choice, Cost, Dispatch, Fragment, Kernel, Memory, Operand, Tier, Tunable, dim, fragment};
use crate::quant::Format;
use crate::tensor::{DType, TensorId, Tensors};

/// The kernels of the family. Their names are prologue, path and epilogue; any other combination panics when
/// a graph is built, because no model needs it.
pub const NAMES: &[&str] = &[
    "matmul",
    "matmul_add",
    "matmul_swiglu",
    "matvec",
    "matvec_add",
    "matvec_swiglu",
    "norm_matmul",
    "norm_matmul_swiglu",
    "norm_matvec",
    "norm_matvec_swiglu",
];

/// How the loop of a product iterates over tokens and rows of the weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// Row by row, for a few tokens: `product/rows.wgsl`. The result of a token does not depend on the
    /// others.
    Rows,
    /// Tile by tile, for many tokens: `product/tile_*.wgsl`.
    Tiles,
}

/// What is applied to `x` before the product.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Prologue {
    /// Nothing.
    Plain,
    /// RMSNorm of each row.
    RmsNorm {
        /// Scale of each column, `[K]` f32.
        gains: TensorId,
        /// Added to the mean of squares.
        eps: f32,
    },
}

/// What is applied to the sums before they are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Epilogue {
    /// Nothing.
    Store,
    /// The residual connection.
    Add {
        /// First summand, `[R, N]` f32.
        residual: TensorId,
    },
    /// SiLU(gate) * up, of a weight that has all gate rows, then all up rows.
    SwiGlu,
}

/// A weight times the rows of an activation.
#[derive(Clone, Debug)]
pub struct Product {
    /// Activations, `[T, K]` f32.
    pub x: TensorId,
    /// Rows of the matrix, in any weight format: `[rows, K]`, or `[2F, K]` for SwiGLU.
    pub weight: TensorId,
    /// Results, `[R, N]` f32 with `R <= T`. One column is written per output of the weight.
    pub out: TensorId,
    /// The first column that is written: the row of the whole matrix at which `weight` begins.
    pub row0: usize,
    /// The loop.
    pub path: Path,
    /// What is applied to `x`.
    pub prologue: Prologue,
    /// What is applied to the sums.
    pub epilogue: Epilogue,
    name: &'static str,
    size: Size,
}

/// The sizes of a product.
#[derive(Clone, Copy, Debug)]
struct Size {
    format: Format,
    /// Rows of `out`, `R`.
    tokens: usize,
    /// Rows of `x`, `T`.
    x_rows: usize,
    /// Rows of the weight.
    rows: usize,
    /// Columns of the weight, `K`.
    cols: usize,
    /// Columns of `out` that are written.
    outputs: usize,
    /// Columns of `out`, `N`.
    width: usize,
}

/// The loop of a path: its shader text, and how a call is divided into workgroups.
trait Loop {
    /// Returns the file of the loop, then the fragments that it uses.
    fn source(&self, size: &Size, tier: Tier) -> Vec<Fragment>;

    /// Returns the tuning key.
    fn shape(&self, size: &Size) -> String;

    fn tunables(&self, size: &Size) -> Vec<Tunable>;

    fn choices(&self, size: &Size, _tier: Tier) -> Vec<Choice> {
        Choice::all(&self.tunables(size))
    }

    fn suited_to(&self, subgroup: u32) -> Choice;

    /// Returns the values of the overrides, and the grid.
    fn cut(&self, size: &Size, tier: Tier, choice: &Choice) -> (Vec<(&'static str, f64)>, [u32; 3]);

    /// Returns what the tier's rounding adds to the NMSE of a product.
    fn rounding(&self, size: &Size, tier: Tier) -> f64;
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    cols: u32,
    outputs: u32,
    column: u32,
    tokens: u32,
    width: u32,
    first_row: u32,
    last_row: u32,
    eps: f32,
}

const _: () = assert!(size_of::<Params>() == 32);

/// A prologue or an epilogue as the kernel needs it.
struct Part {
    /// Its part of the kernel's name.
    word: &'static str,
    fragment: Fragment,
    /// The tensor that it binds, at binding 3.
    operand: Option<TensorId>,
    /// Operations for each value of `x`, or for each output.
    flops: usize,
}

impl Prologue {
    fn part(self) -> Part {
        match self {
            Self::Plain => Part { word: "", fragment: fragment!("product/plain.wgsl"), operand: None, flops: 0 },
            Self::RmsNorm { gains, .. } => Part {
                word: "norm_",
                fragment: fragment!("product/rms_norm.wgsl"),
                operand: Some(gains),
                flops: 4,
            },
        }
    }

    /// Returns a row of `x` after the prologue.
    fn apply<'a>(self, memory: &Memory, x: &'a [f64]) -> Cow<'a, [f64]> {
        match self {
            Self::Plain => x.into(),
            Self::RmsNorm { gains, eps } => rms_norm(x, memory.read(gains), eps).into(),
        }
    }
}

impl Epilogue {
    fn part(self) -> Part {
        match self {
            Self::Store => Part { word: "", fragment: fragment!("product/store.wgsl"), operand: None, flops: 0 },
            Self::Add { residual } => Part {
                word: "_add",
                fragment: fragment!("product/add.wgsl"),
                operand: Some(residual),
                flops: 1,
            },
            Self::SwiGlu => {
                Part { word: "_swiglu", fragment: fragment!("product/swiglu.wgsl"), operand: None, flops: 5 }
            }
        }
    }

    /// Returns the weight rows per output: output `n` takes rows `n`, `n + outputs`, ...
    fn rows_per_output(self) -> usize {
        match self {
            Self::Store | Self::Add { .. } => 1,
            Self::SwiGlu => 2,
        }
    }

    /// Returns element `at` of `out`; `y` returns the products that it takes.
    fn apply(self, memory: &Memory, at: usize, y: impl Fn(usize) -> f64) -> f64 {
        match self {
            Self::Store => y(0),
            Self::Add { residual } => memory.read(residual)[at] + y(0),
            Self::SwiGlu => swiglu(y(0), y(1)),
        }
    }
}

impl Product {
    /// Returns the product of `x` and the transposed `weight` into columns `row0..` of `out`.
    ///
    /// # Panics
    /// When shapes do not fit, there is no kernel of these choices (see [`NAMES`]), `K` is no multiple of 32, the
    /// weight has no weight format, or `R` is past 64 on [`Path::Rows`].
    pub fn new(
        tensors: &Tensors,
        (prologue, path, epilogue): (Prologue, Path, Epilogue),
        [x, weight, out]: [TensorId; 3],
        row0: usize,
    ) -> Self {
        let name = name(prologue, path, epilogue);
        let size = Size::new(tensors, [x, weight, out], epilogue.rows_per_output());
        let Size { tokens, x_rows, cols, outputs, width, .. } = size;
        assert!(row0 + outputs <= width, "`{name}`: columns {row0}..{} of {width}", row0 + outputs);
        assert!((1..=x_rows).contains(&tokens), "`{name}`: {tokens} of {x_rows} rows");
        if let Prologue::RmsNorm { gains, .. } = prologue {
            tensors.expect(gains, [cols], DType::F32);
        }
        match epilogue {
            Epilogue::Store => {}
            Epilogue::Add { residual } => tensors.expect(residual, [tokens, width], DType::F32),
            // The gate and the up of an output have to be in one part.
            Epilogue::SwiGlu => assert!((row0, outputs) == (0, width), "`{name}`: F {width}, {outputs} at {row0}"),
        }
        if path == Path::Rows {
            assert!(tokens <= MOST_TOKENS, "`{name}`: {tokens} tokens, at most {MOST_TOKENS}");
        }
        Self { x, weight, out, row0, path, prologue, epilogue, name, size }
    }

    /// Returns the product with the fields that `change` sets.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn with(&self, tensors: &Tensors, change: impl FnOnce(&mut Self)) -> Self {
        let mut changed = self.clone();
        change(&mut changed);
        let Self { x, weight, out, row0, path, prologue, epilogue, .. } = changed;
        Self::new(tensors, (prologue, path, epilogue), [x, weight, out], row0)
    }

    fn body(&self) -> &'static dyn Loop {
        match self.path {
            Path::Rows => &rows::Rows,
            Path::Tiles => &tiles::Tiles,
        }
    }
}

/// Returns the name of a combination.
///
/// # Panics
/// When there is no such kernel.
fn name(prologue: Prologue, path: Path, epilogue: Epilogue) -> &'static str {
    let path = match path {
        Path::Rows => "matvec",
        Path::Tiles => "matmul",
    };
    let name = [prologue.part().word, path, epilogue.part().word].concat();
    NAMES.iter().find(|known| **known == name).unwrap_or_else(|| panic!("there is no kernel `{name}`"))
}

impl Size {
    fn new(tensors: &Tensors, [x, weight, out]: [TensorId; 3], rows_per_output: usize) -> Self {
        let dims = |id: TensorId| match *tensors[id].shape.dims() {
            [rows, cols] => (rows, cols),
            _ => panic!("`{}`: a product is of matrices", tensors[id].name),
        };
        let ((x_rows, _), (rows, cols), (tokens, width)) = (dims(x), dims(weight), dims(out));
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        assert!(cols.is_multiple_of(32), "K {cols} is no multiple of 32");
        assert!(rows > 0 && rows.is_multiple_of(rows_per_output), "{rows} rows, {rows_per_output} an output");
        tensors.expect(x, [x_rows, cols], DType::F32);
        tensors.expect(out, [tokens, width], DType::F32);
        Self { format, tokens, x_rows, rows, cols, outputs: rows / rows_per_output, width }
    }

    /// Returns the weight's sizes and format as in a tuning key: `2 x 768 x 1280, q8_0`.
    fn weight(&self) -> String {
        let Self { format, rows, cols, outputs, .. } = self;
        match rows / outputs {
            1 => format!("{rows} x {cols}, {format}"),
            each => format!("{each} x {outputs} x {cols}, {format}"),
        }
    }
}

impl Kernel for Product {
    fn name(&self) -> &'static str {
        self.name
    }

    fn source(&self, tier: Tier) -> Vec<Fragment> {
        // The loop comes first: tuned values are keyed by the text of the first file.
        let mut fragments = self.body().source(&self.size, tier);
        let shared = fragment!("product/bindings.wgsl");
        fragments.splice(1..1, [shared, self.prologue.part().fragment, self.epilogue.part().fragment]);
        fragments
    }

    fn operands(&self) -> Vec<Operand> {
        let whole = self.size.outputs == self.size.width;
        let out = if whole { Operand::write(self.out) } else { Operand::read_write(self.out) };
        let parts = [self.prologue.part(), self.epilogue.part()];
        let bound = parts.into_iter().filter_map(|part| part.operand).map(Operand::read);
        [Operand::read(self.x), out].into_iter().chain(bound).chain([Operand::weight(self.weight)]).collect()
    }

    fn shape(&self) -> String {
        self.body().shape(&self.size)
    }

    fn tunables(&self) -> Vec<Tunable> {
        self.body().tunables(&self.size)
    }

    fn choices(&self, tier: Tier) -> Vec<Choice> {
        self.body().choices(&self.size, tier)
    }

    fn suited_to(&self, subgroup: u32) -> Choice {
        self.body().suited_to(subgroup)
    }

    fn dispatch(&self, tier: Tier, choice: &Choice) -> Dispatch {
        let Size { tokens, x_rows, cols, outputs, width, .. } = self.size;
        let params = Params {
            cols: dim(cols),
            outputs: dim(outputs),
            column: dim(self.row0),
            tokens: dim(tokens),
            width: dim(width),
            first_row: dim(x_rows - tokens),
            last_row: dim(x_rows - 1),
            eps: if let Prologue::RmsNorm { eps, .. } = self.prologue { eps } else { 0.0 },
        };
        let (overrides, grid) = self.body().cut(&self.size, tier, choice);
        Dispatch { overrides, params: bytemuck::bytes_of(&params).to_vec(), grid }
    }

    fn rounding(&self, tier: Tier) -> f64 {
        // An output that takes several products has the errors of each.
        self.epilogue.rows_per_output() as f64 * self.body().rounding(&self.size, tier)
    }

    fn cost(&self, _position: usize) -> Cost {
        let Size { format, tokens, rows, cols, outputs, .. } = self.size;
        let (prologue, epilogue) = (self.prologue.part(), self.epilogue.part());
        let (values, results) = (tokens * cols, tokens * outputs);
        // A prologue binds a row, an epilogue a value for each output.
        let bound = prologue.operand.map_or(0, |_| cols) + epilogue.operand.map_or(0, |_| results);
        Cost {
            read: format.bytes(rows, cols) + 4 * (values + bound) as u64,
            written: 4 * results as u64,
            flops: (2 * values * rows + prologue.flops * values + epilogue.flops * results) as u64,
        }
    }

    fn reference(&self, memory: &mut Memory) {
        let Size { tokens, x_rows, cols, outputs, width, .. } = self.size;
        memory.update(self.out, |memory, out| {
            let (x, weight) = (memory.read(self.x), memory.read(self.weight));
            for (t, x) in x[(x_rows - tokens) * cols..].chunks(cols).enumerate() {
                let x = self.prologue.apply(memory, x);
                let y = |row: usize| dot(&weight[row * cols..][..cols], &x);
                for n in 0..outputs {
                    let at = t * width + self.row0 + n;
                    out[at] = self.epilogue.apply(memory, at, |number| y(number * outputs + n));
                }
            }
        });
    }
}
