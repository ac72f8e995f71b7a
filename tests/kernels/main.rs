//! Kernels: their text for every compiler, without a device, and what they compute on one.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod conformance;
mod coop;
mod int8;
mod positions;
mod rows;
mod sampling;
mod tiles;
mod translation;
