//! Any text is a configuration within the limits, or an error that names the file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use samara::model::{Checkpoint, Config, config};

fuzz_target!(|text: &str| {
    match Config::from_json(text, Path::new("config.json")) {
        Err(error) => assert!(error.to_string().contains("`config.json`"), "{error}"),
        Ok(config) => {
            assert!(config.model_dim as u64 <= config::MAX_MODEL_DIM && config.model_dim % 32 == 0);
            assert!(config.vocab_size as u64 <= config::MAX_VOCAB);
            assert!((1..=config::MAX_LAYERS as usize).contains(&config.layers.len()));
            for layer in &config.layers {
                assert!(layer.ffn_dim as u64 <= config::MAX_FFN_DIM && layer.ffn_dim % 32 == 0);
                assert!(layer.query_heads as u64 <= config::MAX_HEADS);
                assert_eq!(layer.group() * layer.kv_heads, layer.query_heads);
            }
            // Whatever is accepted can be described, and any range of it read.
            let model = Checkpoint::synthetic_with(config, 0);
            assert!(model.parameters() > 0);
            let last = model.weights().len() - 1;
            let mut norm = vec![0.0; model.config().model_dim];
            model.read_rows(last, 0..1, &mut norm).expect("made-up values are finite");
        }
    }
});
