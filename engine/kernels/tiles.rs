//! What the kernels of `lib/tile_*.wgsl` share: a weight times many rows of activations, tile by tile.
//!
//! A workgroup computes a tile of tokens x rows of the weight. How large it is decides how fast a call is and not
//! one bit of what it computes: a row of activations has the same products whatever stands beside it.

use super::rows::INT8_ERROR;
use super::{
    Choice, Cost, Fragment, MatrixShape, Tier, Tunable, dim, fragment, integers_fragment, weight_fragment,
};
use crate::quant::Format;
use crate::tensor::{TensorId, Tensors};

/// Workgroups that occupy a large GPU: tiles are no larger than leaves as many, where there are.
const OCCUPIED: usize = 256;

/// What rounding a factor to the 11 bits of f16 adds at most to the NMSE of products at tier `coop`. A value may be
/// off by 2^-10 of itself, because devices need not round to the nearest; where all are off alike, so are sums.
/// To the nearest, uniform values have 5e-8.
pub(super) const F16_ERROR: f64 = 9.6e-7;

/// The sizes of a product `[T, K] x [rows, K]`.
#[derive(Clone, Debug)]
pub(super) struct Tiles {
    pub format: Format,
    pub tokens: usize,
    pub rows: usize,
    pub cols: usize,
}

/// How a tile is computed: `lib/tile_<way>.wgsl`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Multiply-adds of f32.
    F32,
    /// Dot products of 8-bit integers.
    Int8,
    /// Matrix units.
    Coop(MatrixShape),
}

