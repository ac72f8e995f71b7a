//! Model files: configurations, named host tensors, synthetic weights and the embedded demo.
//!
//! This module reads files and produces values in f32. It knows neither buffers nor adapters.

pub mod config;
pub mod demo;
mod generator;
mod keys;
pub mod layout;
pub mod names;
pub mod openelm;
mod safetensors;
mod scaling;
pub mod shape;
pub mod synth;
mod weights;

pub use config::{Config, LayerDims};
pub use scaling::Size;
pub use weights::{Checkpoint, WeightInfo};
