//! Horizontal bars with whiskers, in groups under headings.

use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

use super::plot::{Drawing, Drawn, Plot, WIDTH, extent, grid, ink, mesh_tick, text, tick, width};
use crate::instruments::numbers::plain;
use crate::instruments::samples::Samples;

/// Pixels of a bar with its gap, of a heading, and below the bars.
const BAR: u32 = 22;
const HEADING: u32 = 30;
const BELOW: u32 = 42;
/// Pixels between ticks, about: enough for a number of six digits.
const TICK: u32 = 80;

/// A line of the chart.
pub enum Line {
    /// The name of the bars that follow.
    Heading(String),
    /// A median with its extremes.
    Bar {
        /// Left of the bar.
        label: String,
        /// Its length.
        samples: Samples,
        /// Its colour.
        colour: RGBColor,
        /// Right of its value.
        note: String,
    },
}

impl Line {
    fn height(&self) -> u32 {
        match self {
            Self::Heading(_) => HEADING,
            Self::Bar { .. } => BAR,
        }
    }
}

/// Returns the chart of bars that count `unit`.
pub fn draw(lines: &[Line], unit: &str) -> Drawing {
    let (mut labels, mut notes, mut largest) = (0, 0, 0.0f64);
    for line in lines {
        if let Line::Bar { label, samples, note, .. } = line {
            labels = labels.max(width(label) + 12);
            notes = notes.max(width(note));
            largest = largest.max(samples.max());
        }
    }
    let right = 64 + notes;
    let ticks = (WIDTH.saturating_sub(labels + right) / TICK).max(2) as usize;
    let height: u32 = lines.iter().map(Line::height).sum();
    Drawing::new(WIDTH, height + BELOW, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin_right(right)
            .set_label_area_size(LabelAreaPosition::Left, labels)
            .set_label_area_size(LabelAreaPosition::Bottom, BELOW)
            .build_cartesian_2d(0.0..extent(largest), 0.0..f64::from(height))
            .drawn();
        chart
            .configure_mesh()
            .disable_mesh()
            .disable_y_axis()
            .x_labels(ticks)
            .x_label_formatter(&|value| mesh_tick(*value))
            .x_desc(unit)
            .label_style(tick())
            .axis_desc_style(tick())
            .axis_style(grid())
            .draw()
            .drawn();
        // Behind bars only, so that no line runs through a heading.
        let ticks = chart.as_coord_spec().x_spec().key_points(BoldPoints(ticks));
        let mut top = f64::from(height);
        for line in lines {
            let bottom = top - f64::from(line.height());
            if matches!(line, Line::Bar { .. }) {
                for tick in &ticks {
                    let ends = [(*tick, top), (*tick, bottom)];
                    chart.plotting_area().draw(&PathElement::new(ends, grid())).drawn();
                }
            }
            draw_line(chart.plotting_area(), line, (top + bottom) / 2.0, labels as i32);
            top = bottom;
        }
    })
}

fn draw_line(plot: &Plot, line: &Line, middle: f64, labels: i32) {
    let write = |at: f64, text: &str, offset: i32, style: TextStyle<'static>| {
        let text = Text::new(text.to_owned(), (offset, 0), style);
        plot.draw(&(EmptyElement::at((at, middle)) + text)).drawn();
    };
    match line {
        Line::Heading(name) => {
            let style = text(13.0, 1.0, HPos::Left, VPos::Center);
            write(0.0, name, -labels, TextStyle { font: style.font.style(FontStyle::Bold), ..style });
        }
        Line::Bar { label, samples, colour, note } => {
            draw_bar(plot, samples, *colour, middle);
            write(0.0, label, -8, text(13.0, 0.9, HPos::Right, VPos::Center));
            let value = if note.is_empty() {
                plain(samples.median())
            } else {
                format!("{} · {note}", plain(samples.median()))
            };
            write(samples.max(), &value, 7, text(12.0, 0.9, HPos::Left, VPos::Center));
        }
    }
}

fn draw_bar(plot: &Plot, samples: &Samples, colour: RGBColor, middle: f64) {
    let half = f64::from(BAR) / 2.0 - 4.0;
    let (median, least, most) = (samples.median(), samples.min(), samples.max());
    let corners = [(0.0, middle + half), (median, middle - half)];
    plot.draw(&Rectangle::new(corners, colour.filled())).drawn();
    for [from, to] in [
        [(least, middle), (most, middle)],
        [(least, middle - 4.0), (least, middle + 4.0)],
        [(most, middle - 4.0), (most, middle + 4.0)],
    ] {
        plot.draw(&PathElement::new([from, to], ink(0.9))).drawn();
    }
}
