//! `config.json`: the sizes of a model, read from Apple's keys and checked against what samara runs.
//!
//! Every value that it returns is within the limits below, so that no later product overflows.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::Value;

use super::keys::{Keys, shown};
use super::scaling::{Size, make_divisible, query_heads, range};
use crate::error::Result;
use crate::quant::BLOCK;

/// Most layers of a model that is accepted (OpenELM-3B has 36).
pub const MAX_LAYERS: u64 = 512;
/// Largest `model_dim` that is accepted (3B: 3072).
pub const MAX_MODEL_DIM: u64 = 1 << 15;
/// Largest feed-forward width of a layer that is accepted (3B: 12288).
pub const MAX_FFN_DIM: u64 = 1 << 18;
/// Most query heads of a layer that are accepted (1.1B: 32).
pub const MAX_HEADS: u64 = 1024;
/// Largest vocabulary that is accepted (OpenELM: 32000).
pub const MAX_VOCAB: u64 = 1 << 20;
/// Largest `max_context_length` that is accepted (OpenELM: 2048).
pub(crate) const MAX_CONTEXT: u64 = 1 << 20;
/// Range of `rope_freq_constant` that is accepted (OpenELM: 10000).
pub(crate) const ROPE_THETA: RangeInclusive<f64> = 1.0..=1e9;

/// Rows of the embedding in CoreNet's and Apple's MLX files; those past [`PUBLISHED_VOCAB`] are padding.
pub(crate) const PADDED_VOCAB: usize = 32128;
/// Vocabulary of the published models.
pub const PUBLISHED_VOCAB: usize = 32000;

/// The sizes and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Width `D` of the residual stream, a multiple of 32.
    pub model_dim: usize,
    /// Width `Dh` of a head: 32, 64 or 128.
    pub head_dim: usize,
    /// Tokens `V` in the vocabulary.
    pub vocab_size: usize,
    /// Tokens that the model was trained to see at once.
    pub max_context_length: usize,
    /// The sizes of every layer, first layer first; never empty.
    pub layers: Vec<LayerDims>,
    /// Base of the rotary position angles.
    pub rope_theta: f32,
    /// Constant under the root of every norm; fixed, no configuration names it.
    pub norm_eps: f32,
    /// Token that starts every text.
    pub bos_token_id: u32,
    /// Token that ends a text.
    pub eos_token_id: u32,
}

/// The sizes in which layers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayerDims {
    /// Query heads `H`, a multiple of `kv_heads`.
    pub query_heads: usize,
    /// Key and value heads `Hkv`.
    pub kv_heads: usize,
    /// Feed-forward width `F`, a multiple of 32.
    pub ffn_dim: usize,
}

impl LayerDims {
    /// Returns the rows of the fused projection: all query heads, then keys, then values.
    pub fn qkv_rows(&self, head_dim: usize) -> usize {
        (self.query_heads + 2 * self.kv_heads) * head_dim
    }

    /// Returns the query heads that share one KV head: the size of a GQA group.
    pub fn group(&self) -> usize {
        self.query_heads / self.kv_heads
    }
}

/// Keys whose value must be one of these, if they are present: samara runs OpenELM and nothing else.
const FIXED: [(&str, &[&str]); 6] = [
    ("model_type", &["\"openelm\""]),
    ("activation_fn_name", &["\"swish\"", "\"silu\""]),
    ("normalization_layer_name", &["\"rms_norm\""]),
    ("ffn_with_glu", &["true"]),
    ("normalize_qk_projections", &["true"]),
    ("share_input_output_layers", &["true"]),
];

/// Keys that would change the arithmetic and must be absent or null.
const REFUSED: [&str; 3] = ["quantization", "quantization_config", "rope_scaling"];

