//! OpenELM language models on any GPU: hand-written WGSL kernels driven by a graph executor.
//!
//! ```
//! use samara::{LoadOptions, Model, Sampler, Tokenizer};
//!
//! # fn main() -> samara::Result<()> {
//! # if samara::gpu::adapters(None).is_err() {
//! #     eprintln!("skipped: no GPU adapter");
//! #     return Ok(());
//! # }
//! // The embedded demo model; a directory in Hugging Face layout works the same way.
//! let model = Model::load("demo", LoadOptions::default())?;
//! let tokenizer = Tokenizer::from_bytes(samara::model::demo::TOKENIZER, "demo")?;
//! let prompt = tokenizer.encode("The Fox and the Grapes", Some(model.config().bos_token_id))?;
//!
//! let mut session = model.session(None)?;
//! session.prefill(&prompt)?;
//! let ids = session.generate(Sampler::greedy()).take(12).collect::<samara::Result<Vec<u32>>>()?;
//! assert!(tokenizer.decode(&ids)?.starts_with("\n\nA Fox one day"));
//! # Ok(())
//! # }
//! ```
//!
//! # How it is put together
//!
//! [`session`] asks [`model`] for the [`graph`] of one step, built of primitive operations on
//! [`kernels`]; named rules fuse it; a plan gives its activations buffers; [`gpu`] builds every pipeline
//! and bind group once and then only replays. Everything but `gpu` is plain data and never names `wgpu`.
//! [`instruments`] measure all of it, and check before they time.
//!
//! # Dimensions
//!
//! Tensors are row-major with the last dimension contiguous, written `[T, D]`:
//!
//! | letter | meaning |
//! |---|---|
//! | `T` | tokens of this step |
//! | `S` | capacity of the KV cache, in tokens |
//! | `D` | model dimension |
//! | `H`, `Hkv` | query heads, key/value heads of a layer |
//! | `Dh` | dimension of a head |
//! | `F` | FFN width of a layer |
//! | `V` | vocabulary |
//! | `L` | layers |
#![warn(missing_docs)]

pub mod error;
pub mod files;
pub mod gpu;
pub mod graph;
pub mod instruments;
pub mod kernels;
pub mod model;
pub mod quant;
pub mod sampler;
#[cfg(feature = "server")]
pub mod server;
pub mod session;
pub mod stop;
pub mod tensor;
pub mod tokenizer;
pub mod translate;

pub use error::{Error, Result};
pub use gpu::{Backend, Gpu, GpuOptions};
pub use graph::fuse::Fusion;
pub use kernels::Tier;
pub use model::Checkpoint;
pub use quant::Format;
pub use sampler::{Sampler, SamplerOptions};
pub use session::{
    BatchSession, Decoded, Drafter, KvFormat, LoadOptions, Model, Scorer, Scoring, SequenceId,
    SequenceOptions, Session, TokenScore, Tokens,
};
pub use tokenizer::Tokenizer;

/// Compiles the examples of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
