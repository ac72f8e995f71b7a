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

use std::fmt::Display;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::{fs, io, thread};

use samara::gpu::{AdapterSummary, Clock, Gpu, GpuOptions, adapters};
#[allow(unused_imports)] // As above.
pub use samara::instruments::check::nmse;
use samara::kernels::{Shaders, Tier};
use samara::model::Checkpoint;
use samara::{LoadOptions, Model};

/// Returns the path of a file of `tests/golden`.
pub fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Writes that the running test skips something, past the harness, which hides what passing tests print.
pub fn skipped(why: impl Display) {
    let thread = thread::current();
    let line = format!("skipped: {}: {why}\n", thread.name().unwrap_or("a thread of a test"));
    io::stderr().write_all(line.as_bytes()).unwrap();
}

/// Returns whether there is an adapter. Without one a test is skipped; with `REQUIRE_GPU=1` it fails.
pub fn has_gpu() -> bool {
    // The one error of this function is that there is none.
    static FOUND: LazyLock<bool> = LazyLock::new(|| adapters(None).is_ok());
    if !*FOUND {
        assert!(!required(), "REQUIRE_GPU=1 but no GPU adapter");
        skipped("no GPU adapter");
    }
    *FOUND
}

/// Opens the default adapter at its own tier; `None` without one. Any other error fails the test.
pub fn gpu() -> Option<Gpu> {
    has_gpu().then(|| Gpu::open(None, None).unwrap())
}

/// Opens the default adapter at a tier; `None` where it does not run it.
pub fn gpu_at(tier: Tier) -> Option<Gpu> {
    let gpu = gpu()?;
    let tier = tier.shaped_as(gpu.summary().offered());
    if let Some(why) = lacks_tier(gpu.summary(), tier) {
        skipped(why);
        return None;
    }
    Some(gpu.at_tier(tier).unwrap())
}

/// Opens the default adapter for each tier that it runs, its own included; none without an adapter.
pub fn gpus() -> Vec<Gpu> {
    let Some(own) = gpu() else { return Vec::new() };
    let lacking = Tier::ALL.into_iter().filter_map(|tier| lacks_tier(own.summary(), tier));
    lacking.for_each(|why| eprintln!("{why}"));
    let open = |tier| Gpu::open_with(&GpuOptions { tier: Some(tier), ..GpuOptions::default() }).unwrap();
    own.summary().tiers().into_iter().map(open).collect()
}

/// Returns the message for an adapter that does not run a tier; `None` if it does.
fn lacks_tier(own: &AdapterSummary, tier: Tier) -> Option<String> {
    // No software adapter has matrix units, and SwiftShader has no f16.
    let excused = tier.coop.is_some() || tier.f16 && own.name.contains("SwiftShader");
    let lacks = !tier.within(own.offered());
    lacks.then(|| lacking(own, &format!("tier {tier}"), excused))
}

/// Returns the message for an adapter that lacks something. With `REQUIRE_GPU=1` a software adapter has to have
/// everything that is not excused, because it is there to test it.
pub fn lacking(own: &AdapterSummary, what: &str, excused: bool) -> String {
    let why = format!("`{}` does not have {what}", own.name);
    assert!(excused || !own.software || !required(), "REQUIRE_GPU=1 but {why}");
    why
}

/// Sets the clock of a device; returns whether the device has it.
pub fn set_clock(gpu: &mut Gpu, clock: Clock) -> bool {
    let set = gpu.set_clock(clock).is_ok();
    if !set {
        skipped(lacking(gpu.summary(), &clock.to_string(), false));
    }
    set
}

/// Loads a checkpoint onto the default adapter; `None` without one.
pub fn load(checkpoint: &Checkpoint, options: LoadOptions) -> Option<Model> {
    Some(Model::from_checkpoint(checkpoint, gpu()?, options).unwrap())
}

/// Loads the demo model onto the default adapter; `None` without one.
pub fn demo(options: LoadOptions) -> Option<Model> {
    load(&Checkpoint::demo().unwrap(), options)
}

/// Writes a built-in shader with one change into a folder.
pub fn write_changed(folder: &Path, name: &str, from: &str, to: &str) {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("shaders").join(name)).unwrap();
    assert_eq!(text.matches(from).count(), 1, "{name}: {from}");
    let file = folder.join(name);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text.replace(from, to)).unwrap();
}

/// Returns the built-in shaders with one change.
pub fn changed(name: &str, from: &str, to: &str) -> Shaders {
    let folder = tempfile::tempdir().unwrap();
    write_changed(folder.path(), name, from, to);
    Shaders::read(folder.path()).unwrap()
}

fn required() -> bool {
    std::env::var_os("REQUIRE_GPU").is_some_and(|value| value == "1")
}
