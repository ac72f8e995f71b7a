//! Row by row: `shaders/product/rows.wgsl`, for a few tokens.
//!
//! A workgroup computes four rows of the weight for a tile of tokens, or four for each invocation. The sum of one
//! token must not depend on how many others there are. So the number of tokens is not part of the tuning key, and no
//! default depends on it.

use super::{Loop, Size};
use crate::kernels::tier::INT8_ERROR;
use crate::kernels::{
    Choice, Fragment, Tier, Tunable, dim, fragment, grid, integers_fragment, weight_fragment,
};
use crate::quant::Format;

/// Most tokens of one sequence that use this path instead of tiles, and attention row by row: up to this many
/// share one read of each weight. For the products of a prompt, tuning may choose another limit.
pub const FEW_TOKENS: usize = 8;

/// Most tokens that this path takes: one for each sequence of a batch, or a short prompt.
pub const MOST_TOKENS: usize = 64;

/// Rows of the weight in a slot, which a workgroup or an invocation computes.
const SLOT: usize = 4;

pub(super) struct Rows;

impl Loop for Rows {
    fn source(&self, size: &Size, tier: Tier) -> Vec<Fragment> {
        let [chunks, weight] = if tier.int8 && has_integers(size.format) {
            [fragment!("product/rows_int8.wgsl"), integers_fragment(size.format)]
        } else {
            [fragment!("product/rows_f32.wgsl"), weight_fragment(size.format)]
        };
        vec![fragment!("product/rows.wgsl"), chunks, tier.reduce4(), weight]
    }

    fn shape(&self, size: &Size) -> String {
        size.weight()
    }

    fn tunables(&self, size: &Size) -> Vec<Tunable> {
        // The fastest on an H200 for most shapes of the 270M: [1280, 3072] q4_0 took 8.9 us with 32 and 6.5
        // us with 128.
        let default = match size.cols {
            ..1024 => 32,
            1024..1536 => 64,
            _ => 128,
        };
        vec![
            Tunable { values: vec![8, 16, 32, 64, 128], ..Tunable::workgroup(default) },
            Tunable { name: "APART", default: 0, values: vec![0, 1] },
        ]
    }

    /// A workgroup of one subgroup is cheap to reduce: with 8 invocations instead of 32, `[1152, 1280]` took
    /// 0.57 of the time in q8_0 and 0.68 in q4_0 on llvmpipe, whose subgroups are 8. With subgroups of 32 the
    /// default is one to four of them. Subgroups of 8 mean a CPU, where `APART` took 0.73 of the time in q8_0
    /// and 0.56 in q4_0.
    fn suited_to(&self, subgroup: u32) -> Choice {
        let apart = (subgroup == 8).then(|| ("APART".to_owned(), 1));
        (subgroup != 32).then(|| ("WG".to_owned(), subgroup)).into_iter().chain(apart).collect()
    }

    fn cut(&self, size: &Size, tier: Tier, choice: &Choice) -> (Vec<(&'static str, f64)>, [u32; 3]) {
        let tunables = self.tunables(size);
        let [wg, apart] = [0, 1].map(|n| choice.of(&tunables[n]));
        // `APART` needs subgroup operations.
        let apart = u32::from(tier.subgroup) * apart;
        let slots = if apart == 1 { wg as usize } else { 1 };
        // 1, 2, 4 or, where the sums of 8 fit the workgroup memory, 8 tokens.
        let most = if tier.subgroup && slots <= 64 { 8 } else { 4 };
        let tile = size.tokens.next_power_of_two().min(most);
        let outputs = SLOT * size.outputs / size.rows;
        let groups = size.outputs.div_ceil(outputs).div_ceil(slots) * size.tokens.div_ceil(tile);
        let overrides = [("WG", wg), ("APART", apart), ("TOKENS", dim(tile))];
        (overrides.map(|(name, value)| (name, f64::from(value))).to_vec(), grid(groups))
    }

    fn rounding(&self, size: &Size, tier: Tier) -> f64 {
        match () {
            () if !tier.int8 || !has_integers(size.format) => 0.0,
            // With a single product, errors of cancellation do not average out.
            () if size.tokens * size.rows == 1 => 16.0 * INT8_ERROR,
            () => INT8_ERROR,
        }
    }
}

/// Returns whether weights of a format are integers with scales.
pub(super) fn has_integers(format: Format) -> bool {
    matches!(format, Format::Q8_0 | Format::Q4_0)
}
