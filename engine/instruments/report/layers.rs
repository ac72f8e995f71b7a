//! The time of a step by layer: attention and FFN stacked, the embedding and the head beside them.

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::page::{Figure, Table};
use super::platforms::Platforms;
use super::plot::{Drawing, Drawn, WIDTH, colour, extent, grid, mesh_tick, swatch, text, tick};
use crate::instruments::document::{Profile, StepProfile};
use crate::instruments::names;
use crate::instruments::numbers::{cell, percent, si};
use crate::instruments::profile::Total;

const HEIGHT: u32 = 340;

/// Most bars that all have room for a name.
const NAMED: usize = 32;

/// The parts of a bar.
const PARTS: [&str; 3] = ["attention", "FFN", "embedding and head"];
/// The names of the first two in labels.
const PATHS: [&str; 2] = ["attn", "ffn"];

/// Returns a chart for each step of each profile.
pub fn figures(profiles: &[&Profile], platforms: &Platforms) -> Vec<Figure> {
    let of = |profile: &&'_ Profile| {
        let platform = platforms.at(&profile.environment).label.clone();
        let steps: Vec<Figure> = profile
            .steps
            .iter()
            .filter(|step| !step.dispatches.is_empty())
            .map(|step| figure(profile, step, &platform))
            .collect();
        steps
    };
    profiles.iter().flat_map(of).collect()
}

/// A bar: a layer, or what is outside the layers.
struct Bar {
    name: String,
    /// Nanoseconds of each part.
    ns: [f64; 3],
    dispatches: usize,
}

/// Returns the bars of a step, in the order in which the layers run.
fn bars(profile: &Profile, step: &StepProfile) -> Vec<Bar> {
    let bar = |total: Total| {
        let mut ns = [0.0; 3];
        for dispatch in step.dispatches.iter().filter(|dispatch| dispatch.part().0 == total.name) {
            let part = PATHS.iter().position(|path| *path == dispatch.part().1).unwrap_or(2);
            ns[part] += dispatch.ns.median();
        }
        let name = total.name.strip_prefix("layer.").unwrap_or(&total.name).to_owned();
        Bar { name, ns, dispatches: total.calls }
    };
    step.by_layer(&profile.ceilings).into_iter().map(bar).collect()
}

fn figure(profile: &Profile, step: &StepProfile, platform: &str) -> Figure {
    let bars = bars(profile, step);
    let totals = [0, 1, 2].map(|part| bars.iter().map(|bar| bar.ns[part]).sum::<f64>());
    let whole = step.ns();
    let share = |ns: f64| percent(ns / whole);
    let name = if step.name == "decode" {
        "Decode of one token".to_owned()
    } else {
        format!("Prefill of {} tokens", step.tokens)
    };
    let cached = if step.position > 0 { format!(" after {} cached", step.position) } else { String::new() };
    let [attention, ffn, rest] = totals.map(share);
    let mut table = Table::new(&[
        "layer",
        ">attention, µs",
        ">FFN, µs",
        ">embedding and head, µs",
        ">all, µs",
        ">of the step",
        ">dispatches",
    ]);
    for bar in &bars {
        let [a, f, r] = bar.ns.map(|ns| cell(ns / 1e3));
        let all: f64 = bar.ns.iter().sum();
        table.push([bar.name.clone(), a, f, r, cell(all / 1e3), share(all), bar.dispatches.to_string()]);
    }
    Figure {
        title: format!("{name}{cached}: {} on {platform}", names::subject(&profile.subject)),
        caption: format!(
            "{} in all, the sum of the median times of {} dispatches: attention {attention}, FFN {ffn}, embedding and head {rest}. Timed by {}.",
            si(whole / 1e9, "s"),
            step.dispatches.len(),
            names::clock(&profile.environment.clock),
        ),
        chart: draw(&bars),
        legend: PARTS
            .iter()
            .enumerate()
            .map(|(part, name)| (swatch(colour(part)), (*name).to_owned()))
            .collect(),
        table,
    }
}

fn draw(bars: &[Bar]) -> Drawing {
    let highest = bars.iter().map(|bar| bar.ns.iter().sum::<f64>()).fold(0.0, f64::max);
    let (scale, unit) = if highest < 1e7 { (1e3, "µs") } else { (1e6, "ms") };
    let count = bars.len() as f64;
    Drawing::new(WIDTH, HEIGHT, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_right(16)
            .margin_top(10)
            .set_label_area_size(LabelAreaPosition::Left, 76)
            .set_label_area_size(LabelAreaPosition::Bottom, 46)
            .build_cartesian_2d(0.0..count, 0.0..extent(highest / scale) * 1.03)
            .drawn();
        chart
            .configure_mesh()
            .disable_x_mesh()
            .x_labels(0)
            .y_labels(7)
            .y_label_formatter(&|value| mesh_tick(*value))
            .x_desc("layer")
            .y_desc(unit)
            .label_style(tick())
            .axis_desc_style(tick())
            .axis_style(grid())
            .bold_line_style(grid())
            .light_line_style(TRANSPARENT)
            .draw()
            .drawn();
        let plot = chart.plotting_area();
        for (index, bar) in bars.iter().enumerate() {
            let left = index as f64;
            let mut below = 0.0;
            for (part, ns) in bar.ns.iter().enumerate().filter(|(_, ns)| **ns > 0.0) {
                let above = below + ns / scale;
                let corners = [(left + 0.14, above), (left + 0.86, below)];
                plot.draw(&Rectangle::new(corners, colour(part).filled())).drawn();
                below = above;
            }
            if !labelled(index, bars.len()) {
                continue;
            }
            let name = Text::new(bar.name.clone(), (0, 7), text(12.0, 0.75, HPos::Center, VPos::Top));
            plot.draw(&(EmptyElement::at((left + 0.5, 0.0)) + name)).drawn();
        }
    })
}

/// Returns whether a bar is named: the first, the last, and of many others every second one that is not
/// next to those two.
fn labelled(index: usize, count: usize) -> bool {
    count <= NAMED || index == 0 || index + 1 == count || (index.is_multiple_of(2) && index + 2 < count)
}
