//! `f16`: one plane, values `2w` (low half) and `2w + 1` (high half) in word `w`, rounded to nearest even.

use half::f16;

/// Rounds each pair of values into a word.
pub(super) fn pack(values: &[f32], words: &mut [u32]) {
    for (pair, word) in values.chunks_exact(2).zip(words) {
        *word = super::pair(f16::from_f32(pair[0]), f16::from_f32(pair[1]));
    }
}

/// Widens both halves of each word; exact.
pub(super) fn unpack(words: &[u32], values: &mut [f32]) {
    for (i, value) in values.iter_mut().enumerate() {
        *value = super::half_at(words, i).to_f32();
    }
}
