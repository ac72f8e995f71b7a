//! Tokens per second against cached tokens: a chart for each adapter, a line for each model and format.

use std::collections::BTreeSet;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::page::{Figure, Table};
use super::platforms::{Platform, Platforms, short};
use super::plot::{Drawing, Drawn, Mark, Plot, WIDTH, extent, grid, ink, mesh_tick, text, tick, width};
use super::throughput;
use crate::instruments::document::{Bench, BenchRow, Subject};
use crate::instruments::numbers::cell;

const HEIGHT: u32 = 340;

/// Returns a chart for each adapter and each test that ran at several depths.
pub fn figures(benches: &[&Bench], platforms: &Platforms) -> Vec<Figure> {
    let rows: Vec<&BenchRow> = benches.iter().flat_map(|bench| &bench.rows).collect();
    let mut tests: Vec<[usize; 3]> = rows.iter().map(|row| throughput::shape(row)).collect();
    tests.sort_by_key(|&[batch, prompt, generated]| (prompt > 0, generated > 0, prompt, generated, batch));
    tests.dedup();
    let mut figures = Vec::new();
    for test in tests {
        for platform in platforms.iter() {
            let own =
                |row: &&&BenchRow| throughput::shape(row) == test && row.environment == *platform.environment;
            let series = series(rows.iter().filter(own).copied());
            if !series.is_empty() {
                figures.push(figure(&series, platform));
            }
        }
    }
    figures
}

/// Rows of one model and format, by depth.
type Series<'a> = (&'a Subject, Vec<&'a BenchRow>);

/// Returns the series with at least two depths, the smallest model first.
fn series<'a>(rows: impl Iterator<Item = &'a BenchRow>) -> Vec<Series<'a>> {
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        match series.iter_mut().find(|(subject, _)| **subject == row.subject) {
            Some((_, rows)) => rows.push(row),
            None => series.push((&row.subject, vec![row])),
        }
    }
    series.iter_mut().for_each(|(_, rows)| rows.sort_by_key(|row| row.depth));
    series.retain(|(_, rows)| rows[0].depth < rows[rows.len() - 1].depth);
    series.sort_by_key(|(subject, _)| (subject.parameters, throughput::rank(&subject.format)));
    series
}

fn figure(series: &[Series], platform: &Platform) -> Figure {
    let name = throughput::name(series[0].1[0]);
    let key = |(index, (subject, _)): (usize, &Series)| (Mark::new(index).key(), short(subject));
    let mut table = Table::new(&["model", "depth", ">tok/s", ">least", ">largest"]);
    for (subject, rows) in series {
        for row in rows {
            let [median, least, most] = [row.tok_s.median(), row.tok_s.min(), row.tok_s.max()].map(cell);
            table.push([short(subject), row.depth.to_string(), median, least, most]);
        }
    }
    Figure {
        title: format!("{name} on {}", platform.label),
        caption:
            "Tokens per second against the tokens that were cached before; the whiskers span the samples."
                .into(),
        chart: draw(series),
        legend: series.iter().enumerate().map(key).collect(),
        table,
    }
}

fn draw(series: &[Series]) -> Drawing {
    let rows = || series.iter().flat_map(|(_, rows)| rows);
    let deepest = rows().map(|row| row.depth).max().unwrap_or(0) as f64;
    let largest = rows().map(|row| row.tok_s.max()).fold(0.0, f64::max);
    Drawing::new(WIDTH, HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_right(24)
            .margin_top(10)
            .set_label_area_size(LabelAreaPosition::Left, 76)
            .set_label_area_size(LabelAreaPosition::Bottom, 46)
            .build_cartesian_2d(0.0..deepest * 1.01, 0.0..extent(largest) * 1.05)
            .drawn();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(7)
            .y_label_formatter(&|value| mesh_tick(*value))
            .x_desc("cached tokens")
            .y_desc("tok/s")
            .label_style(tick())
            .axis_desc_style(tick())
            .axis_style(grid())
            .bold_line_style(grid())
            .light_line_style(TRANSPARENT)
            .draw()
            .drawn();
        let plot = chart.plotting_area();
        draw_depths(plot, rows().map(|row| row.depth).collect(), extent(largest) * 1.05);
        for (index, (_, rows)) in series.iter().enumerate() {
            let mark = Mark::new(index);
            let points: Vec<(f64, f64)> =
                rows.iter().map(|row| (row.depth as f64, row.tok_s.median())).collect();
            plot.draw(&PathElement::new(points.clone(), mark.colour.stroke_width(2))).drawn();
            for (row, point) in rows.iter().zip(points) {
                let whisker = [(point.0, row.tok_s.min()), (point.0, row.tok_s.max())];
                plot.draw(&PathElement::new(whisker, ink(0.9))).drawn();
                mark.draw(plot, point);
            }
        }
    })
}

/// Draws a tick at each depth, except those that would overlap the one before.
fn draw_depths(plot: &Plot, depths: BTreeSet<usize>, top: f64) {
    let mut free = i32::MIN;
    for depth in depths {
        let x = depth as f64;
        let (pixel, _) = plot.map_coordinate(&(x, 0.0));
        if pixel < free {
            continue;
        }
        let label = depth.to_string();
        free = pixel + width(&label) as i32 + 8;
        plot.draw(&PathElement::new([(x, 0.0), (x, top)], grid())).drawn();
        let style = text(12.0, 0.75, HPos::Center, VPos::Top);
        plot.draw(&(EmptyElement::at((x, 0.0)) + Text::new(label, (0, 7), style))).drawn();
    }
}
