//! Operations per second against operations per byte, on logarithmic axes, below the adapter's ceilings.

use std::ops::Range;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::page::{Figure, Table};
use super::platforms::{Platform, Platforms};
use super::plot::{Drawing, Drawn, Mark, WIDTH, grid, ink, sane, text, tick};
use crate::instruments::document::{Ceilings, DispatchProfile, Kernels, Profile};
use crate::instruments::names;
use crate::instruments::numbers::{cell, percent, si};

const HEIGHT: u32 = 520;

/// Returns a chart for each adapter with a profile or a bench of kernels.
pub fn figures(profiles: &[&Profile], kernels: &[&Kernels], platforms: &Platforms) -> Vec<Figure> {
    let of = |platform: &Platform| {
        let mut points = Vec::new();
        for profile in profiles.iter().filter(|profile| profile.environment == *platform.environment) {
            add_profile(&mut points, profile);
        }
        for kernels in kernels.iter().filter(|kernels| kernels.environment == *platform.environment) {
            add_kernels(&mut points, kernels);
        }
        (!points.is_empty()).then(|| figure(points, platform))
    };
    platforms.iter().filter_map(of).collect()
}

/// Where a point comes from.
#[derive(Clone, Copy, PartialEq)]
enum PointSource {
    Decode,
    Prefill,
    Bench,
}

impl PointSource {
    /// Returns the mark of a kernel as it looks for this source.
    fn mark(self, mark: Mark) -> Mark {
        match self {
            Self::Decode => mark,
            Self::Prefill => Mark { hollow: true, ..mark },
            Self::Bench => Mark { size: 3, ..mark },
        }
    }
}

/// A kernel with one shape: its calls in a step together, or one case of a bench.
struct Point {
    kernel: String,
    shape: String,
    /// The step with its model, or the case.
    origin: String,
    source: PointSource,
    calls: usize,
    bytes: u64,
    flops: u64,
    ns: f64,
}

impl Point {
    /// Operations per byte, and GFLOP/s.
    fn position(&self) -> (f64, f64) {
        (self.flops as f64 / self.bytes as f64, self.flops as f64 / self.ns)
    }

    /// Returns whether logarithmic axes can show it.
    fn drawable(&self) -> bool {
        let (x, y) = self.position();
        sane(x) && sane(y)
    }
}

fn add_profile(points: &mut Vec<Point>, profile: &Profile) {
    for step in &profile.steps {
        let origin = format!("{} of {}, {}", step.name, step.tokens, names::subject(&profile.subject));
        let source = if step.name == "decode" { PointSource::Decode } else { PointSource::Prefill };
        // A kernel's name has no line break.
        let key = |dispatch: &DispatchProfile| format!("{}\n{}", dispatch.kernel, dispatch.shape);
        points.extend(step.totals(&profile.ceilings, key).into_iter().map(|total| {
            let (kernel, shape) = total.name.split_once('\n').expect("the key has one");
            Point {
                kernel: kernel.to_owned(),
                shape: shape.to_owned(),
                origin: origin.clone(),
                source,
                calls: total.calls,
                bytes: total.cost.bytes(),
                flops: total.cost.flops,
                ns: total.ns,
            }
        }));
    }
}

fn add_kernels(points: &mut Vec<Point>, kernels: &Kernels) {
    points.extend(kernels.rows.iter().map(|row| Point {
        kernel: row.kernel.clone(),
        shape: row.shape.clone(),
        origin: format!("kernel bench: {}", row.case),
        source: PointSource::Bench,
        calls: 1,
        bytes: row.bytes,
        flops: row.flops,
        ns: row.ns.median(),
    }));
}

fn figure(points: Vec<Point>, platform: &Platform) -> Figure {
    let ceilings = platform.ceilings.expect("profiles and benches measure ceilings");
    let mut kernels: Vec<&str> = points.iter().map(|point| &*point.kernel).collect();
    kernels.sort_unstable();
    kernels.dedup();
    let mark = |point: &Point| {
        let index = kernels.iter().position(|kernel| *kernel == point.kernel).expect("it is in the list");
        point.source.mark(Mark::new(index))
    };
    let drawn: Vec<(Mark, (f64, f64))> =
        points.iter().filter(|point| point.drawable()).map(|point| (mark(point), point.position())).collect();
    Figure {
        title: platform.label.clone(),
        caption: caption(&points, platform),
        chart: draw(&drawn, ceilings),
        legend: legend(&points, &kernels),
        table: table(&points, ceilings),
    }
}

fn caption(points: &[Point], platform: &Platform) -> String {
    let hidden = points.iter().filter(|point| !point.drawable()).count();
    let without = match hidden {
        0 => String::new(),
        count => format!(" Kernels without arithmetic ({count}) are only in the table."),
    };
    let clock = names::clock(&platform.environment.clock);
    format!(
        "A point is a kernel with one shape, its dispatches in a step together, timed by {clock}.{without}"
    )
}

/// Returns the marks of the steps, then those of the kernels.
fn legend(points: &[Point], kernels: &[&str]) -> Vec<(Drawing, String)> {
    let used = |source: &&(PointSource, &str)| points.iter().any(|point| point.source == source.0);
    let sources = [
        (PointSource::Decode, "decode"),
        (PointSource::Prefill, "prefill"),
        (PointSource::Bench, "kernel bench"),
    ];
    let sources = sources.iter().filter(used).map(|(source, name)| (source.mark(Mark::plain()), *name));
    let kernels = kernels.iter().enumerate().map(|(index, name)| (Mark::new(index), *name));
    sources.chain(kernels).map(|(mark, name)| (mark.key(), name.to_owned())).collect()
}

