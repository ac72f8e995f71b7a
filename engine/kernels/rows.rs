//! What the kernels of `lib/rows.wgsl` share: a weight times a few rows of activations.
//!
//! A workgroup computes four rows of the weight for a tile of tokens, or four for each invocation. The sum of one
//! token must not depend on how many others there are: so nothing that is tuned, and no default, follows from their
//! number.

use super::{Choice, Cost, Fragment, Tier, Tunable, dim, fragment, grid, integers_fragment, weight_fragment};
use crate::quant::Format;
use crate::tensor::{TensorId, Tensors};

/// Most tokens of one sequence that take these kernels in place of tiles, and attend row by row: they read each weight
/// once for as many. A prompt's products may take them up to another number, where that was tuned.
pub const FEW_TOKENS: usize = 8;

/// Most rows of activations that these kernels take: one token for each sequence of a batch, or a short prompt.
pub const MOST_TOKENS: usize = 64;

/// Rows of the weight that a workgroup, or an invocation, computes.
const ROWS: usize = 4;

/// What rounding activations to 8 bits adds at most to the expected NMSE of products at tier `int8`, whatever
/// they are. With `m` the largest magnitude of a block of 32, errors are uniform in steps of `m / 127`: their
/// squares add up to `32 / 12 (m / 127)^2` = 1.65e-4 `m^2`, those of the values to at least `m^2`. Uniform
/// values have 1.5e-5. That the integers are right to the last is what `tests/rows.rs` checks.
pub(super) const INT8_ERROR: f64 = 2e-4;

/// The sizes of a product `[T, K] x [rows, K]`.
#[derive(Clone, Debug)]
pub(super) struct Product {
    pub format: Format,
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
}