/// The sizes of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Tile {
    /// Groups of 8 tokens.
    groups: u32,
    /// Rows of the weight.
    rows: u32,
    /// Invocations of a workgroup.
    wg: u32,
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

    /// Returns the way at a tier: with matrix units where weights lie within f16's range, and are rounded anyhow or
    /// not at all.
    fn way(&self, tier: Tier) -> Way {
        match (self.format, tier.coop) {
            (Format::Q8_0 | Format::Q4_0, _) if tier.int8 => Way::Int8,
            (Format::Q8_0 | Format::Q4_0 | Format::F16, Some(shape)) => Way::Coop(shape),
            _ => Way::F32,
        }
    }

    /// Returns what may be tuned: the groups of 8 tokens and the rows of a tile, and where subgroups multiply matrices the
    /// invocations.
    pub fn tunables(&self) -> Vec<Tunable> {
        let Tile { groups, rows, wg } = self.default_tile();
        let mut tunables = vec![
            Tunable { name: "GROUPS", default: groups, values: vec![1, 2, 3, 4, 8] },
            Tunable { name: "ROWS", default: rows, values: vec![32, 64] },
        ];
        if self.way(Tier::COOP) != Way::F32 {
            tunables.push(Tunable { name: "WG", default: wg, values: vec![128, 256] });
        }
        tunables
    }

    /// Returns workgroups of four subgroups, one for each block of 32 tokens x 32 rows of a tile of 64 x 64.
    pub fn suited_to(&self, size: u32) -> Choice {
        (size == 64).then(|| ("WG".to_owned(), 256)).into_iter().collect()
    }

    /// Returns the largest tile that leaves workgroups enough, of no more groups than there are.
    fn default_tile(&self) -> Tile {
        let groups = self.tokens.div_ceil(8);
        let few = dim(groups.min(4));
        let most = if groups > 4 { 8 } else { few };
        let leaves = |&(groups, rows): &(u32, u32)| self.groups_of(groups, rows) >= OCCUPIED;
        let sizes = [(most, 64), (few, 64), (most, 32)];
        let (groups, rows) = sizes.into_iter().find(leaves).unwrap_or((few, 32));
        Tile { groups, rows, wg: 128 }
    }

    /// The workgroups that tiles of so many groups and rows take.
    fn groups_of(&self, groups: u32, rows: u32) -> usize {
        self.tokens.div_ceil(8 * groups as usize) * self.rows.div_ceil(rows as usize)
    }

    /// The tile as chosen.
    fn chosen(&self, choice: &Choice) -> Tile {
        let tunables = self.tunables();
        let [groups, rows] = [0, 1].map(|n| choice.of(&tunables[n]));
        let wg = tunables.get(2).map_or(self.default_tile().wg, |tunable| choice.of(tunable));
        Tile { groups, rows, wg }
    }

    /// The same, of what its way knows: 32 or 64 tokens on matrix units.
    fn tile(&self, tier: Tier, choice: &Choice) -> Tile {
        let tile = self.chosen(choice);
        match self.way(tier) {
            Way::F32 | Way::Int8 => Tile { wg: self.default_tile().wg, ..tile },
            Way::Coop(_) => Tile { groups: if tile.groups > 4 { 8 } else { 4 }, ..tile },
        }
    }

    /// Returns every choice of a tile that a tier computes as chosen, and what is computed for the default groups.
    pub fn choices(&self, tier: Tier) -> Vec<Choice> {
        let default = self.default_tile().groups;
        let as_chosen = |choice: &Choice| {
            let (chosen, tile) = (self.chosen(choice), self.tile(tier, choice));
            chosen == tile || chosen == Tile { groups: default, ..tile }
        };
        Choice::all(&self.tunables()).into_iter().filter(as_chosen).collect()
    }

    /// Returns the fragments of a kernel: its own, with what its places are (`lib/places_*.wgsl`) and how it reads x
    /// (`lib/tile_plain.wgsl` or `lib/tile_normed.wgsl`), and what all of these kernels share.
    pub fn source<const N: usize>(&self, tier: Tier, own: [Fragment; N]) -> Vec<Fragment> {
        let shared = match self.way(tier) {
            Way::F32 => vec![
                fragment!("lib/tile_f32.wgsl"),
                fragment!("lib/tile_sums.wgsl"),
                weight_fragment(self.format),
            ],
            Way::Int8 => vec![
                fragment!("lib/tile_int8.wgsl"),
                fragment!("lib/tile_sums.wgsl"),
                integers_fragment(self.format),
            ],
            Way::Coop(shape) => {
                let [block, matrices] = match shape {
                    MatrixShape::Sixteen => [fragment!("lib/block_16.wgsl"), fragment!("lib/coop_16.wgsl")],
                    MatrixShape::Eight => [fragment!("lib/block_8.wgsl"), fragment!("lib/coop_8.wgsl")],
                };
                vec![fragment!("lib/tile_coop.wgsl"), block, matrices, weight_fragment(self.format)]
            }
        };
        own.into_iter().chain(shared).collect()
    }

    /// Returns what the tier's rounding of activations, and of weights to f16, adds to the error of a product.
    pub fn rounding(&self, tier: Tier) -> f64 {
        // A few products do not average out what cancels in one.
        let few = if self.tokens * self.rows < 8 { 16.0 } else { 1.0 };
        match (self.way(tier), self.format) {
            (Way::F32, _) => 0.0,
            (Way::Int8, _) => few * INT8_ERROR,
            (Way::Coop(_), Format::F16) => few * F16_ERROR,
            // Two factors are off: twice as far.
            (Way::Coop(_), _) => few * 4.0 * F16_ERROR,
        }
    }

    /// Returns the same for a gate times an up product: the errors of both.
    pub fn gated_rounding(&self, tier: Tier) -> f64 {
        2.0 * self.rounding(tier)
    }

    /// Returns the values of the shader's `override` declarations.
    pub fn overrides(&self, tier: Tier, choice: &Choice) -> Vec<(&'static str, f64)> {
        let Tile { groups, rows, wg } = self.tile(tier, choice);
        let own = matches!(self.way(tier), Way::Coop(_)).then_some(("WG", wg));
        let both = [("GROUPS", groups), ("ROWS", rows)];
        both.into_iter().chain(own).map(|(name, value)| (name, f64::from(value))).collect()
    }

    /// Returns the grid: tiles of tokens side by side, for all tiles of rows. Gate and up rows share tiles, so a
    /// weight of both takes as many as any other.
    pub fn grid(&self, tier: Tier, choice: &Choice) -> [u32; 3] {
        let Tile { groups, rows, .. } = self.tile(tier, choice);
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
