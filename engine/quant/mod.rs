//! Weight formats of the device: how a row of values becomes words of `u32`.
//!
//! A weight `[rows, cols]` is stored as one or more *planes*. A plane holds the same number of
//! 32-bit words for every row, so any range of rows is itself a weight: that is how a weight
//! larger than one storage binding is split. `cols` is a multiple of [`BLOCK`]. Each format owns one
//! file here and one in `shaders/quant/`; the two describe the same bits. `Q8_0` and `Q4_0` use
//! ggml's values and scales (32-value blocks, f16 scale) and lay them out in aligned planes.

mod bf16;
mod f16;
mod f32;
mod q4_0;
mod q8_0;
pub(crate) mod q8_0_rows;

use std::fmt;
use std::str::FromStr;

use crate::error::Error;
use crate::tensor::DType;

/// Values that share one scale in the quantized formats; every weight row is a multiple of it.
pub const BLOCK: usize = 32;

/// How a weight matrix is stored on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats, 32 bits a value.
    F32,
    /// 16-bit IEEE floats, 16 bits a value.
    F16,
    /// Upper halves of f32, 16 bits a value; exact for published bf16 checkpoints.
    Bf16,
    /// ggml's q8_0: 8-bit integers and an f16 scale for each 32, 8.5 bits a value.
    Q8_0,
    /// ggml's q4_0: 4-bit integers and an f16 scale for each 32, 4.5 bits a value.
    Q4_0,
}

impl Format {
    /// Every format, widest first.
    pub const ALL: [Self; 5] = [Self::F32, Self::F16, Self::Bf16, Self::Q8_0, Self::Q4_0];

    /// Returns the element type that a tensor of this format has.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::Bf16,
            Self::Q8_0 => DType::Q8_0,
            Self::Q4_0 => DType::Q4_0,
        }
    }

    /// Returns the format of a weight with this element type; `None` for [`DType::U32`].
    pub fn of(dtype: DType) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.dtype() == dtype)
    }

    /// Returns the largest magnitude that the format holds without overflow: in the quantized formats the
    /// f16 scale is what overflows.
    pub fn largest(self) -> f32 {
        match self {
            Self::F32 => f32::MAX,
            Self::F16 => half::f16::MAX.to_f32(),
            Self::Bf16 => half::bf16::MAX.to_f32(),
            Self::Q8_0 => 127.0 * half::f16::MAX.to_f32(),
            Self::Q4_0 => 8.0 * half::f16::MAX.to_f32(),
        }
    }

    /// Returns the words that one row of `cols` values takes in each plane.
    pub fn row_words(self, cols: usize) -> Vec<usize> {
        assert!(cols.is_multiple_of(BLOCK), "a weight row of {cols} values is no multiple of {BLOCK}");
        match self {
            Self::F32 => vec![cols],
            Self::F16 | Self::Bf16 => vec![cols / 2],
            // Scales are f16, two to a word; an odd last block leaves half a word unused.
            Self::Q8_0 => vec![cols / 4, (cols / BLOCK).div_ceil(2)],
            Self::Q4_0 => vec![cols / 8, (cols / BLOCK).div_ceil(2)],
        }
    }

    /// Returns the bytes that a weight `[rows, cols]` takes, all planes together.
    pub fn bytes(self, rows: usize, cols: usize) -> u64 {
        self.row_words(cols).iter().map(|words| (words * rows * 4) as u64).sum()
    }

    /// Converts one row of values to words: `planes[p]` receives `row_words(cols)[p]` of them.
    pub(crate) fn pack_row(self, values: &[f32], planes: &mut [&mut [u32]]) {
        match self {
            Self::F32 => f32::pack(values, planes[0]),
            Self::F16 => f16::pack(values, planes[0]),
            Self::Bf16 => bf16::pack(values, planes[0]),
            Self::Q8_0 => q8_0::pack(values, planes),
            Self::Q4_0 => q4_0::pack(values, planes),
        }
    }

    /// Converts one row of words back to the values that the kernels see.
    pub(crate) fn unpack_row(self, planes: &[&[u32]], values: &mut [f32]) {
        match self {
            Self::F32 => f32::unpack(planes[0], values),
            Self::F16 => f16::unpack(planes[0], values),
            Self::Bf16 => bf16::unpack(planes[0], values),
            Self::Q8_0 => q8_0::unpack(planes, values),
            Self::Q4_0 => q4_0::unpack(planes, values),
        }
    }

    /// Converts `values` (`[rows, cols]`) to planes.
    pub fn pack(self, values: &[f32], cols: usize) -> Vec<Vec<u32>> {
        let rows = values.len() / cols;
        let words = self.row_words(cols);
        let mut planes: Vec<Vec<u32>> = words.iter().map(|words| vec![0; words * rows]).collect();
        for (row, values) in values.chunks_exact(cols).enumerate() {
            let mut parts: Vec<&mut [u32]> =
                planes.iter_mut().zip(&words).map(|(plane, &n)| &mut plane[row * n..(row + 1) * n]).collect();
            self.pack_row(values, &mut parts);
        }
        planes
    }

    /// Converts planes back to the `[rows, cols]` values that the kernels see.
    pub fn unpack(self, planes: &[Vec<u32>], cols: usize) -> Vec<f32> {
        let words = self.row_words(cols);
        let rows = planes[0].len() / words[0];
        let mut values = vec![0.0; rows * cols];
        for (row, values) in values.chunks_exact_mut(cols).enumerate() {
            let parts: Vec<&[u32]> =
                planes.iter().zip(&words).map(|(plane, &n)| &plane[row * n..(row + 1) * n]).collect();
            self.unpack_row(&parts, values);
        }
        values
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.dtype().fmt(f)
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|format| format.to_string() == name)
            .ok_or_else(|| Error::Input(format!("format `{name}` is none of f32, f16, bf16, q8_0, q4_0")))
    }
}

