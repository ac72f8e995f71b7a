//! Checkpoints, tokenizers, graphs as they are built, fused and given buffers, and the logits of whole models.

#[path = "../common/mod.rs"]
mod common;

mod files;
mod fuse;
mod logits;
mod plan;
mod synthetic;
mod tokenizer;