/// Returns the whole decades around positive values.
fn decades(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (least, most) = values
        .filter(|value| sane(*value))
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), value| (least.min(value), most.max(value)));
    if least > most {
        return 1.0..10.0;
    }
    let from = least.log10().floor();
    // Slightly below the first decade, so that rounding does not drop its tick.
    10f64.powf(from) * 0.999..10f64.powf(most.log10().ceil().max(from + 1.0))
}

/// Returns the text of a power of ten, `10 TFLOP/s`.
fn decade(rate: f64) -> String {
    let rate = 10f64.powf(rate.log10().round());
    // Three digits of a power of ten: the decimals are zeros.
    si(rate, "FLOP/s").replacen(".00 ", " ", 1).replacen(".0 ", " ", 1)
}

fn draw(points: &[(Mark, (f64, f64))], ceilings: Ceilings) -> Drawing {
    let flats: Vec<(f64, &str)> =
        [(Some(ceilings.fma_gflop_s), "f32 FMA"), (ceilings.matrix_gflop_s, "f16 matrix")]
            .into_iter()
            .filter_map(|(rate, name)| rate.filter(|rate| sane(*rate)).map(|rate| (rate, name)))
            .collect();
    let highest = flats.iter().map(|(rate, _)| *rate).fold(0.0, f64::max);
    // Beyond the last ridge by a third of a decade, so that its ceiling shows as flat.
    let ridge = highest / ceilings.copy_gb_s * 2.0;
    let x = decades(points.iter().map(|(_, (x, _))| *x).chain([ridge]));
    let y = decades(points.iter().map(|(_, (_, y))| *y).chain([highest]));
    Drawing::new(WIDTH, HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_right(24)
            .margin_top(14)
            .set_label_area_size(LabelAreaPosition::Left, 92)
            .set_label_area_size(LabelAreaPosition::Bottom, 46)
            .build_cartesian_2d(x.clone().log_scale(), y.clone().log_scale())
            .drawn();
        chart
            .configure_mesh()
            .x_label_formatter(&|value| super::plot::mesh_tick(*value))
            .y_label_formatter(&|value| decade(value * 1e9))
            .x_labels(12)
            .y_labels(10)
            .x_desc("operations per byte, FLOP/B")
            .label_style(tick())
            .axis_desc_style(tick())
            .axis_style(grid())
            .bold_line_style(grid())
            .light_line_style(TRANSPARENT)
            .draw()
            .drawn();
        let plot = chart.plotting_area();
        for line in lines(ceilings, &flats, highest, &x, &y) {
            plot.draw(&PathElement::new(line.ends, ink(0.7).stroke_width(2))).drawn();
            let anchor = if line.offset.1 < 0 { VPos::Bottom } else { VPos::Top };
            let label = Text::new(line.label, line.offset, text(12.0, 0.9, HPos::Right, anchor));
            plot.draw(&(EmptyElement::at(line.at) + label)).drawn();
        }
        points.iter().for_each(|(mark, position)| mark.draw(plot, *position));
    })
}

/// A ceiling with its name.
struct Line {
    ends: [(f64, f64); 2],
    label: String,
    at: (f64, f64),
    offset: (i32, i32),
}

fn lines(
    ceilings: Ceilings,
    flats: &[(f64, &str)],
    highest: f64,
    x: &Range<f64>,
    y: &Range<f64>,
) -> Vec<Line> {
    let copy = ceilings.copy_gb_s;
    let mut lines = Vec::new();
    if sane(copy) && highest > 0.0 {
        // Where the slope enters from the left or from below, and where it meets the highest ceiling.
        let (from, to) = (x.start.max(y.start / copy), highest / copy);
        let middle = (from * to).sqrt();
        let label = format!("copy {}", si(copy * 1e9, "B/s"));
        lines.push(Line {
            ends: [(from, from * copy), (to, highest)],
            label,
            at: (middle, middle * copy),
            offset: (-8, -4),
        });
    }
    // Two names above two lines need some 18 pixels between them.
    let close = 10f64.powf((y.end / y.start).log10() * 18.0 / f64::from(HEIGHT));
    for (rate, name) in flats {
        let below = flats.iter().any(|(other, _)| other > rate && *other < rate * close);
        let from = (rate / copy).clamp(x.start, x.end);
        let label = format!("{name} {}", si(rate * 1e9, "FLOP/s"));
        lines.push(Line {
            ends: [(from, *rate), (x.end, *rate)],
            label,
            at: (x.end, *rate),
            offset: (-6, if below { 4 } else { -3 }),
        });
    }
    lines
}

fn table(points: &[Point], ceilings: Ceilings) -> Table {
    let mut table = Table::new(&[
        "kernel",
        "shape",
        "measured in",
        ">calls",
        ">bytes",
        ">operations",
        ">time, µs",
        ">FLOP/B",
        ">GB/s",
        ">GFLOP/s",
        "bound",
        ">of ceiling",
    ]);
    for point in points {
        let (bound, memory) = ceilings.bound(point.bytes, point.flops);
        let (intensity, rate) = point.position();
        table.push([
            point.kernel.clone(),
            point.shape.clone(),
            point.origin.clone(),
            point.calls.to_string(),
            point.bytes.to_string(),
            point.flops.to_string(),
            cell(point.ns / 1e3),
            cell(intensity),
            cell(point.bytes as f64 / point.ns),
            cell(rate),
            if memory { "memory" } else { "compute" }.to_owned(),
            percent(bound / point.ns),
        ]);
    }
    table
}