/// Packs two f16 bit patterns into one word, the first in the low half.
fn pair(low: half::f16, high: half::f16) -> u32 {
    u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16
}

/// Returns half `index & 1` of word `index / 2` as f16: how scales are read.
fn half_at(words: &[u32], index: usize) -> half::f16 {
    half::f16::from_bits((words[index / 2] >> (16 * (index % 2))) as u16)
}

/// Stores an f16 as half `index & 1` of word `index / 2`: how scales are written.
fn set_half(words: &mut [u32], index: usize, value: half::f16) {
    let shift = 16 * (index % 2);
    let word = &mut words[index / 2];
    *word = *word & !(0xffff << shift) | u32::from(value.to_bits()) << shift;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A repeatable sequence in [-1, 1) with a few extremes of magnitude.
    fn sample(n: usize) -> Vec<f32> {
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        (0..n)
            .map(|i| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                let u = (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                if i % 97 == 0 { u * 60.0 } else { u }
            })
            .collect()
    }

    /// Largest error of a block, as a share of the block's largest magnitude.
    fn worst(format: Format, cols: usize) -> f32 {
        let values = sample(cols * 7);
        let back = format.unpack(&format.pack(&values, cols), cols);
        values
            .chunks(BLOCK)
            .zip(back.chunks(BLOCK))
            .map(|(a, b)| {
                let top = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
                a.iter().zip(b).fold(0.0f32, |m, (x, y)| m.max((x - y).abs())) / top
            })
            .fold(0.0, f32::max)
    }

    #[test]
    fn round_trips_stay_within_each_formats_error_bound() {
        // Half a unit in the last place: f16 has 11 significant bits, bf16 8; q8_0 half of 1/127 plus
        // the scale's own f16 rounding; q4_0 one step of 1/8 on the side that ggml's scale clips.
        for (format, bound) in [
            (Format::F32, 0.0),
            (Format::F16, 2f32.powi(-11)),
            (Format::Bf16, 2f32.powi(-8)),
            (Format::Q8_0, 0.5 / 127.0 + 2f32.powi(-10)),
            (Format::Q4_0, 1.0 / 8.0 + 2f32.powi(-10)),
        ] {
            for cols in [32, 96, 192, 256] {
                let error = worst(format, cols);
                assert!(error <= bound, "{format} cols {cols}: error {error} > {bound}");
            }
        }
    }

    #[test]
    fn packing_what_was_unpacked_changes_nothing() {
        for format in Format::ALL {
            let once = format.unpack(&format.pack(&sample(96 * 5), 96), 96);
            let twice = format.unpack(&format.pack(&once, 96), 96);
            let error =
                once.iter().zip(&twice).fold(0.0f32, |m, (a, b)| m.max((a - b).abs() / a.abs().max(1e-3)));
            // A second scale may differ in its last f16 bit; the floats are exact.
            let bound = if matches!(format, Format::Q8_0) { 2f32.powi(-9) } else { 0.0 };
            assert!(error <= bound, "{format}: {error}");
        }
    }

    #[test]
    fn the_largest_value_of_a_format_stays_finite() {
        for format in Format::ALL {
            let mut values = vec![0.5f32; 32];
            values[7] = -format.largest();
            let back = format.unpack(&format.pack(&values, 32), 32);
            assert!(back.iter().all(|v| v.is_finite()), "{format}: {back:?}");
        }
    }

    #[test]
    fn names_parse_back_and_unknown_ones_are_refused() {
        for format in Format::ALL {
            assert_eq!(format.to_string().parse::<Format>().unwrap(), format);
            assert_eq!(Format::of(format.dtype()), Some(format));
        }
        let message = "q5_1".parse::<Format>().unwrap_err().to_string();
        assert!(message.contains("`q5_1`") && message.contains("q4_0"), "{message}");
    }

    #[test]
    fn zero_and_single_spike_blocks_survive() {
        for format in Format::ALL {
            let mut values = vec![0.0f32; 64];
            values[40] = -2.5;
            let back = format.unpack(&format.pack(&values, 64), 64);
            for (a, b) in values.iter().zip(&back) {
                assert!((a - b).abs() <= 2.5 * 2f32.powi(-10), "{format}: {a} became {b}");
            }
        }
    }
}
