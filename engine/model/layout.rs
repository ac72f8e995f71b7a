//! How each weight is stored on the device: its format and the row ranges that fit one binding.

use std::collections::HashMap;
use std::ops::{Index, Range};

use crate::model::{WeightInfo, names};
use crate::quant::Format;

/// Rows of a part are a multiple of this if possible, so that only a weight's last part is ragged.
const ROW_ALIGN: usize = 8;

/// The storage of one weight.
#[derive(Clone, Debug)]
pub struct WeightLayout {
    /// Rows of the whole weight; 1 for a norm.
    pub rows: usize,
    /// Values of a row.
    pub cols: usize,
    /// Format on the device.
    pub format: Format,
    /// Row ranges, each stored in separate buffers.
    pub parts: Vec<Range<usize>>,
}

impl WeightLayout {
    /// Splits `rows` evenly into parts of which no plane takes more than `max_binding` bytes.
    fn new(rows: usize, cols: usize, format: Format, max_binding: u64) -> Self {
        let row_bytes = format.row_words(cols).into_iter().max().expect("a format has a plane") as u64 * 4;
        let most = usize::try_from(max_binding / row_bytes).unwrap_or(usize::MAX).clamp(1, rows);
        let even = rows.div_ceil(rows.div_ceil(most)).next_multiple_of(ROW_ALIGN);
        let step = if even <= most { even } else { most };
        let parts = (0..rows).step_by(step).map(|start| start..rows.min(start + step)).collect();
        Self { rows, cols, format, parts }
    }

    /// Returns the bytes on the device.
    pub fn bytes(&self) -> u64 {
        self.format.bytes(self.rows, self.cols)
    }
}

/// The storage of every weight of a model, by published name.
#[derive(Clone, Debug)]
pub struct Layout {
    /// In the order of the checkpoint.
    weights: Vec<(String, WeightLayout)>,
    index: HashMap<String, usize>,
}

impl Layout {
    /// Lays out weights in the formats that `matrix` returns; norms are f32, and the embedding, which is
    /// also the head, is never below q8_0.
    pub fn new(weights: &[WeightInfo], matrix: impl Fn(usize) -> Format, max_binding: u64) -> Self {
        let layout = weights.iter().enumerate().map(|(index, info)| {
            let format = match matrix(index) {
                _ if info.rows == 1 => Format::F32,
                Format::Q4_0 if info.name == names::EMBEDDING => Format::Q8_0,
                format => format,
            };
            (info.name.clone(), WeightLayout::new(info.rows, info.cols, format, max_binding))
        });
        let index = weights.iter().enumerate().map(|(index, info)| (info.name.clone(), index));
        Self { weights: layout.collect(), index: index.collect() }
    }

    /// Yields names and storage in the order of the checkpoint.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &WeightLayout)> {
        self.weights.iter().map(|(name, weight)| (name.as_str(), weight))
    }

    /// Returns the bytes of all weights on the device.
    pub fn bytes(&self) -> u64 {
        self.weights.iter().map(|(_, weight)| weight.bytes()).sum()
    }
}

impl Index<&str> for Layout {
    type Output = WeightLayout;

    fn index(&self, name: &str) -> &WeightLayout {
        &self.weights[self.index[name]].1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_row_once_and_fit_the_binding() {
        for format in Format::ALL {
            for (rows, cols) in [(32000, 1280), (7, 64), (1, 32), (513, 96), (24576, 3072)] {
                for max in [1 << 27, 1 << 20, 40_000, 4 * cols as u64] {
                    let layout = WeightLayout::new(rows, cols, format, max);
                    let mut next = 0;
                    for part in &layout.parts {
                        assert_eq!(part.start, next, "{format} {rows}x{cols} max {max}");
                        next = part.end;
                        let plane = format.row_words(cols).into_iter().max().unwrap() * part.len() * 4;
                        assert!(plane as u64 <= max, "{format} {rows}x{cols} max {max}: plane of {plane}");
                    }
                    assert_eq!(next, rows);
                }
            }
        }
    }
}
