//! The cases of the products: real projections of the published sizes in every format, every kind of ragged edge,
//! parts of a split weight, and rows that are hard to normalise or to gate.

use super::{Epilogue, NAMES, Path, Product, Prologue};
use crate::kernels::{Case, CaseBuilder, Fill};
use crate::quant::Format;
use crate::tensor::DType;

/// A case under construction: a kernel of the family, its sizes and the values of its tensors.
#[derive(Clone, Debug)]
pub struct ProductCase {
    name: &'static str,
    label: String,
    format: Format,
    tokens: usize,
    outputs: usize,
    cols: usize,
    /// Rows of `x`, if they are more than `tokens`.
    x_rows: Option<usize>,
    /// First column that is written, and columns of `out`, if the weight is a part.
    part: Option<[usize; 2]>,
    x: Fill,
    gains: Fill,
    residual: Fill,
    weight: Fill,
    bench: bool,
}

impl ProductCase {
    /// Starts a case of a kernel with `[tokens, outputs, K]` and random inputs.
    ///
    /// # Panics
    /// When the family has no kernel of that name.
    pub fn new(name: &str, label: &str, format: Format, [tokens, outputs, cols]: [usize; 3]) -> Self {
        let name = NAMES.iter().find(|known| **known == name).unwrap_or_else(|| panic!("no product `{name}`"));
        // Gates stay where exp is precise.
        let weight = if name.ends_with("swiglu") { 0.1 } else { 1.0 };
        Self {
            name,
            label: label.to_owned(),
            format,
            tokens,
            outputs,
            cols,
            x_rows: None,
            part: None,
            x: Fill::Uniform(if name.starts_with("norm") { 2.0 } else { 1.0 }),
            gains: Fill::Uniform(1.5),
            residual: Fill::Uniform(10.0),
            weight: Fill::Uniform(weight),
            bench: false,
        }
    }

    /// Fills `x`.
    pub fn x(self, x: Fill) -> Self {
        Self { x, ..self }
    }

    /// Fills the gains of a norm.
    pub fn gains(self, gains: Fill) -> Self {
        Self { gains, ..self }
    }

    /// Fills the residual.
    pub fn residual(self, residual: Fill) -> Self {
        Self { residual, ..self }
    }

    /// Fills the weight.
    pub fn weight(self, weight: Fill) -> Self {
        Self { weight, ..self }
    }

    /// Takes inputs of one sign: with a single output, errors of cancellation would not average out.
    fn positive(self) -> Self {
        let values = |n: usize| Fill::Values((0..n).map(|i| (i * 37 % 64 + 32) as f64 / 64.0).collect());
        let (weight_rows, tokens, cols) = (self.weight_rows(), self.tokens, self.cols);
        self.x(values(tokens * cols)).gains(values(cols)).weight(values(weight_rows * cols))
    }

    fn weight_rows(&self) -> usize {
        self.outputs * if self.name.ends_with("swiglu") { 2 } else { 1 }
    }

    /// Lets benches time it.
    fn bench(self) -> Self {
        Self { bench: true, ..self }
    }

    /// Takes the last of `x_rows` rows of `x`.
    fn last_of(self, x_rows: usize) -> Self {
        Self { x_rows: Some(x_rows), ..self }
    }

    /// Writes the columns from `row0` on, of `width`.
    fn part(self, row0: usize, width: usize) -> Self {
        Self { part: Some([row0, width]), ..self }
    }

