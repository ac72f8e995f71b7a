//! The embedded demo model, *fable*: see `demo/README.md` for what it is and is not.

/// Text of its `config.json`.
pub(crate) const CONFIG: &str = include_str!("demo/config.json");
/// Bytes of its `model.safetensors` (bf16).
pub(crate) const WEIGHTS: &[u8] = include_bytes!("demo/model.safetensors");
/// Bytes of its `tokenizer.json`.
pub const TOKENIZER: &[u8] = include_bytes!("demo/tokenizer.json");

/// Ids of a prompt: the beginning of a text, then "The Fox and the Grapes".
pub const KNOWN_PROMPT: [u32; 8] = [1, 303, 442, 271, 262, 511, 379, 1260];
/// The greedy continuation in every format: the ids of an independent implementation in PyTorch. The
/// likeliest token leads by 0.85 or more.
pub const KNOWN_TEXT: [u32; 16] =
    [201, 201, 35, 442, 393, 466, 1912, 261, 1062, 272, 385, 332, 288, 632, 1120, 849];
