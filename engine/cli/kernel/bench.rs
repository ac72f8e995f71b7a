//! `samara kernel bench`: how long kernels take, and how far from the adapter's ceilings that is.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use samara::gpu::Gpu;
use samara::instruments::document::{Ceilings, Document, Environment, KernelRow, Kernels, VERSION};
use samara::instruments::{ceilings, numbers, workbench};
use samara::kernels::{Case, Shaders};

use super::super::table::Table;
use super::super::{COMMIT, Failure, announce, bar, note, warn_of_software};
use super::{DeviceArgs, Selection, TimingArgs, duration};

/// Time kernels, each case after it was checked
///
/// Inputs are rotated through copies that exceed the last-level cache, as in a step of a model. Without --case
/// the benched cases are timed.
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub(super) selection: Selection,
    #[command(flatten)]
    pub(super) device: DeviceArgs,
    #[command(flatten)]
    pub(super) timing: TimingArgs,
    /// Compare the built-in shaders with those below DIR, interleaved
    #[arg(long, value_name = "DIR", conflicts_with = "output")]
    pub(super) against: Option<PathBuf>,
    /// Compare again whenever a file below DIR is saved, until Ctrl-C
    #[arg(long, requires = "against")]
    pub(super) watch: bool,
    /// Form of the results
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
    /// No progress on standard error
    #[arg(short, long)]
    pub(super) quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    /// A table for each kernel
    Md,
    /// One document
    Json,
    /// Comma-separated values
    Csv,
}

/// Runs the subcommand without `--against`.
pub fn run(args: &BenchArgs) -> Result<(), Failure> {
    let entries = args.selection.entries()?;
    let mut gpu = args.timing.open(&args.device)?;
    let cases = args.selection.timed(&entries, gpu.tier())?;
    let shaders = gpu.shaders().clone();
    // The ceilings are those of the built-in kernels.
    gpu.set_shaders(Shaders::default());
    let ceilings = ceilings::measure(&gpu)?;
    gpu.set_shaders(shaders);
    let (rows, refused) = measure(args, &gpu, ceilings, &cases)?;
    if refused > 0 {
        return Err(Failure::Wrong(format!(
            "{refused} of {} cases are wrong and were not timed",
            rows + refused
        )));
    }
    Ok(())
}

/// Times cases and prints them; returns how many there were, and how many were wrong.
fn measure(
    args: &BenchArgs,
    gpu: &Gpu,
    ceilings: Ceilings,
    cases: &[Case],
) -> Result<(usize, usize), Failure> {
    let environment = Environment::of(gpu, COMMIT);
    if !args.quiet {
        announce(&environment, &ceilings);
        warn_of_software(gpu.summary());
    }
    let bar = bar(args.quiet, "timing", "{pos} of {len} cases, {msg}");
    bar.set_length(cases.len() as u64);
    let (mut rows, mut refused) = (Vec::new(), 0);
    let mut out = io::stdout().lock();
    for group in cases.chunk_by(|a, b| a.kernel.name() == b.kernel.name()) {
        let first = rows.len();
        for case in group {
            bar.set_message(case.kernel.name());
            match workbench::time(gpu, case, &ceilings, args.timing.samples())? {
                Ok(row) => rows.push(row),
                Err(mismatch) => {
                    refused += 1;
                    let (name, label) = (case.kernel.name(), &case.label);
                    bar.suspend(|| note(format_args!("not timed: {name} [{label}] is wrong: {mismatch}")));
                }
            }
            bar.inc(1);
        }
        if args.output == Output::Md && rows.len() > first {
            bar.suspend(|| write!(out, "{}{}", if first > 0 { "\n" } else { "" }, table(&rows[first..])))?;
            out.flush()?;
        }
    }
    bar.finish_and_clear();
    let timed = rows.len();
    match args.output {
        Output::Md => {}
        Output::Csv => write_csv(&mut out, &environment, &rows)?,
        Output::Json => {
            let document = Document::Kernels(Kernels { version: VERSION, environment, ceilings, rows });
            out.write_all(document.to_json().as_bytes())?;
        }
    }
    out.flush()?;
    Ok((timed, refused))
}

/// Returns the table of one kernel.
fn table(rows: &[KernelRow]) -> Table {
    let mut table = Table::new([
        rows[0].kernel.as_str(),
        ">time",
        ">GB/s",
        ">GFLOP/s",
        ">of ceiling",
        ">copies",
        ">read over",
    ]);
    for row in rows {
        let spread =
            format!("{} ± {:.0} %", duration(row.ns.median()), 100.0 * row.ns.spread() / row.ns.median());
        table.push([
            row.case.clone(),
            spread,
            numbers::plain(row.gb_s),
            numbers::plain(row.gflop_s),
            format!("{:.0} % {}", row.share * 100.0, row.bound),
            row.copies.to_string(),
            numbers::si((row.copies as u64 * row.bytes) as f64, "B"),
        ]);
    }
    table
}

/// Writes a line for each row, each with its environment.
fn write_csv(out: &mut impl Write, environment: &Environment, rows: &[KernelRow]) -> io::Result<()> {
    let mut writer = csv::Writer::from_writer(out);
    writer.write_record(CSV.map(|(name, _)| name)).map_err(io::Error::other)?;
    for row in rows {
        writer.write_record(CSV.map(|(_, value)| value(environment, row))).map_err(io::Error::other)?;
    }
    writer.flush()
}

/// The columns of the CSV form.
type Column = (&'static str, fn(&Environment, &KernelRow) -> String);
const CSV: [Column; 23] = [
    ("samara", |e, _| e.samara.clone()),
    ("commit", |e, _| e.commit.clone()),
    ("adapter", |e, _| e.adapter.clone()),
    ("backend", |e, _| e.backend.clone()),
    ("driver", |e, _| e.driver.clone()),
    ("software", |e, _| e.software.to_string()),
    ("tier", |e, _| e.tier.clone()),
    ("clock", |e, _| e.clock.clone()),
    ("replaced_shaders", |e, _| e.replaced_shaders.join(" ")),
    ("kernel", |_, r| r.kernel.clone()),
    ("case", |_, r| r.case.clone()),
    ("shape", |_, r| r.shape.clone()),
    ("ns", |_, r| r.ns.median().to_string()),
    ("ns_min", |_, r| r.ns.min().to_string()),
    ("ns_max", |_, r| r.ns.max().to_string()),
    ("samples", |_, r| r.ns.values().len().to_string()),
    ("bytes", |_, r| r.bytes.to_string()),
    ("flops", |_, r| r.flops.to_string()),
    ("gb_s", |_, r| r.gb_s.to_string()),
    ("gflop_s", |_, r| r.gflop_s.to_string()),
    ("bound", |_, r| r.bound.clone()),
    ("share", |_, r| r.share.to_string()),
    ("copies", |_, r| r.copies.to_string()),
];
