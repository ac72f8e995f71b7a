//! Instruments: they measure the engine, and check it first.
//!
//! Every document says what was measured (GPU timestamps or the wall clock), on which adapter, driver, tier
//! and commit. Times are medians with their samples beside them.

pub mod ablate;
pub mod bench;
pub mod ceilings;
pub mod check;
pub mod compare;
pub mod crossing;
pub mod document;
mod measurements;
pub mod names;
pub mod numbers;
pub mod profile;
mod ranges;
pub mod report;
pub mod samples;
pub mod steps;
pub mod tune;
pub mod verify;
pub mod versions;
pub mod workbench;
