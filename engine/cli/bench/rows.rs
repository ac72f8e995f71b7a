//! The forms of a bench's results.

use std::io::{self, Write};

use indicatif::BinaryBytes;
use samara::instruments::document::{Bench, BenchRow, Document, VERSION};

use super::super::Failure;
use super::super::table::Table;
use super::Output;

/// The results, printed one by one if the form allows it.
pub(super) struct Rows {
    output: Output,
    several_adapters: bool,
    rows: Vec<BenchRow>,
}

impl Rows {
    /// Returns an empty list; with several adapters, a table names the adapter of each row.
    pub(super) fn new(output: Output, several_adapters: bool) -> Self {
        Self { output, several_adapters, rows: Vec::new() }
    }

    /// Returns whether results are printed one by one.
    pub(super) fn streams(&self) -> bool {
        matches!(self.output, Output::Jsonl | Output::Csv)
    }

    /// Adds a result, and prints it if the form allows it.
    pub(super) fn push(&mut self, row: BenchRow) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match self.output {
            Output::Md | Output::Json => {}
            Output::Jsonl => {
                let line = serde_json::to_string(&row).map_err(io::Error::from)?;
                writeln!(out, "{line}")?;
            }
            Output::Csv => {
                let mut writer = csv::WriterBuilder::new().has_headers(false).from_writer(out);
                if self.rows.is_empty() {
                    writer.write_record(CSV.map(|(name, _)| name)).map_err(io::Error::other)?;
                }
                writer.write_record(CSV.map(|(_, value)| value(&row))).map_err(io::Error::other)?;
                writer.flush()?;
            }
        }
        self.rows.push(row);
        Ok(())
    }

    /// Prints the results that are not printed yet.
    pub(super) fn finish(self) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        match self.output {
            Output::Md => write!(out, "{}", self.table())?,
            Output::Json => {
                let document = Document::Bench(Bench { version: VERSION, rows: self.rows });
                out.write_all(document.to_json().as_bytes())?;
            }
            Output::Jsonl | Output::Csv => {}
        }
        Ok(())
    }

    fn table(&self) -> Table {
        let mut table = Table::new([
            "model",
            ">params",
            "format",
            "test",
            ">tok/s",
            ">first token ms",
            ">dispatches/tok",
            ">submits/tok",
            ">host us/tok",
            ">MB read/tok",
            ">GB/s",
            ">of copy",
            ">peak memory",
        ]);
        for row in &self.rows {
            let adapter = if self.several_adapters {
                format!(" on {}", row.environment.adapter)
            } else {
                String::new()
            };
            table.push([
                format!("{}{adapter}", row.subject.model),
                format!("{:.1} M", row.subject.parameters as f64 / 1e6),
                row.subject.format.clone(),
                row.test.clone(),
                format!("{:.2}", row.tok_s),
                format!("{:.1}", row.first_token_ms.median()),
                format!("{:.2}", row.dispatches_per_token),
                format!("{:.3}", row.submits_per_token),
                format!("{:.1}", row.host_us_per_token.median()),
                format!("{:.1}", row.bytes_read_per_token / 1e6),
                format!("{:.1}", row.moved_gb_s),
                format!("{:.0} %", 100.0 * row.bandwidth_share),
                BinaryBytes(row.peak_bytes).to_string(),
            ]);
        }
        table
    }
}

/// The columns of the CSV form.
type Column = (&'static str, fn(&BenchRow) -> String);
const CSV: [Column; 26] = [
    ("samara", |r| r.environment.samara.clone()),
    ("commit", |r| r.environment.commit.clone()),
    ("adapter", |r| r.environment.adapter.clone()),
    ("backend", |r| r.environment.backend.clone()),
    ("driver", |r| r.environment.driver.clone()),
    ("software", |r| r.environment.software.to_string()),
    ("tier", |r| r.environment.tier.clone()),
    ("copy_gb_s", |r| r.ceilings.copy_gb_s.to_string()),
    ("model", |r| r.subject.model.clone()),
    ("format", |r| r.subject.format.clone()),
    ("kv", |r| r.subject.kv.clone()),
    ("rules_off", |r| r.subject.rules_off.join(" ")),
    ("batch", |r| r.batch.to_string()),
    ("prompt", |r| r.prompt.to_string()),
    ("generated", |r| r.generated.to_string()),
    ("depth", |r| r.depth.to_string()),
    ("tok_s", |r| r.tok_s.median().to_string()),
    ("tok_s_min", |r| r.tok_s.min().to_string()),
    ("tok_s_max", |r| r.tok_s.max().to_string()),
    ("first_token_ms", |r| r.first_token_ms.median().to_string()),
    ("dispatches_per_token", |r| r.dispatches_per_token.to_string()),
    ("submits_per_token", |r| r.submits_per_token.to_string()),
    ("host_us_per_token", |r| r.host_us_per_token.median().to_string()),
    ("bytes_read_per_token", |r| r.bytes_read_per_token.to_string()),
    ("bandwidth_share", |r| r.bandwidth_share.to_string()),
    ("peak_bytes", |r| r.peak_bytes.to_string()),
];
