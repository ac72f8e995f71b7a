//! `q8_0` rows in one buffer, for KV caches: a kernel that binds keys and values has no binding left for
//! planes of scales.
//!
//! A row of `cols` values is the `cols / 4` words of its integers, then its scales, two f16 to a word; both
//! are laid out and quantized as in the planes of [`Format::Q8_0`].

use super::Format;

/// Converts rows of `cols` values to words.
pub fn pack(values: &[f32], cols: usize) -> Vec<u32> {
    let planes = Format::Q8_0.pack(values, cols);
    let [quants, scales] = widths(cols);
    let rows = planes[0].chunks(quants).zip(planes[1].chunks(scales));
    rows.flat_map(|(quants, scales)| quants.iter().chain(scales)).copied().collect()
}

/// Converts words back to the values that the kernels see.
pub fn unpack(words: &[u32], cols: usize) -> Vec<f32> {
    let [quants, scales] = widths(cols);
    let mut values = vec![0.0; words.len() / (quants + scales) * cols];
    for (row, values) in words.chunks(quants + scales).zip(values.chunks_mut(cols)) {
        Format::Q8_0.unpack_row(&[&row[..quants], &row[quants..]], values);
    }
    values
}

/// Rounds rows of `cols` values to the format.
pub fn round(values: &mut [f64], cols: usize) {
    let narrow: Vec<f32> = values.iter().map(|&v| v as f32).collect();
    let rounded = unpack(&pack(&narrow, cols), cols);
    values.iter_mut().zip(rounded).for_each(|(value, rounded)| *value = f64::from(rounded));
}

/// Words of integers and of scales in a row.
fn widths(cols: usize) -> [usize; 2] {
    Format::Q8_0.row_words(cols).try_into().expect("q8_0 has two planes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    #[test]
    fn rows_hold_what_planes_hold_and_take_the_bytes_that_are_counted() {
        for cols in [32, 64, 96, 128] {
            let values: Vec<f32> = (0..5 * cols).map(|i| (i * 37 % 101) as f32 / 50.0 - 1.0).collect();
            let words = pack(&values, cols);
            assert_eq!(words.len() * 4, 5 * DType::Q8_0Rows.row_bytes(cols));
            let planes = Format::Q8_0.pack(&values, cols);
            assert_eq!(unpack(&words, cols), Format::Q8_0.unpack(&planes, cols));
            let mut once: Vec<f64> = values.iter().map(|&v| v.into()).collect();
            round(&mut once, cols);
            let mut twice = once.clone();
            round(&mut twice, cols);
            assert_eq!(once, twice, "what was rounded stays");
        }
    }
}
