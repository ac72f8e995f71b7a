//! The embedded demo model, *fable*: see `demo/README.md` for what it is and is not.

/// Text of its `config.json`.
pub const CONFIG: &str = include_str!("demo/config.json");
/// Bytes of its `model.safetensors` (bf16).
pub const WEIGHTS: &[u8] = include_bytes!("demo/model.safetensors");
/// Bytes of its `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("demo/tokenizer.json");