impl Config {
    /// Reads a configuration in the keys of Apple's Hugging Face release, or of CoreNet (`model_name`).
    ///
    /// Head lists are used as given, or computed from the multipliers if they are absent.
    /// `file` is named in messages and not opened.
    ///
    /// # Errors
    /// [`Error::Model`](crate::Error::Model) naming the key, its value and what samara runs.
    pub fn from_json(text: &str, file: &Path) -> Result<Self> {
        let keys = Keys::read(text, file)?;
        for (key, allowed) in FIXED {
            keys.expect(key, allowed)?;
        }
        for key in REFUSED {
            keys.expect(key, &["null"])?;
        }
        if keys.get("model_dim").is_none() && keys.get("model_name").is_some() {
            return Self::from_corenet(&keys);
        }
        let model_dim = keys.size("model_dim", 1..=MAX_MODEL_DIM)?;
        if !model_dim.is_multiple_of(BLOCK) {
            return Err(keys.refuse("model_dim", model_dim, format!("a multiple of {BLOCK}")));
        }
        let head_dim = keys.size("head_dim", 1..=u64::MAX)?;
        if ![32, 64, 128].contains(&head_dim) {
            return Err(keys.refuse("head_dim", head_dim, "32, 64 or 128"));
        }
        let vocab_size = keys.size("vocab_size", 1..=MAX_VOCAB)?;
        Ok(Self {
            model_dim,
            head_dim,
            vocab_size,
            max_context_length: keys.size("max_context_length", 1..=MAX_CONTEXT)?,
            layers: keys.layers(model_dim, head_dim)?,
            rope_theta: keys.rope_theta()?,
            norm_eps: 1e-6,
            bos_token_id: keys.token("bos_token_id", 1, vocab_size)?,
            eos_token_id: keys.token("eos_token_id", 2, vocab_size)?,
        })
    }

    /// Returns the configuration of a known size, with the published vocabulary.
    pub fn published(size: Size) -> Self {
        Self::from_json(&size.config_json(PUBLISHED_VOCAB, "bfloat16"), Path::new("config.json"))
            .expect("the published sizes are within every limit")
    }

    /// Reads the keys of CoreNet's recipes and Apple's MLX files: the name of a size, and the padded
    /// vocabulary.
    fn from_corenet(keys: &Keys) -> Result<Self> {
        let name = keys.get("model_name").and_then(Value::as_str).unwrap_or_default();
        let size =
            name.strip_prefix("OpenELM-").and_then(|size| size.parse::<Size>().ok()).ok_or_else(|| {
                keys.refuse("model_name", shown(&keys.map["model_name"]), "OpenELM-270M, -450M, -1_1B or -3B")
            })?;
        let mut config = Self::published(size);
        if keys.get("vocab_size").is_some() {
            config.vocab_size = keys.size("vocab_size", 3..=MAX_VOCAB)?;
        }
        if config.vocab_size == PADDED_VOCAB {
            config.vocab_size = PUBLISHED_VOCAB;
        }
        if keys.get("max_context_length").is_some() {
            config.max_context_length = keys.size("max_context_length", 1..=MAX_CONTEXT)?;
        }
        Ok(config)
    }
}

