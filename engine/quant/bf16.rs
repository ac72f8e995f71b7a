//! `bf16`: one plane, values `2w` (low half) and `2w + 1` (high half) in word `w`, rounded to nearest
//! even; shifting a half to the top of a word gives its f32.

use half::bf16;

/// Rounds each pair of values into a word.
pub(super) fn pack(values: &[f32], words: &mut [u32]) {
    for (pair, word) in values.chunks_exact(2).zip(words) {
        let [low, high] = [pair[0], pair[1]].map(|v| u32::from(bf16::from_f32(v).to_bits()));
        *word = low | high << 16;
    }
}

/// Widens both halves of each word; exact.
pub(super) fn unpack(words: &[u32], values: &mut [f32]) {
    for (pair, word) in values.chunks_exact_mut(2).zip(words) {
        pair[0] = f32::from_bits(word << 16);
        pair[1] = f32::from_bits(word & 0xffff_0000);
    }
}