impl Product {
    /// Returns the product of a weight with `tokens` rows.
    ///
    /// # Panics
    /// When there is no token or too many, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, weight: TensorId, tokens: usize) -> Self {
        let &[rows, cols] = tensors[weight].shape.dims() else { panic!("a weight is [rows, K]") };
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        assert!(cols.is_multiple_of(32), "K {cols} is no multiple of 32");
        assert!((1..=MOST_TOKENS).contains(&tokens), "{tokens} tokens: 1 to {MOST_TOKENS} are few");
        Self { format, tokens, rows, cols }
    }

    /// Returns the sizes by which calls are tuned: the tokens are none, see above.
    pub fn shape(&self) -> String {
        format!("{} x {}, {}", self.rows, self.cols, self.format)
    }

    /// Returns the same for a weight of gate and up rows.
    pub fn gated_shape(&self) -> String {
        format!("2 x {} x {}, {}", self.rows / 2, self.cols, self.format)
    }

    /// Returns what may be tuned.
    pub fn tunables(&self) -> Vec<Tunable> {
        // What was fastest on an H200 for most shapes of the 270M: 8.9 us with 32 and 6.5 us with 128 for [1280, 3072] q4_0.
        let default = match self.cols {
            ..1024 => 32,
            1024..1536 => 64,
            _ => 128,
        };
        vec![
            Tunable { values: vec![8, 16, 32, 64, 128], ..Tunable::workgroup(default) },
            Tunable { name: "APART", default: 0, values: vec![0, 1] },
        ]
    }

    /// Returns a workgroup of one subgroup, which is cheap to reduce: with 8 invocations in place of 32
    /// `[1152, 1280]` took 0.57 of the time in q8_0 and 0.68 in q4_0 on llvmpipe, whose subgroups are 8. With
    /// subgroups of 32 the default is one to four. Subgroups of 8 are those of
    /// processors, where rows apart took 0.73 of the time in q8_0 and 0.56 in q4_0.
    pub fn suited_to(&self, size: u32) -> Choice {
        let apart = (size == 8).then(|| ("APART".to_owned(), 1));
        (size != 32).then(|| ("WG".to_owned(), size)).into_iter().chain(apart).collect()
    }

    /// Whether each invocation has rows of its own, which takes subgroups.
    fn apart(&self, tier: Tier, choice: &Choice) -> bool {
        tier.subgroup && choice.of(&self.tunables()[1]) == 1
    }

    /// Returns the fours of rows that one workgroup takes.
    fn quads(&self, tier: Tier, choice: &Choice) -> usize {
        if self.apart(tier, choice) { choice.of(&self.tunables()[0]) as usize } else { 1 }
    }

    /// Returns the tokens that one workgroup takes: 1, 2, 4 or, where the sums of 8 fit the workgroup memory, 8.
    fn tile(&self, tier: Tier, choice: &Choice) -> usize {
        let most = if tier.subgroup && self.quads(tier, choice) <= 64 { 8 } else { 4 };
        self.tokens.next_power_of_two().min(most)
    }

    /// Returns the fragments of a kernel: its own, and what all of these kernels share.
    pub fn source(&self, tier: Tier, own: [Fragment; 2]) -> Vec<Fragment> {
        let [products, weight] = match self.format {
            Format::Q8_0 | Format::Q4_0 if tier.int8 => {
                [fragment!("lib/products_int8.wgsl"), integers_fragment(self.format)]
            }
            format => [fragment!("lib/products_f32.wgsl"), weight_fragment(format)],
        };
        let [kernel, activation] = own;
        vec![kernel, fragment!("lib/rows.wgsl"), activation, products, tier.reduce4(), weight]
    }

    /// Returns what rounding activations to 8 bits adds to the error of a product.
    pub fn rounding(&self, tier: Tier) -> f64 {
        match self.format {
            Format::Q8_0 | Format::Q4_0 if !tier.int8 => 0.0,
            // No other product averages out what cancels in the one.
            Format::Q8_0 | Format::Q4_0 if self.tokens * self.rows == 1 => 16.0 * INT8_ERROR,
            Format::Q8_0 | Format::Q4_0 => INT8_ERROR,
            Format::F32 | Format::F16 | Format::Bf16 => 0.0,
        }
    }

    /// Returns the same for a gate times an up product: the errors of both.
    pub fn gated_rounding(&self, tier: Tier) -> f64 {
        2.0 * self.rounding(tier)
    }

    /// Returns the values of the shader's `override` declarations.
    pub fn overrides(&self, tier: Tier, choice: &Choice) -> Vec<(&'static str, f64)> {
        let wg = choice.of(&self.tunables()[0]);
        let apart = f64::from(u8::from(self.apart(tier, choice)));
        vec![("WG", f64::from(wg)), ("APART", apart), ("TOKENS", f64::from(dim(self.tile(tier, choice))))]
    }

    /// Returns the grid: all rows with every tile of tokens, the tiles of one weight side by side.
    pub fn grid(&self, tier: Tier, choice: &Choice) -> [u32; 3] {
        self.groups(self.rows.div_ceil(ROWS), tier, choice)
    }

    /// Returns the same for a weight of gate and up rows: half of the four rows are gates.
    pub fn gated_grid(&self, tier: Tier, choice: &Choice) -> [u32; 3] {
        self.groups((self.rows / 2).div_ceil(ROWS / 2), tier, choice)
    }

    /// Returns the grid of so many fours of rows.
    fn groups(&self, quads: usize, tier: Tier, choice: &Choice) -> [u32; 3] {
        grid(quads.div_ceil(self.quads(tier, choice)) * self.tokens.div_ceil(self.tile(tier, choice)))
    }

    /// Returns the bytes of the weight and of the activations, and the operations of the products.
    pub fn cost(&self) -> Cost {
        Cost {
            read: self.format.bytes(self.rows, self.cols) + 4 * (self.tokens * self.cols) as u64,
            written: 0,
            flops: 2 * (self.tokens * self.rows * self.cols) as u64,
        }
    }
}

/// Returns the dot product of two rows.
pub(super) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Returns a row times the gains of its columns, scaled to unit root mean square.
pub(super) fn normed(x: &[f64], norm: &[f64], eps: f32) -> Vec<f64> {
    let mean = dot(x, x) / x.len() as f64;
    let scale = 1.0 / (mean + f64::from(eps)).sqrt();
    x.iter().zip(norm).map(|(x, norm)| x * norm * scale).collect()
}
