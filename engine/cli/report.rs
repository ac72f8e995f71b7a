//! `samara report`: results as one HTML page.

use std::path::PathBuf;

use clap::Args;
use indicatif::BinaryBytes;
use samara::files::write_whole;
use samara::instruments::document::Document;
use samara::instruments::report;

use super::{Failure, note};

/// Write one self-contained HTML page with the charts of any number of results
///
/// Throughput by size and format and against depth, a roofline with every kernel, time by layer and the ablation, from
/// as many runs and adapters as there are, with the numbers below each chart. The page needs no network.
#[derive(Args)]
pub struct ReportArgs {
    /// JSON files of bench, profile, ablate and kernel bench
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The page
    #[arg(short, long, default_value = "report.html")]
    out: PathBuf,
}

/// Runs the subcommand.
pub fn run(args: &ReportArgs) -> Result<(), Failure> {
    let read = |path: &PathBuf| Ok((path.display().to_string(), Document::read(path)?));
    let documents = args.files.iter().map(read).collect::<samara::Result<Vec<_>>>()?;
    let page = report::report(&documents);
    write_whole(&args.out, page.as_bytes())?;
    let size = BinaryBytes(page.len() as u64);
    let count = documents.len();
    let plural = if count == 1 { "" } else { "s" };
    note(format_args!("wrote `{}`: {count} result{plural}, {size}", args.out.display()));
    Ok(())
}
