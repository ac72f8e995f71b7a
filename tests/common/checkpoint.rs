//! A tiny checkpoint of which a test can change any byte before it is written.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{TensorView, serialize};
use samara::model::{Checkpoint, Config, names};
use samara::quant::Format;
use serde_json::{Value, json};

/// A stored tensor: element type, sizes, little-endian bytes.
pub type Stored = (Dtype, Vec<usize>, Vec<u8>);

/// A model of two layers, in memory.
pub struct Tiny {
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
}

impl Tiny {
    /// Makes the model with made-up weights stored as `dtype`.
    pub fn new(dtype: Dtype) -> Self {
        Self::with(dtype, &[])
    }

    /// As [`Tiny::new`], with other values for some keys of the configuration.
    pub fn with(dtype: Dtype, changes: &[(&str, Value)]) -> Self {
        let mut config = json!({
            "model_type": "openelm", "model_dim": 64, "head_dim": 32, "vocab_size": 40,
            "max_context_length": 16, "num_transformer_layers": 2, "num_query_heads": [2, 4],
            "num_kv_heads": [1, 2], "ffn_multipliers": [0.5, 1.0], "ffn_dim_divisor": 32
        });
        for (key, value) in changes {
            config[*key] = value.clone();
        }
        let parsed = Config::from_json(&config.to_string(), Path::new("tiny")).unwrap();
        let model = Checkpoint::synthetic_with(parsed, 1);
        let mut tensors = BTreeMap::new();
        for (index, weight) in model.weights().iter().enumerate() {
            let mut values = vec![0.0; weight.rows * weight.cols];
            model.read_rows(index, 0..weight.rows, &mut values).unwrap();
            let shape =
                if names::is_norm(&weight.name) { vec![weight.cols] } else { vec![weight.rows, weight.cols] };
            tensors.insert(weight.name.clone(), (dtype, shape, bytes(dtype, &values)));
        }
        Self { config, tensors }
    }

    /// Makes a model whose logits are not finite after one token, the last of the vocabulary, and finite after all
    /// others: only that token's embedding has a first value, which the first layer's norm makes infinite.
    pub fn with_bad_token(max_context_length: usize) -> Self {
        let mut tiny = Self::with(Dtype::F32, &[("max_context_length", max_context_length.into())]);
        let (_, _, norm) = tiny.tensors.get_mut(&names::attn_norm(0)).unwrap();
        norm[..4].copy_from_slice(&3e38f32.to_le_bytes());
        let (_, shape, rows) = tiny.tensors.get_mut(names::EMBEDDING).unwrap();
        let last = shape[0] - 1;
        for (id, row) in rows.chunks_exact_mut(shape[1] * 4).enumerate() {
            row[..4].copy_from_slice(&(if id == last { 0.02f32 } else { 0.0 }).to_le_bytes());
            if id == last {
                row[4..].fill(0);
            }
        }
        tiny
    }

    /// Returns the weights as one safetensors file.
    pub fn safetensors(&self) -> Vec<u8> {
        self.part(|_| true)
    }

    /// Returns those weights whose name `chosen` accepts as one safetensors file.
    pub fn part(&self, chosen: impl Fn(&str) -> bool) -> Vec<u8> {
        let views =
            self.tensors.iter().filter(|(name, _)| chosen(name)).map(|(name, (dtype, shape, data))| {
                (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap())
            });
        serialize(views, None).unwrap()
    }

    /// Writes `config.json` and `model.safetensors`.
    pub fn write(&self, dir: &Path) {
        fs::write(dir.join("config.json"), self.config.to_string()).unwrap();
        fs::write(dir.join("model.safetensors"), self.safetensors()).unwrap();
    }

    /// Opens the model as it stands, from memory.
    pub fn open(&self) -> samara::Result<Checkpoint> {
        Checkpoint::from_bytes(&self.config.to_string(), self.safetensors())
    }
}

/// Stores values as `dtype`.
pub fn bytes(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    match dtype {
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
        Dtype::BF16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
        other => panic!("{other}"),
    }
}

/// Returns every value of a model, weight by weight.
pub fn values(model: &Checkpoint) -> Vec<Vec<f32>> {
    let read = |(index, weight): (usize, &samara::model::WeightInfo)| {
        let mut values = vec![0.0; weight.rows * weight.cols];
        // In two parts, with memory released between them, as a loader does.
        let (half, all) = (weight.rows / 2, weight.rows);
        let (first, second) = values.split_at_mut(half * weight.cols);
        model.read_rows(index, half..all, second).unwrap();
        model.release(index, half..all);
        model.read_rows(index, 0..half, first).unwrap();
        values
    };
    model.weights().iter().enumerate().map(read).collect()
}

/// Returns the format in which a model's embedding is stored.
pub fn stored(model: &Checkpoint) -> Format {
    Format::of(model.weights()[0].stored).unwrap()
}
