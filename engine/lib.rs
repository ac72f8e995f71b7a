//! samara: see the README; this page is completed with the session API.
#![warn(missing_docs)]

pub mod error;
pub mod quant;
pub mod tensor;

pub use error::{Error, Result};
