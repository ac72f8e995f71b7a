//! Tokens per second by size and format, one group of bars for each adapter.

use super::bars::{self, Line};
use super::page::{Figure, Table};
use super::platforms::{Platforms, short};
use super::plot::colour;
use crate::instruments::document::{Bench, BenchRow};
use crate::instruments::numbers::{cell, percent};
use crate::quant::Format;

/// Returns a chart for each test: decode, then prefill, then both together.
pub fn figures(benches: &[&Bench], platforms: &Platforms) -> Vec<Figure> {
    let rows: Vec<&BenchRow> = benches.iter().flat_map(|bench| &bench.rows).collect();
    tests(&rows).into_iter().map(|rows| figure(rows, platforms)).collect()
}

/// Returns the rows of each test at the smallest depth at which it ran.
fn tests<'a>(rows: &[&'a BenchRow]) -> Vec<Vec<&'a BenchRow>> {
    let mut tests: Vec<[usize; 3]> = rows.iter().map(|row| shape(row)).collect();
    tests.sort_by_key(|&[batch, prompt, generated]| (prompt > 0, generated > 0, prompt, generated, batch));
    tests.dedup();
    let of = |test: [usize; 3]| {
        let rows = rows.iter().filter(|row| shape(row) == test).copied();
        let least = rows.clone().map(|row| row.depth).min();
        rows.filter(|row| Some(row.depth) == least).collect()
    };
    tests.into_iter().map(of).collect()
}

/// Returns what makes two rows the same test at any depth: sequences, prompt and generated tokens.
pub fn shape(row: &BenchRow) -> [usize; 3] {
    [row.batch, row.prompt, row.generated]
}

/// Returns what a test is, in words.
pub fn name(row: &BenchRow) -> String {
    let name = match (row.prompt, row.generated) {
        (0, generated) => format!("Decode of {generated} tokens"),
        (prompt, 0) => format!("Prefill of {prompt} tokens"),
        (prompt, generated) => format!("Prefill of {prompt} and decode of {generated} tokens"),
    };
    if row.batch > 1 { format!("{name}, {} sequences", row.batch) } else { name }
}

fn figure(mut rows: Vec<&BenchRow>, platforms: &Platforms) -> Figure {
    let platform = |row: &BenchRow| platforms.index(&row.environment);
    rows.sort_by_key(|row| (platform(row), row.subject.parameters, rank(&row.subject.format)));
    let mut lines = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        if index == 0 || platform(rows[index - 1]) != platform(row) {
            lines.push(Line::Heading(platforms.at(&row.environment).label.clone()));
        }
        lines.push(Line::Bar {
            label: short(&row.subject),
            samples: row.tok_s.clone(),
            colour: colour(COLOURS[rank(&row.subject.format)]),
            note: String::new(),
        });
    }
    let test = &rows[0].test;
    Figure {
        title: format!("{} ({test})", name(rows[0])),
        caption: format!("Tokens per second of {test} by adapter, model and format; more is faster."),
        chart: bars::draw(&lines, "tok/s"),
        legend: Vec::new(),
        table: table(&rows, platforms),
    }
}

/// The colour of each format, and of one that is unknown: neighbours are easy to distinguish.
const COLOURS: [usize; Format::ALL.len() + 1] = [3, 5, 2, 0, 1, 4];

/// Returns the rank of a format among all.
pub fn rank(format: &str) -> usize {
    Format::ALL.iter().position(|other| other.to_string() == format).unwrap_or(Format::ALL.len())
}

fn table(rows: &[&BenchRow], platforms: &Platforms) -> Table {
    let mut table = Table::new(&[
        "adapter",
        "model",
        "format",
        "kv",
        "rules off",
        ">tok/s",
        ">least",
        ">largest",
        ">samples",
        ">first token, ms",
        ">GB/s",
        ">of copy ceiling",
        ">dispatches/token",
        ">submits/token",
        ">host µs/token",
        ">peak, MB",
    ]);
    for row in rows {
        table.push([
            platforms.at(&row.environment).label.clone(),
            row.subject.model.clone(),
            row.subject.format.clone(),
            row.subject.kv.clone(),
            row.subject.rules_off.join(", "),
            cell(row.tok_s.median()),
            cell(row.tok_s.min()),
            cell(row.tok_s.max()),
            row.tok_s.values().len().to_string(),
            cell(row.first_token_ms.median()),
            cell(row.moved_gb_s),
            percent(row.bandwidth_share),
            cell(row.dispatches_per_token),
            cell(row.submits_per_token),
            cell(row.host_us_per_token.median()),
            cell(row.peak_bytes as f64 / 1e6),
        ]);
    }
    table
}