/// What the keys of a model say together.
impl Keys<'_> {
    fn token(&self, key: &str, default: u64, vocab_size: usize) -> Result<u32> {
        let default = Value::from(default);
        let limits = 0..=vocab_size as u64 - 1;
        Ok(self.whole(key, self.get(key).unwrap_or(&default), limits)? as u32)
    }

    fn rope_theta(&self) -> Result<f32> {
        let Some(value) = self.get("rope_freq_constant") else { return Ok(10000.0) };
        let theta = value.as_f64().filter(|theta| ROPE_THETA.contains(theta)).ok_or_else(|| {
            let wanted = format!("a number from {} to {:e}", ROPE_THETA.start(), ROPE_THETA.end());
            self.refuse("rope_freq_constant", shown(value), wanted)
        })?;
        Ok(theta as f32)
    }

    fn layers(&self, model_dim: usize, head_dim: usize) -> Result<Vec<LayerDims>> {
        let count = self.size("num_transformer_layers", 1..=MAX_LAYERS)?;
        let query_heads = match self.heads("num_query_heads", count)? {
            Some(heads) => heads,
            None => self.scaled_heads(model_dim, head_dim, count)?,
        };
        let kv_heads = match self.heads("num_kv_heads", count)? {
            Some(heads) => heads,
            None => {
                let group = self.gqa_groups()?.unwrap_or(1);
                query_heads.iter().map(|heads| heads / group).collect()
            }
        };
        let ffn_dims = self.ffn_dims(model_dim, count)?;
        (0..count).map(|i| self.layer(i, query_heads[i], kv_heads[i], ffn_dims[i])).collect()
    }

    fn layer(&self, index: usize, query_heads: usize, kv_heads: usize, ffn_dim: u64) -> Result<LayerDims> {
        let limits = |max| format!("from 1 to {max}");
        if !(1..=MAX_HEADS).contains(&(query_heads as u64)) {
            return Err(self.refuse(&format!("num_query_heads[{index}]"), query_heads, limits(MAX_HEADS)));
        }
        if kv_heads == 0 || !query_heads.is_multiple_of(kv_heads) {
            let wanted = format!("a divisor of num_query_heads[{index}], which is {query_heads}");
            return Err(self.refuse(&format!("num_kv_heads[{index}]"), kv_heads, wanted));
        }
        let key = format!("the width from ffn_multipliers[{index}]");
        if !(1..=MAX_FFN_DIM).contains(&ffn_dim) {
            return Err(self.refuse(&key, ffn_dim, limits(MAX_FFN_DIM)));
        }
        if !ffn_dim.is_multiple_of(BLOCK as u64) {
            return Err(self.refuse(&key, ffn_dim, format!("a multiple of {BLOCK} (see `ffn_dim_divisor`)")));
        }
        Ok(LayerDims { query_heads, kv_heads, ffn_dim: ffn_dim as usize })
    }

    /// Reads a list with one head count for every layer; `None` if it is absent.
    fn heads(&self, key: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let list = value.as_array().filter(|list| list.len() == layers).ok_or_else(|| {
            let wanted = format!("a list of {layers} values, one for each of `num_transformer_layers`");
            self.refuse(key, shown(value), wanted)
        })?;
        list.iter().map(|heads| self.whole(key, heads, 1..=MAX_HEADS)).collect::<Result<_>>().map(Some)
    }

    /// Returns the query heads for each KV head; `None` (null in the file) means no grouping.
    fn gqa_groups(&self) -> Result<Option<usize>> {
        match self.map.get("num_gqa_groups") {
            Some(Value::Null) => Ok(None),
            _ => self.size("num_gqa_groups", 1..=MAX_HEADS).map(Some),
        }
    }

    fn scaled_heads(&self, model_dim: usize, head_dim: usize, layers: usize) -> Result<Vec<usize>> {
        let multiple = self.gqa_groups()?.unwrap_or(2) as u64;
        let multipliers = match self.numbers("qkv_multipliers")?.as_deref() {
            Some(&[one]) => vec![one; layers],
            Some(&[first, last]) => range(first, last, layers).collect(),
            None => vec![1.0; layers],
            Some(list) => {
                return Err(self.refuse("qkv_multipliers", format!("{} numbers", list.len()), "one or two"));
            }
        };
        // The checks of a layer reject counts past the limits.
        let heads = |multiplier| query_heads(model_dim, head_dim, multiple, multiplier);
        Ok(multipliers.into_iter().map(|m| usize::try_from(heads(m)).unwrap_or(usize::MAX)).collect())
    }

    fn ffn_dims(&self, model_dim: usize, layers: usize) -> Result<Vec<u64>> {
        let divisor = match self.get("ffn_dim_divisor") {
            Some(_) => self.size("ffn_dim_divisor", 1..=MAX_FFN_DIM)? as u64,
            None => 256,
        };
        let multipliers = match self.numbers("ffn_multipliers")? {
            Some(list) if list.len() == 1 => vec![list[0]; layers],
            // Two values are a range even for two layers, as in Apple's code.
            Some(list) if list.len() == 2 => range(list[0], list[1], layers).collect(),
            Some(list) if list.len() == layers => list,
            None => vec![4.0; layers],
            Some(list) => {
                let wanted = format!("one, two or {layers}, one for each of `num_transformer_layers`");
                return Err(self.refuse("ffn_multipliers", format!("{} numbers", list.len()), wanted));
            }
        };
        Ok(multipliers.into_iter().map(|m| make_divisible(m * model_dim as f64, divisor)).collect())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Map;

    use super::*;

    fn parse(text: &str) -> Result<Config> {
        Config::from_json(text, Path::new("some/config.json"))
    }

    /// The published lists, as runs of (value, layers).
    fn runs(runs: &[(usize, usize)]) -> Vec<usize> {
        runs.iter().flat_map(|&(value, count)| vec![value; count]).collect()
    }

    fn check(size: Size, query_heads: &[(usize, usize)], ffn_dims: &[usize]) {
        let json = size.config_json(PUBLISHED_VOCAB, "bfloat16");
        let mut map: Map<String, Value> = serde_json::from_str(&json).unwrap();
        for key in ["num_query_heads", "num_kv_heads"] {
            map.remove(key);
        }
        map["ffn_multipliers"] = serde_json::json!([0.5, 4.0]);
        let computed = parse(&Value::Object(map).to_string()).unwrap();
        assert_eq!(computed, Config::published(size), "{size}: lists and ranges differ");
        let heads: Vec<usize> = computed.layers.iter().map(|layer| layer.query_heads).collect();
        let widths: Vec<usize> = computed.layers.iter().map(|layer| layer.ffn_dim).collect();
        assert_eq!(heads, runs(query_heads), "{size}");
        assert_eq!(widths, ffn_dims, "{size}");
        assert!(computed.layers.iter().all(|layer| layer.group() == 4));
    }

    #[test]
    fn published_sizes_have_the_published_layers() {
        check(Size::Micro, &[(4, 1), (8, 3)], &[256, 512, 768, 1024]);
        check(
            Size::M270,
            &[(12, 5), (16, 7), (20, 4)],
            &[768, 1024, 1280, 1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 3840, 4352, 4608, 4864, 5120],
        );
        check(
            Size::M450,
            &[(12, 3), (16, 7), (20, 6), (24, 4)],
            &[
                768, 1024, 1280, 1536, 1792, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4352, 4608,
                5120, 5376, 5632, 5888, 6144,
            ],
        );
        check(
            Size::B1_1,
            &[(16, 3), (20, 7), (24, 8), (28, 6), (32, 4)],
            &[
                1024, 1280, 1536, 1792, 2048, 2304, 2560, 2816, 3072, 3328, 3584, 3840, 4096, 4608, 4608,
                5120, 5376, 5632, 5888, 6144, 6400, 6656, 6912, 7168, 7424, 7680, 7936, 8192,
            ],
        );
        check(
            Size::B3,
            &[(12, 4), (16, 14), (20, 12), (24, 6)],
            &[
                1536, 1792, 2048, 2560, 2816, 3072, 3328, 3584, 4096, 4352, 4608, 4864, 5120, 5632, 5888,
                6144, 6400, 6656, 7168, 7424, 7680, 7936, 8192, 8704, 8960, 9216, 9472, 9728, 10240, 10496,
                10752, 11008, 11264, 11776, 12032, 12288,
            ],
        );
    }

    #[test]
    fn values_that_are_not_apples_are_read() {
        // The demo: two query heads to a KV head, a divisor of 64, and lists that the formula confirms.
        let text = include_str!("demo/config.json");
        let config = parse(text).unwrap();
        let widths: Vec<usize> = config.layers.iter().map(|layer| layer.ffn_dim).collect();
        assert_eq!(widths, [128, 192, 320, 384, 512, 576, 704, 768]);
        assert!(config.layers.iter().all(|layer| layer.group() == 2));
        assert_eq!(config.layers[5].qkv_rows(config.head_dim), 12 * 32);
        let mut map: Map<String, Value> = serde_json::from_str(text).unwrap();
        map.retain(|key, _| key != "num_query_heads" && key != "num_kv_heads");
        assert_eq!(parse(&Value::Object(map.clone()).to_string()).unwrap(), config);
        // Without groups heads come in pairs and each has its own keys; one multiplier serves all layers.
        map.insert("num_gqa_groups".into(), Value::Null);
        map.insert("qkv_multipliers".into(), Value::from(0.5));
        map.insert("ffn_multipliers".into(), Value::from(2));
        let plain = parse(&Value::Object(map).to_string()).unwrap();
        assert_eq!(plain.layers, vec![LayerDims { query_heads: 4, kv_heads: 4, ffn_dim: 384 }; 8]);
    }

    #[test]
    fn corenet_names_a_size_and_pads_the_vocabulary() {
        let text = r#"{"model_name": "OpenELM-1_1B", "vocab_size": 32128, "max_context_length": 2048}"#;
        assert_eq!(parse(text).unwrap(), Config::published(Size::B1_1));
        let message = parse(r#"{"model_name": "OpenELM-7B"}"#).unwrap_err().to_string();
        assert!(message.contains("model_name") && message.contains("OpenELM-7B"), "{message}");
    }
}
