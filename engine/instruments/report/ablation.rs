//! The gain of each fusion rule: a chart for each ablation, a bar for each choice of rules.

use super::bars::{self, Line};
use super::page::{Figure, Table};
use super::platforms::Platforms;
use super::plot::colour;
use crate::instruments::document::{Ablation, AblationRow};
use crate::instruments::names;
use crate::instruments::numbers::{cell, percent};

/// Returns a chart for each ablation.
pub fn figures(ablations: &[&Ablation], platforms: &Platforms) -> Vec<Figure> {
    ablations
        .iter()
        .filter(|ablation| !ablation.rows.is_empty())
        .map(|ablation| figure(ablation, platforms))
        .collect()
}

fn figure(ablation: &Ablation, platforms: &Platforms) -> Figure {
    let line = |row: &AblationRow| Line::Bar {
        label: row.name.clone(),
        samples: row.decode_tok_s.clone(),
        colour: colour(0),
        note: format!("{} dispatches", row.decode_dispatches),
    };
    let platform = &platforms.at(&ablation.environment).label;
    let lines: Vec<Line> = ablation.rows.iter().map(line).collect();
    Figure {
        title: format!("{} on {platform}", names::subject(&ablation.subject)),
        caption: format!(
            "Decoded tokens per second over {} tokens after a prompt of {}, with the dispatches of a decode step.",
            ablation.generated, ablation.prompt
        ),
        chart: bars::draw(&lines, "decode, tok/s"),
        legend: Vec::new(),
        table: table(ablation),
    }
}

fn table(ablation: &Ablation) -> Table {
    let mut table = Table::new(&[
        "rules",
        ">decode, tok/s",
        ">least",
        ">largest",
        ">of the first",
        ">dispatches",
        ">of them norms",
        ">prefill, tok/s",
        ">least (prefill)",
        ">largest (prefill)",
        ">dispatches (prefill)",
    ]);
    let first = ablation.rows[0].decode_tok_s.median();
    for row in &ablation.rows {
        let [decode, prefill] = [&row.decode_tok_s, &row.prefill_tok_s];
        table.push([
            row.name.clone(),
            cell(decode.median()),
            cell(decode.min()),
            cell(decode.max()),
            percent(decode.median() / first),
            row.decode_dispatches.to_string(),
            row.norm_dispatches.to_string(),
            cell(prefill.median()),
            cell(prefill.min()),
            cell(prefill.max()),
            row.prefill_dispatches.to_string(),
        ]);
    }
    table
}
