//! `q4_0`: blocks of 32 values, `value = (q - 8) * d` with `q` in 0..16 and `d` an f16 scale.
//!
//! Plane 0: value `8w + k` of the row is nibble `k` (bits `4k..4k+4`) of word `w`: in order, where ggml
//! puts values 0..16 of a block in low nibbles and 16..32 in high ones.
//! Plane 1: scale of block `b` is half `b & 1` of word `b / 2`.
//! Quantized as ggml does: `d = m / -8` where `m` is the value of largest magnitude, with its sign;
//! `q = min(15, trunc(v / d + 8.5))`, then `d` rounded to f16.

use half::f16;

use super::BLOCK;

/// Quantizes one row.
pub(super) fn pack(values: &[f32], planes: &mut [&mut [u32]]) {
    let [quants, scales] = planes else { panic!("q4_0 has two planes") };
    for (b, block) in values.chunks_exact(BLOCK).enumerate() {
        let extreme = block.iter().fold(0.0f32, |m, &v| if v.abs() > m.abs() { v } else { m });
        let scale = extreme / -8.0;
        let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        super::set_half(scales, b, f16::from_f32(scale));
        for (word, eight) in quants[b * 4..(b + 1) * 4].iter_mut().zip(block.chunks_exact(8)) {
            let nibble = |v: f32| ((v * inverse + 8.5) as u32).min(15);
            *word = eight.iter().rev().fold(0, |word, &v| word << 4 | nibble(v));
        }
    }
}

/// Dequantizes one row.
pub(super) fn unpack(planes: &[&[u32]], values: &mut [f32]) {
    for (b, block) in values.chunks_exact_mut(BLOCK).enumerate() {
        let scale = super::half_at(planes[1], b).to_f32();
        for (i, value) in block.iter_mut().enumerate() {
            let nibble = planes[0][b * 4 + i / 8] >> (4 * (i % 8)) & 15;
            *value = (nibble as f32 - 8.0) * scale;
        }
    }
}