    /// Builds the case.
    pub fn build(self) -> Case {
        let weight_rows = self.weight_rows();
        let Self { name, label, format, tokens, outputs, cols, .. } = self;
        let [row0, width] = self.part.unwrap_or([0, outputs]);
        let x_rows = self.x_rows.unwrap_or(tokens);
        let (normed, gated) = (name.starts_with("norm"), name.ends_with("swiglu"));
        let path = if name.contains("matvec") { Path::Rows } else { Path::Tiles };
        let last = if x_rows > tokens { format!("last {tokens} of ") } else { String::new() };
        let sizes = if gated { format!("2 x {outputs}") } else { format!("{outputs}") };
        let at = self.part.map_or_else(String::new, |_| format!(" at {row0} of {width}"));
        let label = format!("{label}, {last}T {x_rows}, {sizes} x {cols}{at}, {format}");
        let mut case = CaseBuilder::new(label).benched(self.bench);
        let x = case.tensor("x", [x_rows, cols], DType::F32, self.x);
        let weight = case.tensor("weight", [weight_rows, cols], format.dtype(), self.weight);
        let out = case.tensor("out", [tokens, width], DType::F32, Fill::Zero);
        let prologue = if normed {
            Prologue::RmsNorm { gains: case.tensor("gains", [cols], DType::F32, self.gains), eps: 1e-6 }
        } else {
            Prologue::Plain
        };
        let epilogue = match name {
            _ if gated => Epilogue::SwiGlu,
            _ if name.ends_with("add") => {
                Epilogue::Add { residual: case.tensor("residual", [tokens, width], DType::F32, self.residual) }
            }
            _ => Epilogue::Store,
        };
        let kernel = Product::new(&case.tensors, (prologue, path, epilogue), [x, weight, out], row0);
        match path {
            _ if gated => case.build(kernel, 1e-11, "f32 sums of at most 3072 products, WGSL's exp of the gate"),
            Path::Rows => case.build(kernel, 1e-12, "f32 sums of at most 12288 products, and one f32 rsqrt"),
            // Rounding grows with the length of a chain of adds: an NMSE of 3e-16 K.
            Path::Tiles => {
                case.build(kernel, 1e-11, "f32 sums, each one chain of at most the 3B's 12288 products: 3.7e-12")
            }
        }
    }
}

/// Returns the cases of a kernel of the family.
pub fn cases(name: &str) -> Vec<Case> {
    let drafts = if name.contains("matvec") { rows } else { tiles };
    let mut cases: Vec<Case> =
        Format::ALL.into_iter().flat_map(|format| drafts(name, format)).map(ProductCase::build).collect();
    if name == "matvec" {
        // More workgroups than one dimension of a grid holds.
        let tall = ProductCase::new(name, "a grid of two dimensions", Format::Q4_0, [1, 262_149, 32]);
        cases.push(tall.build());
    }
    cases
}

/// Cases of a few tokens.
fn rows(name: &str, format: Format) -> Vec<ProductCase> {
    let draft = |label: &str, sizes| ProductCase::new(name, label, format, sizes);
    // Sizes of real models: those for every format, then those for q8_0 only.
    let (every, one): (&[_], &[_]) = match name {
        "matvec" => (
            &[
                ("270M qkv", [1, 1152, 1280]),
                ("270M down", [1, 1280, 5120]),
                ("3B out", [1, 3072, 1536]),
                ("270M qkv, last layers", [1, 1920, 1280]),
            ],
            &[
                ("270M head", [1, 32000, 1280]),
                ("270M qkv", [4, 1152, 1280]),
                ("270M qkv", [8, 1152, 1280]),
                ("270M qkv", [64, 1152, 1280]),
            ],
        ),
        "matvec_add" => (
            &[("270M out, first layer", [1, 1280, 768]), ("3B down, first layer", [1, 3072, 1536])],
            &[("270M down", [1, 1280, 5120])],
        ),
        "norm_matvec" => (
            &[("270M qkv", [1, 1152, 1280])],
            &[("3B qkv, first layer", [1, 2304, 3072]), ("270M head", [1, 32000, 1280])],
        ),
        "matvec_swiglu" => {
            (&[("270M first layer", [1, 768, 1280]), ("3B first layer", [1, 1536, 3072])], &[])
        }
        _ => (&[("270M first layer", [1, 768, 1280])], &[("3B first layer", [1, 1536, 3072])]),
    };
    let one = if format == Format::Q8_0 { one } else { &[] };
    let mut drafts: Vec<_> =
        every.iter().chain(one).map(|&(label, sizes)| draft(label, sizes).bench()).collect();
    drafts.extend([
        draft("one output", [1, 1, 32]).positive(),
        draft("odd, half a scale word", [1, 33, 96]),
        draft("as many tokens as can be", [64, 5, 160]),
    ]);
    let past = draft("a token past a tile", [9, 33, 96]);
    drafts.extend(match name.ends_with("swiglu") {
        true => vec![draft("a full tile", [8, 3, 1056]), past],
        false => vec![draft("a full tile", [8, 6, 1056]), past.part(7, 50)],
    });
    let part = |tokens| draft("part of a split weight", [tokens, 7, 160]).part(5, 40);
    drafts.extend(match name {
        "matvec" => {
            vec![draft("two tokens", [2, 33, 96]), part(1), part(3), draft(MAGNITUDES, [1, 10, 256]).x(Fill::Extreme)]
        }
        "matvec_add" => vec![part(5)],
        "matvec_swiglu" => vec![draft(GATES, [1, 10, 256]).x(Fill::Uniform(3e4))],
        "norm_matvec" => vec![
            part(5).last_of(7),
            draft(LAST, [1, 33, 96]).last_of(70),
            draft(MAGNITUDES, [8, 10, 256]).x(Fill::Extreme),
        ],
        _ => vec![draft(GATES, [1, 10, 256]).gains(Fill::Uniform(3e4))],
    });
    drafts.extend(small_rows(draft, name, 8));
    drafts
}

