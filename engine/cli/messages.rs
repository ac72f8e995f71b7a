//! What subcommands write to standard error beside their results: progress, warnings, the environment of a measurement.

use std::fmt;
use std::io::{self, Write};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use samara::gpu::AdapterSummary;
use samara::instruments::document::{Ceilings, Environment};

/// Writes a line to standard error; ignores an error, such as a closed stream.
pub fn note(line: impl fmt::Display) {
    let _ = writeln!(io::stderr(), "{line}");
}

/// Returns a progress bar on standard error, hidden if `quiet` or if that is not a terminal.
pub fn bar(quiet: bool, label: &'static str, counts: &str) -> ProgressBar {
    if quiet {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(&format!("{{prefix}} [{{bar:30}}] {counts}"))
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style.progress_chars("=> ")).with_prefix(label)
}

/// Warns if the adapter is a software driver.
pub fn warn_of_software(adapter: &AdapterSummary) {
    if adapter.software {
        note(format_args!("warning: `{}` is a software adapter: this runs on the CPU", adapter.name));
    }
}

/// Prints the environment of a measurement.
pub fn introduce(environment: &Environment) {
    let Environment { adapter, backend, driver, tier, clock, commit, tuned, replaced_shaders, .. } =
        environment;
    note(format_args!("{adapter}, {backend}, {driver}"));
    note(format_args!("tier {tier}, clock {clock}, {tuned} tuned shapes, commit {commit}"));
    if !replaced_shaders.is_empty() {
        note(format_args!("replaced shaders: {}", replaced_shaders.join(", ")));
    }
}

/// Prints the environment of a measurement and the adapter's measured ceilings.
pub fn announce(environment: &Environment, ceilings: &Ceilings) {
    introduce(environment);
    let matrix = ceilings.matrix_gflop_s.map(|rate| format!(", matrix units {rate:.0} GFLOP/s"));
    note(format_args!(
        "measured ceilings: copy {:.1} GB/s, multiply-adds {:.0} GFLOP/s{}",
        ceilings.copy_gb_s,
        ceilings.fma_gflop_s,
        matrix.unwrap_or_default()
    ));
}

/// Formats a duration: milliseconds below a second.
pub fn duration(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds < 1.0 => format!("{:.1} ms", seconds * 1e3),
        seconds => format!("{seconds:.2} s"),
    }
}
