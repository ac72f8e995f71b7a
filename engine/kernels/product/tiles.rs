//! Tile by tile: `shaders/product/tile_*.wgsl`, for many tokens.
//!
//! A workgroup computes a tile of tokens x rows of the weight. The size of tiles changes the speed of a call,
//! but not one bit of the result: the products of a row of activations do not depend on the rows beside it.

use super::rows::has_integers;
use super::{Loop, Size};
use crate::kernels::tier::{F16_ERROR, INT8_ERROR};
use crate::kernels::{
    Choice, Fragment, MatrixShape, Tier, Tunable, dim, fragment, integers_fragment, weight_fragment,
};
use crate::quant::Format;

/// Workgroups needed to fill a large GPU. Tiles shrink until a product has this many, if it can.
const OCCUPIED: usize = 256;

/// Invocations of a workgroup, if they are not tuned.
const WG: u32 = 128;

pub(super) struct Tiles;

/// How a tile is computed: `tile_<way>.wgsl`.
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

impl Way {
    /// Uses matrix units only for weights that f16 can hold: quantized ones, which are rounded anyway, and
    /// f16.
    fn of(format: Format, tier: Tier) -> Self {
        match tier.coop {
            _ if tier.int8 && has_integers(format) => Self::Int8,
            Some(shape) if has_integers(format) || format == Format::F16 => Self::Coop(shape),
            _ => Self::F32,
        }
    }
}

impl Loop for Tiles {
    fn source(&self, size: &Size, tier: Tier) -> Vec<Fragment> {
        match Way::of(size.format, tier) {
            Way::F32 => vec![
                fragment!("product/tile_f32.wgsl"),
                fragment!("product/tile_sums.wgsl"),
                weight_fragment(size.format),
            ],
            Way::Int8 => vec![
                fragment!("product/tile_int8.wgsl"),
                fragment!("product/tile_sums.wgsl"),
                integers_fragment(size.format),
            ],
            Way::Coop(shape) => {
                let [block, matrices] = match shape {
                    MatrixShape::Sixteen => [fragment!("lib/block_16.wgsl"), fragment!("lib/coop_16.wgsl")],
                    MatrixShape::Eight => [fragment!("lib/block_8.wgsl"), fragment!("lib/coop_8.wgsl")],
                };
                vec![fragment!("product/tile_coop.wgsl"), block, matrices, weight_fragment(size.format)]
            }
        }
    }

    fn shape(&self, size: &Size) -> String {
        format!("T {}, {}", size.tokens, size.weight())
    }

    /// The groups of 8 tokens and the rows of a tile, and on matrix units the invocations.
    fn tunables(&self, size: &Size) -> Vec<Tunable> {
        let Tile { groups, rows, wg } = Tile::default_for(size);
        let mut tunables = vec![
            Tunable { name: "GROUPS", default: groups, values: vec![1, 2, 3, 4, 8] },
            Tunable { name: "ROWS", default: rows, values: vec![32, 64] },
        ];
        if Way::of(size.format, Tier::COOP) != Way::F32 {
            tunables.push(Tunable { name: "WG", default: wg, values: vec![128, 256] });
        }
        tunables
    }

    /// Every choice that the tier runs as chosen, and the default groups even if another tile runs for them.
    fn choices(&self, size: &Size, tier: Tier) -> Vec<Choice> {
        let default = Tile::default_for(size).groups;
        let as_chosen = |choice: &Choice| {
            let (chosen, tile) = (self.chosen(size, choice), self.tile(size, tier, choice));
            chosen == tile || chosen == Tile { groups: default, ..tile }
        };
        Choice::all(&self.tunables(size)).into_iter().filter(as_chosen).collect()
    }

    /// Workgroups of four subgroups, one for each block of 32 tokens x 32 rows of a tile of 64 x 64.
    fn suited_to(&self, subgroup: u32) -> Choice {
        (subgroup == 64).then(|| ("WG".to_owned(), 256)).into_iter().collect()
    }

    fn cut(&self, size: &Size, tier: Tier, choice: &Choice) -> (Vec<(&'static str, f64)>, [u32; 3]) {
        let Tile { groups, rows, wg } = self.tile(size, tier, choice);
        let own = matches!(Way::of(size.format, tier), Way::Coop(_)).then_some(("WG", wg));
        let overrides = [("GROUPS", groups), ("ROWS", rows)].into_iter().chain(own);
        // Tiles of tokens in x, tiles of rows in y.
        let grid = [size.tokens.div_ceil(8 * groups as usize), size.rows.div_ceil(rows as usize)].map(dim);
        (overrides.map(|(name, value)| (name, f64::from(value))).collect(), [grid[0], grid[1], 1])
    }

    fn rounding(&self, size: &Size, tier: Tier) -> f64 {
        // With few products, errors of cancellation do not average out.
        let few = if size.tokens * size.rows < 8 { 16.0 } else { 1.0 };
        match Way::of(size.format, tier) {
            Way::F32 => 0.0,
            Way::Int8 => few * INT8_ERROR,
            Way::Coop(_) if size.format == Format::F16 => few * F16_ERROR,
            // Both factors are rounded: twice the error, four times its square.
            Way::Coop(_) => few * 4.0 * F16_ERROR,
        }
    }
}

impl Tiles {
    /// The tile as chosen.
    fn chosen(&self, size: &Size, choice: &Choice) -> Tile {
        let tunables = self.tunables(size);
        let [groups, rows] = [0, 1].map(|n| choice.of(&tunables[n]));
        Tile { groups, rows, wg: tunables.get(2).map_or(WG, |tunable| choice.of(tunable)) }
    }

    /// The tile that runs for a choice: on matrix units, it has 32 or 64 tokens.
    fn tile(&self, size: &Size, tier: Tier, choice: &Choice) -> Tile {
        let tile = self.chosen(size, choice);
        match Way::of(size.format, tier) {
            Way::F32 | Way::Int8 => Tile { wg: WG, ..tile },
            Way::Coop(_) => Tile { groups: if tile.groups > 4 { 8 } else { 4 }, ..tile },
        }
    }
}

impl Tile {
    /// Returns the largest tile that still gives [`OCCUPIED`] workgroups, with no more groups than the tokens
    /// fill.
    fn default_for(size: &Size) -> Self {
        let groups = size.tokens.div_ceil(8);
        let few = dim(groups.min(4));
        let most = if groups > 4 { 8 } else { few };
        let fills = |&(groups, rows): &(u32, u32)| {
            size.tokens.div_ceil(8 * groups as usize) * size.rows.div_ceil(rows as usize) >= OCCUPIED
        };
        let (groups, rows) = [(most, 64), (few, 64), (most, 32)].into_iter().find(fills).unwrap_or((few, 32));
        Self { groups, rows, wg: WG }
    }
}
