//! Shared by the integration tests.
#![allow(dead_code)] // Each test binary uses its own part.

pub mod checkpoint;
pub mod documents;
pub mod outputs;
pub mod products;
pub mod program;
#[cfg(feature = "server")]
pub mod serving;
pub mod variants;

use samara::gpu::{Gpu, GpuOptions};
#[allow(unused_imports)] // As above.
pub use samara::instruments::check::nmse;
use samara::kernels::Tier;

/// Opens the default adapter for each tier that it runs, its own included; says so when there is none.
///
/// With `REQUIRE_GPU=1` a missing adapter is a failure.
pub fn gpus() -> Vec<Gpu> {
    let Some(own) = gpu().map(|gpu| gpu.summary().clone()) else { return Vec::new() };
    for tier in Tier::ALL.into_iter().filter(|tier| !tier.within(own.offered())) {
        // A software adapter is there to test every tier, but none has matrix units and SwiftShader no f16.
        let excused = !own.software || tier.coop.is_some() || tier.f16 && own.name.contains("SwiftShader");
        assert!(excused || !required(), "`{}` does not run tier {tier}", own.name);
        eprintln!("skipped: `{}` does not run tier {tier}", own.name);
    }
    let open = |tier| Gpu::open_with(&GpuOptions { tier: Some(tier), ..GpuOptions::default() }).unwrap();
    own.tiers().into_iter().map(open).collect()
}

/// Opens the default adapter at its own tier, or says that there is none.
pub fn gpu() -> Option<Gpu> {
    let found = Gpu::open(None, None).ok();
    if found.is_none() {
        skipped();
    }
    found
}

/// Opens the default adapter at a tier, or says that it does not run it.
pub fn gpu_at(tier: Tier) -> Option<Gpu> {
    let gpu = gpu()?;
    let tier = tier.shaped_as(gpu.summary().offered());
    if !tier.within(gpu.summary().offered()) {
        eprintln!("skipped: `{}` does not run tier {tier}", gpu.summary().name);
        return None;
    }
    Some(gpu.at_tier(tier).unwrap())
}

fn required() -> bool {
    std::env::var_os("REQUIRE_GPU").is_some_and(|value| value == "1")
}

fn skipped() {
    assert!(!required(), "REQUIRE_GPU=1 but no GPU adapter");
    eprintln!("skipped: no GPU adapter");
}
