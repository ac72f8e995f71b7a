//! `samara kernel test`: cases against their references, at every tier that the adapter runs.

use std::io::{self, Write};

use clap::Args;
use rayon::prelude::*;
use samara::Error;
use samara::gpu::Gpu;
use samara::instruments::check::{Failed, check_cases};
use samara::instruments::document::Environment;
use samara::kernels::{Entry, Tier};

use super::super::{COMMIT, Failure, introduce, note, warn_of_software};
use super::{DeviceArgs, Selection};

/// Check kernels against their scalar f64 references, between guard zones
///
/// Runs every case at every tier of the adapter, or at that of --tier. A case that fails is printed with the
/// command that runs it again.
#[derive(Args)]
pub struct TestArgs {
    #[command(flatten)]
    selection: Selection,
    /// Make the inputs from this seed instead of each case's; 0x.. is hexadecimal
    #[arg(long, value_name = "N", value_parser = seed, allow_negative_numbers = true)]
    seed: Option<u64>,
    #[command(flatten)]
    device: DeviceArgs,
}

fn seed(text: &str) -> Result<u64, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is not an integer from 0 to 2^64 - 1"))
}

/// Runs the subcommand.
pub fn run(args: &TestArgs) -> Result<(), Failure> {
    let entries = args.selection.entries()?;
    let devices = devices(args)?;
    introduce(&tested(&devices));
    warn_of_software(devices[0].summary());
    let mut out = io::stdout().lock();
    let (mut ran, mut failed) = (0, 0);
    for entry in &entries {
        // Most of the time goes into compiling.
        let check = |gpu: &Gpu| check_cases(gpu, entry, |case| args.selection.matches(case), args.seed);
        let checked = devices.par_iter().map(check).collect::<samara::Result<Vec<_>>>()?;
        for (gpu, (cases, failures)) in devices.iter().zip(checked) {
            report(&mut out, args, entry, gpu.tier(), cases, &failures)?;
            ran += cases;
            failed += failures.len();
        }
    }
    if ran == 0 {
        return Err(none(args, &entries, &devices).into());
    }
    if failed > 0 {
        return Err(Failure::Wrong(format!("{failed} of {ran} cases failed")));
    }
    note(format_args!("passed: {ran} of {ran} cases"));
    Ok(())
}

/// Opens the adapter once for each tier to test.
fn devices(args: &TestArgs) -> samara::Result<Vec<Gpu>> {
    if let Some(tier) = args.device.tier()? {
        return Ok(vec![args.device.open(Some(tier))?]);
    }
    let own = args.device.open(None)?;
    own.summary().tiers().into_iter().map(|tier| own.at_tier(tier)).collect()
}

/// Returns the environment of all devices: they differ by their tier.
fn tested(devices: &[Gpu]) -> Environment {
    let tiers: Vec<String> = devices.iter().map(|gpu| gpu.tier().to_string()).collect();
    Environment { tier: tiers.join(", "), ..Environment::of(&devices[0], COMMIT) }
}

/// Prints the line of a kernel at a tier, and below it each case that failed with the command that runs it.
fn report(
    out: &mut impl Write,
    args: &TestArgs,
    entry: &Entry,
    tier: Tier,
    cases: usize,
    failures: &[Failed],
) -> io::Result<()> {
    if cases > 0 {
        let passed = cases - failures.len();
        writeln!(out, "{:<20} {tier:<9} {passed:>3} of {cases:>3} cases pass", entry.name)?;
    }
    for Failed { label, seed, why, .. } in failures {
        writeln!(out, "  FAILED [{label}] seed {seed:#x}: {why}")?;
        writeln!(out, "    {}", reproduction(args, entry.name, label, *seed, tier))?;
    }
    out.flush()
}

/// Returns the command that runs one case again.
fn reproduction(args: &TestArgs, kernel: &str, label: &str, seed: u64, tier: Tier) -> String {
    let mut command = format!("samara kernel test {kernel} --tier {tier} --case '{label}' --seed {seed:#x}");
    let mut flag = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            command += &format!(" --{name} '{value}'");
        }
    };
    flag("adapter", args.device.adapter.clone());
    flag("backend", args.device.backend.map(|backend| backend.to_string()));
    flag("shaders", args.device.shaders.shaders.as_ref().map(|folder| folder.display().to_string()));
    command
}

/// Returns why no case ran.
fn none(args: &TestArgs, entries: &[&Entry], devices: &[Gpu]) -> Error {
    let mut all = entries.iter().flat_map(|entry| entry.cases());
    if all.any(|case| args.selection.matches(&case)) {
        let (name, tiers) = (&args.selection.name, tested(devices).tier);
        return Error::Input(format!("kernel `{name}` has no shader for tier {tiers}"));
    }
    args.selection.nothing()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_decimal_or_hexadecimal() {
        assert_eq!((seed("12"), seed("0xff")), (Ok(12), Ok(255)));
        for text in ["", "-1", "0x", "1e3", "18446744073709551616"] {
            assert!(seed(text).unwrap_err().contains(&format!("`{text}`")));
        }
    }
}
