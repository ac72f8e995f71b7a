//! Benches, profiles, the workbench and the documents that they write.

#[path = "../common/mod.rs"]
mod common;

mod compare;
mod measure;
mod report;
mod schema;
mod workbench;
