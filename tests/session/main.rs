//! Sessions, batches and scorers: what a program that embeds samara works with.

#[path = "../common/mod.rs"]
mod common;

mod batch;
mod decode;
mod score;
mod single;
mod start;
