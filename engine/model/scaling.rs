//! OpenELM's layer-wise scaling: heads and widths of every layer from a few multipliers.
//!
//! The rounding matters: without it, shapes differ from those of the published checkpoints.

use std::fmt;
use std::str::FromStr;

use serde_json::json;

use crate::error::Error;

/// The sizes with a name: Apple's four, and a small one for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Size {
    /// 4 layers of width 256: not a published model, small enough for every test.
    Micro,
    /// OpenELM-270M.
    M270,
    /// OpenELM-450M.
    M450,
    /// OpenELM-1_1B.
    B1_1,
    /// OpenELM-3B.
    B3,
}

impl Size {
    /// Every size, smallest first.
    pub const ALL: [Self; 5] = [Self::Micro, Self::M270, Self::M450, Self::B1_1, Self::B3];

    /// Returns `(layers, model_dim, head_dim)`.
    pub(crate) fn dims(self) -> (usize, usize, usize) {
        match self {
            Self::Micro => (4, 256, 32),
            Self::M270 => (16, 1280, 64),
            Self::M450 => (20, 1536, 64),
            Self::B1_1 => (28, 2048, 64),
            Self::B3 => (36, 3072, 128),
        }
    }

    /// Returns the text of a `config.json` in Apple's keys, with the per-layer lists spelled out.
    pub(crate) fn config_json(self, vocab_size: usize, torch_dtype: &str) -> String {
        let (layers, model_dim, head_dim) = self.dims();
        let query_heads: Vec<usize> =
            range(0.5, 1.0, layers).map(|m| query_heads(model_dim, head_dim, 4, m) as usize).collect();
        let kv_heads: Vec<usize> = query_heads.iter().map(|heads| heads / 4).collect();
        let config = json!({
            "architectures": ["OpenELMForCausalLM"],
            "model_type": "openelm",
            "activation_fn_name": "swish",
            "bos_token_id": 1,
            "eos_token_id": 2,
            "ffn_dim_divisor": 256,
            "ffn_multipliers": range(0.5, 4.0, layers).collect::<Vec<f64>>(),
            "ffn_with_glu": true,
            "head_dim": head_dim,
            "initializer_range": 0.02,
            "max_context_length": 2048,
            "model_dim": model_dim,
            "normalization_layer_name": "rms_norm",
            "normalize_qk_projections": true,
            "num_gqa_groups": 4,
            "num_kv_heads": kv_heads,
            "num_query_heads": query_heads,
            "num_transformer_layers": layers,
            "qkv_multipliers": [0.5, 1.0],
            "rope_freq_constant": 10000,
            "rope_max_length": 4096,
            "share_input_output_layers": true,
            "torch_dtype": torch_dtype,
            "use_cache": true,
            "vocab_size": vocab_size,
        });
        format!("{config:#}\n")
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Micro => "micro",
            Self::M270 => "270M",
            Self::M450 => "450M",
            Self::B1_1 => "1.1B",
            Self::B3 => "3B",
        })
    }
}

impl FromStr for Size {
    type Err = Error;

    /// Reads a size in any case; `1_1B`, as Apple writes it, is `1.1B`.
    fn from_str(name: &str) -> Result<Self, Error> {
        let wanted = name.replace('_', ".");
        Self::ALL.into_iter().find(|size| size.to_string().eq_ignore_ascii_case(&wanted)).ok_or_else(|| {
            Error::Input(format!("model size `{name}` is none of micro, 270M, 450M, 1.1B (1_1B), 3B"))
        })
    }
}

/// Yields `layers` multipliers from `first` to `last`, rounded to two decimals as numpy rounds.
pub(crate) fn range(first: f64, last: f64, layers: usize) -> impl Iterator<Item = f64> {
    let step = (last - first) / layers.saturating_sub(1).max(1) as f64;
    (0..layers).map(move |layer| {
        let exact = if layer > 0 && layer + 1 == layers { last } else { first + layer as f64 * step };
        (exact * 100.0).round_ties_even() / 100.0
    })
}

/// Returns the multiple of `divisor` nearest to `value` that is not more than 10 % below it.
///
/// Values past 2^64 saturate; the caller checks the range of the result.
pub(crate) fn make_divisible(value: f64, divisor: u64) -> u64 {
    let nearest = (value + divisor as f64 / 2.0) as u64 / divisor * divisor;
    let nearest = nearest.max(divisor);
    if (nearest as f64) < 0.9 * value { nearest.saturating_add(divisor) } else { nearest }
}

/// Returns the query heads of a layer: a multiple of `multiple` whose width is about `D * multiplier`.
pub(crate) fn query_heads(model_dim: usize, head_dim: usize, multiple: u64, multiplier: f64) -> u64 {
    let divisor = (head_dim as u64).saturating_mul(multiple);
    make_divisible(model_dim as f64 * multiplier, divisor) / head_dim as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ten_percent_rule_and_the_minimum_apply() {
        assert_eq!(make_divisible(857.6, 256), 1024); // 768 would lose more than 10 %
        assert_eq!(make_divisible(934.4, 256), 1024);
        assert_eq!(make_divisible(10.0, 256), 256);
        assert!(make_divisible(f64::MAX, 256) > u64::MAX - 512);
    }

    #[test]
    fn multipliers_have_two_decimals() {
        let values: Vec<f64> = range(0.5, 4.0, 16).collect();
        assert_eq!(values[..4], [0.5, 0.73, 0.97, 1.2]);
        assert_eq!(values[15], 4.0);
        assert_eq!(range(0.34, 1.0, 1).collect::<Vec<_>>(), [0.34]);
    }

    #[test]
    fn size_names_parse_back_and_unknown_ones_are_refused() {
        for size in Size::ALL {
            assert_eq!(size.to_string().parse::<Size>().unwrap(), size);
        }
        assert_eq!("1_1b".parse::<Size>().unwrap(), Size::B1_1);
        let message = "7B".parse::<Size>().unwrap_err().to_string();
        assert!(message.contains("`7B`") && message.contains("450M"), "{message}");
    }
}
