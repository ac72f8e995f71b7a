//! What kernels compute on a device.

#[path = "../common/mod.rs"]
mod common;

mod cases;
mod coop;
mod int8;
mod positions;
mod rows;
mod sampling;
mod tiles;
