//! Graphs as they are built, fused and given buffers, without a device.

mod fuse;
mod plan;
