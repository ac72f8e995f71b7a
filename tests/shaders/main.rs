//! The text of every kernel, for every compiler and without a device.

#[path = "../common/mod.rs"]
mod common;

mod conformance;
mod translation;
