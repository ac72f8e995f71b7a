//! How shaders read a weight: the fragment of its format.

use super::{Fragment, fragment};
use crate::quant::Format;

/// Returns the fragment that binds the planes of a format in group 1 and reads them in pieces of 16 bytes or
/// more (`Piece`, `piece(row, at, cols)`). A piece has `PARTS` chunks of 16 values (`WeightChunk`,
/// `weight_chunk(piece, part)`): one in q8_0, two in q4_0.
pub(crate) fn weight_fragment(format: Format) -> Fragment {
    match format {
        Format::F32 => fragment!("quant/f32.wgsl"),
        Format::F16 => fragment!("quant/f16.wgsl"),
        Format::Bf16 => fragment!("quant/bf16.wgsl"),
        Format::Q8_0 => fragment!("quant/q8_0.wgsl"),
        Format::Q4_0 => fragment!("quant/q4_0.wgsl"),
    }
}

/// Returns the fragment that reads the same weights as integers, one block of 32 and its scale at a time
/// (`Piece`, `piece(row, block, cols)`), and packs values of x in their order (`packed`).
///
/// # Panics
/// When the format has no integers.
pub(crate) fn integers_fragment(format: Format) -> Fragment {
    match format {
        Format::Q8_0 => fragment!("quant/q8_0_int8.wgsl"),
        Format::Q4_0 => fragment!("quant/q4_0_int8.wgsl"),
        Format::F32 | Format::F16 | Format::Bf16 => panic!("{format} has no integers"),
    }
}
