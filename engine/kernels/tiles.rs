//! What the kernels of `lib/tile_*.wgsl` share: a weight times many rows of activations, tile by tile.
//!
//! A workgroup computes a tile of tokens x rows of the weight. How large it is decides how fast a call is and not
//! one bit of what it computes: a row of activations has the same products whatever stands beside it.

use super::{Choice, Cost, Fragment, Tier, Tunable, dim, fragment, weight_fragment};
use crate::quant::Format;
use crate::tensor::{TensorId, Tensors};

/// Bytes of workgroup memory that WebGPU has everywhere.
const MEMORY: u32 = 16 << 10;

/// Workgroups that occupy a large GPU: tiles are no larger than leaves as many, where there are.
const OCCUPIED: usize = 256;

/// The sizes of a product `[T, K] x [rows, K]`.
#[derive(Clone, Debug)]
pub(super) struct Tiles {
    pub format: Format,
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
}

/// The sizes of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Groups of 8 tokens.
    groups: u32,
    /// Rows of the weight.
    rows: u32,
    /// Columns that are staged at once.
    step: u32,
}

impl Tile {
    /// Whether workgroup memory holds the staged columns of its tokens and rows.
    fn fits(self) -> bool {
        4 * self.step * (8 * self.groups + self.rows) <= MEMORY
    }
}

impl Tiles {
    /// Returns the product of a weight with `tokens` rows.
    ///
    /// # Panics
    /// When there is no token, `K` is no multiple of 32 or the weight has no weight format.
    pub fn new(tensors: &Tensors, weight: TensorId, tokens: usize) -> Self {
        let &[rows, cols] = tensors[weight].shape.dims() else { panic!("a weight is [rows, K]") };
        let format = Format::of(tensors[weight].dtype).expect("a weight has a weight format");
        assert!(cols.is_multiple_of(32), "K {cols} is no multiple of 32");
        assert!(tokens > 0 && rows > 0, "{tokens} tokens, {rows} rows");
        Self { format, tokens, rows, cols }
    }

    /// Returns the sizes by which calls are tuned.
    pub fn shape(&self) -> String {
        format!("T {}, {} x {}, {}", self.tokens, self.rows, self.cols, self.format)
    }

    /// Returns the same for a weight of gate and up rows.
    pub fn gated_shape(&self) -> String {
        format!("T {}, 2 x {} x {}, {}", self.tokens, self.rows / 2, self.cols, self.format)
    }

    /// Returns what may be tuned: the groups of 8 tokens and the rows of a tile, and the columns staged at once.
    pub fn tunables(&self) -> Vec<Tunable> {
        let Tile { groups, rows, step } = self.default_tile();
        let steps = if self.cols.is_multiple_of(64) { vec![32, 64] } else { vec![32] };
        vec![
            Tunable { name: "GROUPS", default: groups, values: vec![1, 2, 3, 4, 8] },
            Tunable { name: "ROWS", default: rows, values: vec![32, 64] },
            Tunable { name: "STEP", default: step, values: steps },
        ]
    }

    /// Returns the largest tile that leaves workgroups enough, of no more groups than there are.
    fn default_tile(&self) -> Tile {
        let groups = self.tokens.div_ceil(8);
        let few = dim(groups.min(4));
        let most = if groups > 4 { 8 } else { few };
        let leaves = |&(groups, rows): &(u32, u32)| self.groups_of(groups, rows) >= OCCUPIED;
        let (groups, rows) = [(most, 64), (most, 32)].into_iter().find(leaves).unwrap_or((few, 32));
        Tile { groups, rows, step: 32 }
    }

    /// The workgroups that tiles of so many groups and rows take.
    fn groups_of(&self, groups: u32, rows: u32) -> usize {
        self.tokens.div_ceil(8 * groups as usize) * self.rows.div_ceil(rows as usize)
    }

    /// The tile as chosen, with as many columns at once as fit.
    fn tile(&self, choice: &Choice) -> Tile {
        let tunables = self.tunables();
        let [groups, rows, step] = [0, 1, 2].map(|n| choice.of(&tunables[n]));
        let tile = Tile { groups, rows, step };
        if tile.fits() { tile } else { Tile { step: 32, ..tile } }
    }

    /// Returns every choice of a tile that workgroup memory holds.
    pub fn choices(&self, _tier: Tier) -> Vec<Choice> {
        let tunables = self.tunables();
        let as_chosen = |choice: &Choice| choice.of(&tunables[2]) == self.tile(choice).step;
        Choice::all(&tunables).into_iter().filter(as_chosen).collect()
    }

    /// Returns the fragments of a kernel: its own, how it reads x (`lib/tile_plain.wgsl` or
    /// `lib/tile_normed.wgsl`), and what all of these kernels share.
    pub fn source(&self, _tier: Tier, own: [Fragment; 2]) -> Vec<Fragment> {
        let [kernel, reading] = own;
        vec![kernel, fragment!("lib/tile_f32.wgsl"), reading, weight_fragment(self.format)]
    }

    /// Returns what the tier's rounding of activations adds to the error of a product.
    pub fn rounding(&self, _tier: Tier) -> f64 {
        0.0
    }

    /// Returns the same for a gate times an up product: the errors of both.
    pub fn gated_rounding(&self, tier: Tier) -> f64 {
        2.0 * self.rounding(tier)
    }

    /// Returns the values of the shader's `override` declarations.
    pub fn overrides(&self, _tier: Tier, choice: &Choice) -> Vec<(&'static str, f64)> {
        let Tile { groups, rows, step } = self.tile(choice);
        vec![("GROUPS", f64::from(groups)), ("ROWS", f64::from(rows)), ("STEP", f64::from(step))]
    }

    /// Returns the grid: tiles of tokens side by side, for all tiles of rows. Gate and up rows share tiles, so a
    /// weight of both takes as many as any other.
    pub fn grid(&self, _tier: Tier, choice: &Choice) -> [u32; 3] {
        let Tile { groups, rows, .. } = self.tile(choice);
        let tokens = self.tokens.div_ceil(8 * groups as usize);
        [dim(tokens), dim(self.rows.div_ceil(rows as usize)), 1]
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
