//! `samara compare`: what became faster or slower between two results.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use samara::Error;
use samara::instruments::compare::{self, Comparison, Row, Threshold, Verdict};
use samara::instruments::document::Document;
use samara::instruments::numbers;
use samara::instruments::samples::Samples;

use super::table::Table;
use super::{Failure, note};

/// List what became faster or slower between two results; exit with 1 if something became slower
///
/// A change counts when the medians differ by more than the threshold and the ranges of the samples do not
/// overlap. The exit code is 2 when the two cannot be compared.
#[derive(Args)]
pub struct CompareArgs {
    /// The result to compare with: a JSON file of bench, profile, ablate or kernel bench
    a: PathBuf,
    /// The result that may have become slower, of the same kind
    b: PathBuf,
    /// Smallest change that counts: 5% or 0.05
    #[arg(long, default_value = "5%")]
    threshold: Threshold,
    /// Form of the results
    #[arg(short, long, value_enum, default_value_t = Output::Md)]
    output: Output,
    /// Also list what stayed the same
    #[arg(long)]
    all: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Output {
    /// A table of what changed
    Md,
    /// One object with every measurement
    Json,
}

/// Runs the subcommand.
pub fn run(args: &CompareArgs) -> Result<(), Failure> {
    let comparison = compare::compare(&read(&args.a)?, &read(&args.b)?, args.threshold)?;
    comparison.warnings.iter().for_each(|warning| note(format_args!("warning: {warning}")));
    let mut out = io::stdout().lock();
    match args.output {
        Output::Md => write_table(&mut out, &comparison, args.all)?,
        Output::Json => {
            let text = serde_json::to_string_pretty(&comparison).expect("names and numbers are valid JSON");
            writeln!(out, "{text}")?;
        }
    }
    match comparison.count(Verdict::Slower) {
        0 => Ok(()),
        slower => Err(Failure::Regression(format!(
            "{slower} of {} measurements in `{}` are slower than in `{}`",
            comparison.rows.len(),
            args.b.display(),
            args.a.display()
        ))),
    }
}

/// Reads a document; a file that cannot be read gets the exit code of bad input, not that of a regression.
fn read(path: &Path) -> samara::Result<Document> {
    Document::read(path).map_err(|e| Error::Input(e.to_string()))
}

/// Writes what changed, slower measurements first, and how many did not.
fn write_table(out: &mut impl Write, comparison: &Comparison, all: bool) -> io::Result<()> {
    use Verdict::{Faster, OnlyA, OnlyB, Same, Slower};
    let mut table = Table::new(["measured", ">A", ">B", "unit", ">change", "verdict"]);
    let listed = [Slower, Faster, OnlyA, OnlyB].into_iter().chain(all.then_some(Same));
    let rows: Vec<&Row> =
        listed.flat_map(|verdict| comparison.rows.iter().filter(move |row| row.verdict == verdict)).collect();
    rows.iter().for_each(|row| table.push(cells(row)));
    if !rows.is_empty() {
        writeln!(out, "{table}")?;
    }
    let count = |verdict| comparison.count(verdict);
    writeln!(
        out,
        "{} slower, {} faster, {} the same; {} only in A, {} only in B; threshold {}",
        count(Slower),
        count(Faster),
        count(Same),
        count(OnlyA),
        count(OnlyB),
        comparison.threshold
    )
}

fn cells(row: &Row) -> [String; 6] {
    let samples = |samples: &Option<Samples>| match samples {
        Some(samples) => format!("{samples:.0$}", numbers::decimals(samples.median())),
        None => "-".to_owned(),
    };
    let change = row.change.map_or("-".to_owned(), |change| format!("{:+.1}%", change * 100.0));
    let (a, b) = (samples(&row.a), samples(&row.b));
    // An unescaped bar would end the cell.
    [row.name.replace('|', "\\|"), a, b, row.unit.to_string(), change, row.verdict.to_string()]
}
