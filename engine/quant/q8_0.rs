//! `q8_0`: blocks of 32 values, `value = q * d` with `q` an i8 and `d` an f16 scale.
//!
//! Plane 0: value `4w + k` of the row is byte `k` (bits `8k..8k+8`, two's complement) of word `w`.
//! Plane 1: scale of block `b` is half `b & 1` of word `b / 2`.
//! Quantized as ggml does: `d = max|v| / 127` in f32, `q = round(v / d)`, then `d` rounded to f16.

use half::f16;

use super::BLOCK;

/// Quantizes one row.
pub(super) fn pack(values: &[f32], planes: &mut [&mut [u32]]) {
    let [quants, scales] = planes else { panic!("q8_0 has two planes") };
    for (b, block) in values.chunks_exact(BLOCK).enumerate() {
        let scale = block.iter().fold(0.0f32, |m, v| m.max(v.abs())) / 127.0;
        let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
        super::set_half(scales, b, f16::from_f32(scale));
        for (word, four) in quants[b * 8..(b + 1) * 8].iter_mut().zip(block.chunks_exact(4)) {
            *word = u32::from_le_bytes([0, 1, 2, 3].map(|k| (four[k] * inverse).round() as i8 as u8));
        }
    }
}

/// Dequantizes one row.
pub(super) fn unpack(planes: &[&[u32]], values: &mut [f32]) {
    for (b, block) in values.chunks_exact_mut(BLOCK).enumerate() {
        let scale = super::half_at(planes[1], b).to_f32();
        for (i, value) in block.iter_mut().enumerate() {
            let byte = planes[0][b * 8 + i / 4].to_le_bytes()[i % 4];
            *value = f32::from(byte as i8) * scale;
        }
    }
}
