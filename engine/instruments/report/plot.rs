//! What the charts share: a canvas that becomes inline SVG, colours, markers and styles of text.
//!
//! Drawing goes into a string and cannot fail, so its results are unwrapped in one place, [`Drawn::drawn`].

use std::fmt::Debug;
use std::ops::RangeInclusive;

use plotters::coord::types::RangedCoordf64;
use plotters::coord::{CoordTranslate, Shift};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Width of a chart in pixels; the page scales it to the window.
pub const WIDTH: u32 = 880;

/// Stands for the colour of the page's text, which is not known here.
const INK: RGBColor = RGBColor(1, 2, 3);

/// Okabe and Ito's palette, which people with any kind of colour blindness can distinguish; its black and
/// its yellow would vanish on a dark or a light page.
const PALETTE: [RGBColor; 6] = [
    RGBColor(0x00, 0x72, 0xB2),
    RGBColor(0xD5, 0x5E, 0x00),
    RGBColor(0x00, 0x9E, 0x73),
    RGBColor(0xCC, 0x79, 0xA7),
    RGBColor(0xE6, 0x9F, 0x00),
    RGBColor(0x56, 0xB4, 0xE9),
];

/// Where a chart is drawn.
pub type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// The inside of a chart with linear axes.
pub type Plot<'a> = DrawingArea<SVGBackend<'a>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// A result of drawing into a string.
pub trait Drawn<T> {
    /// Returns what was drawn.
    fn drawn(self) -> T;
}

impl<T, E: Debug> Drawn<T> for Result<T, E> {
    fn drawn(self) -> T {
        self.expect("a string takes every drawing")
    }
}

/// A finished drawing: the inside of an `svg` element.
pub struct Drawing {
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Elements.
    pub body: String,
}

impl Drawing {
    /// Draws on a canvas of the size.
    pub fn new(width: u32, height: u32, draw: impl FnOnce(&Area)) -> Self {
        let mut svg = String::new();
        let area = SVGBackend::with_string(&mut svg, (width, height)).into_drawing_area();
        draw(&area);
        area.present().drawn();
        drop(area);
        let (_, body) = svg.split_once('>').expect("the element opens");
        let body = body.trim().strip_suffix("</svg>").expect("the element closes");
        let ink = format!("#{:02X}{:02X}{:02X}", INK.0, INK.1, INK.2);
        Self { width, height, body: body.replace(&ink, "currentColor") }
    }
}

/// Returns the colour of the page's text, more or less opaque.
pub fn ink(opacity: f64) -> RGBAColor {
    INK.mix(opacity)
}

/// Returns a colour of the palette, which repeats after its end.
pub fn colour(index: usize) -> RGBColor {
    PALETTE[index % PALETTE.len()]
}

/// Lines behind the data.
pub fn grid() -> ShapeStyle {
    ink(0.14).stroke_width(1)
}

/// Text of a size in pixels, anchored at a point of its box.
pub fn text(pixels: f64, opacity: f64, horizontal: HPos, vertical: VPos) -> TextStyle<'static> {
    // The backend takes 1.24 as the height of a line.
    let style = TextStyle::from(("sans-serif", pixels * 1.24).into_font());
    TextStyle { color: ink(opacity).to_backend_color(), ..style }.pos(Pos::new(horizontal, vertical))
}

/// Text of ticks and of axes.
pub fn tick() -> TextStyle<'static> {
    text(12.0, 0.75, HPos::Left, VPos::Top)
}

/// Returns about how many pixels a text of 13 pixels takes.
pub fn width(text: &str) -> u32 {
    (text.chars().count() as f64 * 7.2).ceil() as u32
}

/// What can be drawn: a damaged file may hold any number, and ticks over 600 decades would not end.
const SANE: RangeInclusive<f64> = 1e-12..=1e15;

/// Returns whether an axis that begins above zero can show a value.
pub fn sane(value: f64) -> bool {
    SANE.contains(&value)
}

/// Returns the end of an axis that begins at zero, for values up to `largest`.
pub fn extent(largest: f64) -> f64 {
    if largest > 0.0 { largest.clamp(*SANE.start(), *SANE.end()) } else { 1.0 }
}

/// Returns the text of a tick, without trailing zeros.
pub fn mesh_tick(value: f64) -> String {
    let text = format!("{value:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// How a series or a kernel is marked.
#[derive(Clone, Copy)]
pub struct Mark {
    /// Its colour.
    pub colour: RGBAColor,
    /// Which of four shapes.
    pub shape: usize,
    /// Only its outline.
    pub hollow: bool,
    /// Half its width in pixels.
    pub size: i32,
}

impl Mark {
    /// Returns one of 24 filled marks; the neighbours of each have another colour and another shape.
    pub fn new(index: usize) -> Self {
        Self { colour: colour(index).to_rgba(), shape: index + index / PALETTE.len(), hollow: false, size: 5 }
    }

    /// Returns a filled circle in the colour of the page's text.
    pub fn plain() -> Self {
        Self { colour: ink(0.8), ..Self::new(0) }
    }

    /// Draws the mark.
    pub fn draw<C>(self, plot: &DrawingArea<SVGBackend, C>, at: (f64, f64))
    where
        C: CoordTranslate<From = (f64, f64)>,
    {
        let r = self.size;
        let style = if self.hollow { self.colour.stroke_width(2) } else { self.colour.filled() };
        let corners = match self.shape % 4 {
            0 => return plot.draw(&(EmptyElement::at(at) + Circle::new((0, 0), r, style))).drawn(),
            1 => vec![(-r, -r), (r, -r), (r, r), (-r, r)],
            2 => vec![(0, -r - 1), (r + 1, r), (-r - 1, r)],
            _ => vec![(0, -r - 2), (r + 2, 0), (0, r + 2), (-r - 2, 0)],
        };
        if self.hollow {
            let closed: Vec<_> = corners.iter().chain(&corners[..1]).copied().collect();
            plot.draw(&(EmptyElement::at(at) + PathElement::new(closed, style))).drawn();
        } else {
            plot.draw(&(EmptyElement::at(at) + Polygon::new(corners, style))).drawn();
        }
    }

    /// Returns the mark alone, for a legend.
    pub fn key(self) -> Drawing {
        Drawing::new(14, 14, |area| {
            let chart = ChartBuilder::on(area).build_cartesian_2d(-1.0..1.0, -1.0..1.0).drawn();
            self.draw(chart.plotting_area(), (0.0, 0.0));
        })
    }
}

/// Returns a filled square of a colour, for a legend.
pub fn swatch(colour: RGBColor) -> Drawing {
    Drawing::new(14, 14, |area| {
        area.draw(&Rectangle::new([(1, 1), (13, 13)], colour.filled())).drawn();
    })
}
