//! Checkpoints, tokenizers and the logits of whole models.

#[path = "../common/mod.rs"]
mod common;

mod files;
mod logits;
mod synthetic;
mod tokenizer;
