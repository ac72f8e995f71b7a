//! samara: see the README; this page is completed with the session API.
#![warn(missing_docs)]

pub mod error;
pub mod gpu;
pub mod kernels;
pub mod quant;
pub mod sampler;
pub mod tensor;
pub mod tokenizer;

pub use error::{Error, Result};