/// Cases of many tokens.
fn tiles(name: &str, format: Format) -> Vec<ProductCase> {
    let draft = |label: &str, sizes| ProductCase::new(name, label, format, sizes);
    let (every, one): (_, &[_]) = match name {
        "matmul" => (
            ("270M out", [32, 1280, 768]),
            &[("270M qkv, last layers", [32, 1920, 1280]), ("wide", [64, 8192, 256])],
        ),
        "matmul_add" => {
            (("270M out, first layer", [32, 1280, 768]), &[("270M down, last layer", [16, 1280, 5120])])
        }
        "norm_matmul" => {
            (("270M qkv, first layers", [16, 1152, 1280]), &[("270M qkv, last layers", [32, 1920, 1280])])
        }
        _ => (("270M first layer", [32, 768, 1280]), &[]),
    };
    let one = if format == Format::Q8_0 { one } else { &[] };
    let mut drafts: Vec<_> =
        [every].iter().chain(one).map(|&(label, sizes)| draft(label, sizes).bench()).collect();
    drafts.extend([draft("one output", [3, 1, 32]).positive(), draft("odd, half a scale word", [7, 33, 96])]);
    let [few, past] = ["two tokens", "a token and an output past a tile"];
    drafts.extend(match name.ends_with("swiglu") {
        true => vec![draft(few, [2, 64, 256]), draft(past, [33, 17, 64])],
        false => vec![draft(few, [2, 64, 1280]), draft(past, [33, 65, 64])],
    });
    let part = draft("part of a split weight", [17, 40, 160]).part(5, 50);
    drafts.extend(match name {
        "matmul" => {
            vec![part, draft("tall tiles", [35, 8161, 32]), draft(MAGNITUDES, [5, 10, 256]).x(Fill::Extreme)]
        }
        "matmul_add" => vec![part],
        "matmul_swiglu" => {
            vec![draft("tall tiles", [35, 4081, 32]), draft(GATES, [4, 10, 256]).x(Fill::Uniform(3e4))]
        }
        "norm_matmul" => vec![
            part.last_of(19),
            draft(LAST, [10, 33, 96]).last_of(70),
            draft(MAGNITUDES, [9, 10, 256]).x(Fill::Extreme),
        ],
        _ => vec![draft(GATES, [4, 10, 256]).gains(Fill::Uniform(3e4))],
    });
    drafts.extend(small_rows(draft, name, 9));
    drafts
}

const MAGNITUDES: &str = "magnitudes 2^-20 to 2^20";
const GATES: &str = "gates in the thousands";
const LAST: &str = "last rows of a prefill";

/// Rows that are hard to normalise.
fn small_rows(
    draft: impl Fn(&str, [usize; 3]) -> ProductCase,
    name: &str,
    tokens: usize,
) -> impl Iterator<Item = ProductCase> {
    let rows = [("zero rows", Fill::Zero), ("mean far below eps", Fill::Uniform(1e-5))];
    let draft = move |(label, x)| draft(label, [tokens, 10, 256]).x(x);
    let normed = name.starts_with("norm");
    rows.into_iter().filter(move |_| normed).map(draft)
}
