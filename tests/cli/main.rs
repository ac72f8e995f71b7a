//! The program as its users run it.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod kernel;
