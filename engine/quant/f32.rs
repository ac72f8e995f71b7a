//! `f32`: one plane, one word per value, the bits unchanged.

/// Stores the bits of each value.
pub(super) fn pack(values: &[f32], words: &mut [u32]) {
    words.copy_from_slice(bytemuck::cast_slice(values));
}

/// Reads them back.
pub(super) fn unpack(words: &[u32], values: &mut [f32]) {
    values.copy_from_slice(bytemuck::cast_slice(words));
}
